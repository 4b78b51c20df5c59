"""The command line: what the user types, and what is shown. All work is done elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .refusals import refusals

EXAMPLES = """
\b
Examples:
  moec compile ./DeepSeek-V2-Lite -o lite --budget 2m
  moec compile ./DeepSeek-V2-Lite -o small --quant int4
  moec compile --config ./DeepSeek-V3 --random-weights 0 -o shape
  moec compile my_package.models:tiny -o tiny
  moec run lite --tokens 100000,549,6077 --max-new 32
  moec bench lite --prompt 512 --max-new 64
  moec explain lite
  moec explain --config ./DeepSeek-V3
  moec log best
"""


class Refused(click.ClickException):
    """Something the user gave cannot be used: one sentence on stderr, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"moec: {self.message}", err=True)


class Commands(click.Group):
    """Turns errors about what the user gave into Refused; others are defects and keep their traceback."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), "log", "toolchain", "tune", "worker"])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name == "log":
            from .learn_command import learn
            from .log_commands import log
            from .refit_command import refit
            from .report_command import report

            for command in (learn, refit, report):
                log.add_command(command)
            return log
        if name == "toolchain":
            from .toolchain_command import toolchain

            return toolchain
        if name in ("tune", "worker"):
            from . import tune_command

            return getattr(tune_command, name)  # type: ignore[no-any-return]
        return super().get_command(context, name)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except refusals() as error:
            raise Refused(str(error)) from None


def say(machine: bool, data: Any, show: Callable[[Any], None]) -> None:
    """JSON for machines, or what `show` prints on a console for people."""
    if machine:
        click.echo(json.dumps(data))
    else:
        from rich.console import Console

        show(Console(width=None if sys.stdout.isatty() else 150))


def say_aside(line: str) -> None:
    """A line on stderr."""
    click.echo(line, err=True)


def tokens_of(context: click.Context, option: click.Parameter, text: str) -> list[int]:
    """Token ids from "1,2,3"."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of token ids such as 1,2,3") from None


def budget_of(context: click.Context, option: click.Parameter, text: str) -> str:
    """A budget that the search understands."""
    from ..tuning.search import Budget

    try:
        Budget.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return text


as_json = click.option("--json", "machine", is_flag=True, help="Print JSON instead of tables.")
with_threads = click.option(
    "--threads", type=click.IntRange(1, 1024), help="Threads to run with; default: all cores."
)
with_config = click.option(
    "--config", type=click.Path(path_type=Path), help="A config.json, or a folder with one, instead of MODEL."
)
with_target = click.option(
    "--target",
    default="cpu",
    show_default=True,
    help="What to compile for: cpu, cuda or ascend (see moec devices).",
)
with_targets = click.option(
    "--target",
    "targets",
    multiple=True,
    help="What to compile for; given several times, all plans side by side. [default: cpu]",
)
with_isa = click.option(
    "--isa",
    "--sm",
    "--soc",
    "isa",
    metavar="LEVEL",
    help="What code may be for: x86-64-v3 (cpu), sm_90a (cuda), 910B3 (ascend); default: the best here.",
)
with_log = click.option(
    "--log", type=click.Path(path_type=Path), help="Tuning log; default: in the user's data folder."
)
with_quant = click.option(
    "--quant",
    default="none",
    show_default=True,
    type=click.Choice(["none", "bf16", "f16", "fp8", "int8", "int4"]),
    help="How to store weights; on the cpu routers and norms stay f32 and a few others are kept wider. The "
    "cpu has no fp8, cuda has that and bf16, ascend bf16, f16 and int8.",
)
with_quant_config = click.option(
    "--quant-config",
    type=click.Path(path_type=Path),
    help='JSON or TOML that overrides --quant for tensors by name: {"*.experts.*": "int4"}.',
)
with_cache = click.option(
    "--cache",
    type=click.Choice(["f32", "bf16", "f16", "fp8", "int8"]),
    help="How earlier tokens are kept; default: f32 on the cpu, else bf16 or, with --quant f16, that, which "
    "take half the memory. Latents also fp8, on cuda, or int8, on the cpu: less than a third.",
)
with_cache_pages = click.option(
    "--cache-pages",
    type=click.IntRange(1),
    metavar="ROWS",
    help="Keep caches in pages of so many rows (64), which all texts share, as servers do.",
)
with_head = click.option(
    "--head",
    default="logits",
    show_default=True,
    type=click.Choice(["logits", "next"]),
    help="What comes out: logits of every token, or the next token of each text, which the artifact chooses "
    "as its inputs temperature, top_k, top_p and uniform say.",
)
with_routing_trace = click.option(
    "--routing-trace",
    type=click.Path(path_type=Path),
    help="Expert ids that tokens chose, [tokens, top_k], .npy or JSON lines; tune experts for them.",
)
with_retune = click.option("--retune", is_flag=True, help="Search on where the log already has a result.")
with_json_events = click.option(
    "--json-events",
    is_flag=False,
    flag_value="-",
    metavar="[=FILE]",
    help="Tell how tuning goes in JSON, an event a line, on stderr or at the end of FILE.",
)
with_watch = click.option(
    "--watch", type=click.Path(path_type=Path), help="Write the graph after each pass into this folder."
)


def with_budget(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option that says how much to search."""
    return click.option(
        "--budget",
        default=default,
        show_default=True,
        callback=budget_of,
        help="How long to tune: 90s, 2m or 1h in all, 40t for trials a kernel, 0 for what the log knows.",
    )


@click.group(cls=Commands, epilog=EXAMPLES)
@click.version_option(package_name="moec")
def main() -> None:
    """Compile Mixture-of-Experts language models into artifacts that stock onnxruntime runs.

    MODEL is a Hugging Face folder (config.json and safetensors), or package.module:function that returns a
    torch.nn.Module and example inputs. Families known by name: deepseek_v2, deepseek_v3, qwen3_moe.
    """


@main.command("compile")
@click.argument("model", default="")
@with_config
@click.option("--random-weights", type=int, metavar="SEED", help="Make the weights up, from this seed.")
@with_quant
@with_quant_config
@with_cache
@with_cache_pages
@with_head
@with_target
@with_isa
@with_budget("0")
@with_routing_trace
@with_retune
@click.option("--verify", is_flag=True, help="Measure once what is from other shapes or machines.")
@with_log
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--force", is_flag=True, help="Replace the artifact in that folder, once the new one is complete."
)
@with_watch
@click.option("--check", is_flag=True, help="Compare the numbers before and after each pass.")
@click.option(
    "--prove/--no-prove", default=True, help="Compare the artifact with PyTorch.", show_default=True
)
@with_threads
@with_json_events
@as_json
def compile_(model: str, machine: bool, json_events: str | None, **options: Any) -> None:
    """Compile MODEL into an artifact: a folder with model.onnx, weights, a kernel library and a manifest."""
    from .driver import compile_model
    from .progress import Bar
    from .tuning_progress import watching

    expect_model(model, options["config"])
    with (
        Bar(json_events != "-") as bar,
        watching(bar, json_events, say_aside) as listener,
    ):
        report = compile_model(model, progress=bar, events=listener, **options)
    show(report, machine, warned=json_events == "-")


@main.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--tokens", required=True, callback=tokens_of, help="The prompt's token ids: 1,2,3.")
@click.option("--max-new", default=32, show_default=True, type=click.IntRange(0), help="Tokens to add.")
@click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(0), help="0 is greedy.")
@click.option("--top-k", type=click.IntRange(1), help="Draw from the k most likely tokens.")
@click.option(
    "--top-p", default=1.0, show_default=True, type=click.FloatRange(0, 1), help="Draw from this much chance."
)
@click.option("--seed", type=click.IntRange(0), help="For draws that can be repeated.")
@click.option("--eos", type=int, help="Stop after this token.")
@with_threads
@as_json
def run(
    artifact: Path,
    tokens: list[int],
    max_new: int,
    eos: int | None,
    threads: int | None,
    machine: bool,
    **sampling: Any,
) -> None:
    """Continue a prompt of token ids with the model in ARTIFACT."""
    from .runner import load

    model = load(artifact, threads)
    if model.simulated:
        say_aside(f"moec: {artifact} is {model.simulated}")
    ids = model.generate([tokens], max_new, eos_token_id=eos, **sampling)[0].tolist()
    told = {"tokens": ids} | ({"simulated": model.simulated} if model.simulated else {})
    say(machine, told, lambda console: console.print(*ids, sep=","))


@main.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--prompt", default=64, show_default=True, type=click.IntRange(1), help="Tokens of the prompt.")
@click.option("--max-new", default=32, show_default=True, type=click.IntRange(1), help="Tokens to decode.")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Sequences at once.")
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1), help="Times to do it all.")
@click.option("--profile", "where", is_flag=True, help="Also show which kernels and nodes the time goes to.")
@with_threads
@as_json
def bench(
    artifact: Path,
    prompt: int,
    max_new: int,
    batch: int,
    runs: int,
    where: bool,
    threads: int | None,
    machine: bool,
) -> None:
    """Time prefill and decode of ARTIFACT, and count the bytes they move."""
    from dataclasses import asdict

    from .bench import bench, default_threads
    from .profile import profile
    from .report import phases
    from .runner import load

    threads = threads or default_threads()
    model = load(artifact, threads)
    found = bench(model, prompt, max_new, batch, threads, runs)
    parts = profile(model, prompt, max_new, batch, threads) if where else []
    data = asdict(found) | ({"phases": [asdict(part) for part in parts]} if where else {})
    say(machine, data, lambda console: console.print(phases(found, parts)))


@main.command()
@click.argument("what", default="")
@with_config
@with_quant
@with_quant_config
@with_cache
@with_cache_pages
@with_head
@with_targets
@with_isa
@with_log
@with_watch
@with_threads
@as_json
def explain(what: str, machine: bool, targets: tuple[str, ...], **options: Any) -> None:
    """Which pass did what, what nearly matched, and where each kernel and schedule came from.

    WHAT is an artifact, or a model; of a model only the shapes are read, so its weights need not be there.
    With --target given several times: which kernel and schedule each target has for each op of a model.
    """
    from .driver import explain
    from .progress import Bar

    expect_model(what, options["config"])
    if len(targets) > 1:
        return compare(what, targets, machine, options)
    with Bar() as bar:
        report = explain(what, *targets, progress=bar, **options)
    show(report, machine, misses=sys.maxsize)


def compare(what: str, targets: tuple[str, ...], machine: bool, options: dict[str, Any]) -> None:
    """Several targets' plans for one model."""
    from .plans import compare, plans
    from .progress import Bar

    if options.pop("head") != "logits":
        raise click.UsageError(f"--head is for one --target; {len(targets)} are given")
    alone = ("isa", "watch", "cache_pages")
    if given := [name.replace("_", "-") for name in alone if options.pop(name) is not None]:
        raise click.UsageError(f"--{given[0]} is for one --target; {len(targets)} are given")
    with Bar() as bar:
        found = compare(what, targets, progress=bar, **options)
    for warning in found.warnings:
        say_aside(f"moec: {warning}")
    say(machine, found.json(), lambda console: console.print(plans(found)))


@main.command()
@as_json
def devices(machine: bool) -> None:
    """What this machine can build for, run on and measure."""
    from .report import machines
    from .rooms import devices

    found = devices()
    say(machine, found, lambda console: console.print(machines(found)))


def expect_model(model: str, config: Path | None) -> None:
    """Exactly one of the two ways to name a model."""
    if bool(model) == bool(config):
        raise click.UsageError("give either MODEL or --config" + (", not both" if model else ""))


def show(report: Any, machine: bool, misses: int = 5, warned: bool = False) -> None:
    """warned: whether warnings have been told."""
    from .report import render

    for warning in () if warned else report.warnings:
        say_aside(f"moec: {warning}")
    say(machine, report.json(), lambda console: console.print(render(report, misses)))
