"""`moec tune` and `moec worker`: tuning without building, on this machine or on many."""

from __future__ import annotations

import os
from typing import Any

import click

from .cli import (
    as_json,
    expect_model,
    say_aside,
    show,
    with_budget,
    with_cache,
    with_config,
    with_isa,
    with_json_events,
    with_log,
    with_quant,
    with_quant_config,
    with_retune,
    with_routing_trace,
    with_target,
    with_threads,
)

TUNE = """
\b
Examples:
  moec tune ./DeepSeek-V2-Lite --budget 10m
  moec tune --config ./DeepSeek-V3 --quant int4 --budget 40t --log /shared/tuning.jsonl
  moec tune ./DeepSeek-V2-Lite --budget 10m --fleet 10.0.0.1:6379
  moec tune ./DeepSeek-V2-Lite --budget 10m --fleet 10.0.0.1:6379 --target cuda --on "gpu:NVIDIA H200"
  moec tune ./DeepSeek-V2-Lite --budget 10m --storage sqlite:///studies.db
"""
WORKER = """
\b
Examples:
  moec worker                                  the first machine; it prints the fleet's address
  moec worker --join 10.0.0.1:6379             every other one that measures
  moec worker --join 10.0.0.1:6379 --as cores  one that only builds
"""


@click.command(epilog=TUNE)
@click.argument("model", default="")
@with_config
@with_quant
@with_quant_config
@with_cache
@with_target
@with_isa
@with_budget("2m")
@with_routing_trace
@with_retune
@with_log
@click.option(
    "--fleet",
    default="",
    metavar="ADDRESS",
    help="Measure on the workers of the fleet at HOST:PORT; this machine is a member. Trusted networks only.",
)
@click.option(
    "--on",
    default="",
    metavar="NAME",
    help="What they declare that measure; default: this machine's processor, or what the target is for.",
)
@click.option(
    "--storage",
    default="",
    metavar="URL",
    help="An Optuna storage to show the search in: any RDB, grpc://HOST:PORT, journal:FILE.",
)
@with_threads
@with_json_events
@as_json
def tune(model: str, machine: bool, json_events: str | None, **options: Any) -> None:
    """Tune MODEL's kernels and write what is learned into the log, which builds then read; build nothing.

    Only the model's shapes are read. With --fleet, kernels are searched side by side on all workers that have
    the same processor, GPU or NPU, and the same moec; workers that offer cores build for them, if there are
    any. A lost worker's trial, or build, is done by another. The members of a fleet run what they send each
    other (Ray, pickles): only on a network where all are trusted. A file given with --routing-trace lies at
    the same path on all of them.

    A storage only shows the search: nothing is read from it, and if it fails, the search goes on.
    """
    from .progress import Bar
    from .tune import tune_model
    from .tuning_progress import watching

    expect_model(model, options["config"])
    if options["on"] and not options["fleet"]:
        raise click.UsageError("--on names workers of a fleet; give --fleet too")
    with Bar(json_events != "-") as bar, watching(bar, json_events, say_aside) as listener:
        report = tune_model(model, progress=bar, events=listener, **options)
    show(report, machine, warned=json_events == "-")


@click.command(epilog=WORKER)
@click.option("--join", default="", metavar="ADDRESS", help="A member's HOST:PORT; default: begin a fleet.")
@click.option(
    "--as",
    "device",
    default="",
    metavar="NAME",
    help="What it measures on, or cores: it builds, on all it has. Default: its GPU or NPU, else its CPU.",
)
def worker(join: str, device: str) -> None:
    """Measure for `moec tune --fleet` on other machines, or build for it, until it is ended.

    A fleet is a Ray cluster (pip install 'moec[fleet]'), and every member may run anything on all the others:
    only on a network where all are trusted. Nothing else should run on a machine that measures. Ray can keep
    others out: RAY_AUTH_MODE=token, and the same token on each machine (ray get-auth-token).

    What builds for others should have no newer C library than they: theirs may not load what it links.
    """
    from ..tuning import cluster
    from .rooms import unit_here

    command = cluster.join_command(join, device or unit_here())
    os.execve(command[0], command, {**cluster.SETTINGS, **os.environ})
