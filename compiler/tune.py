"""Tuning without building: the log learns the schedules that later builds take."""

from __future__ import annotations

import os
from pathlib import Path

from ..tuning.log import Log, default_path
from ..tuning.mirror import Mirror
from ..tuning.search import Budget
from .beyond import Beyond
from .conditions import conditions
from .driver import Clock, describe, laid_out, understand
from .guesses import guesses
from .planning import planned
from .policy import NONE, cache_of, policy_of
from .progress import Steps, quiet
from .report import Report
from .rooms import measured_on, target_of
from .rounding import Rounding, stored_weights
from .source import resolve
from .tuning_events import Listener, Teller, nobody


def tune_model(
    model: str = "",
    target: str = "cpu",
    *,
    fleet: str = "",
    on: str = "",
    storage: str = "",
    isa: str | None = None,
    budget: str = "2m",
    retune: bool = False,
    log: str | Path | None = None,
    routing_trace: Path | None = None,
    config: str | Path | None = None,
    quant: str = NONE,
    quant_config: Path | None = None,
    cache: str | None = None,
    threads: int | None = None,
    progress: Steps = quiet,
    events: Listener = nobody,
) -> Report:
    """Search schedules for a model's kernels and write them into the log, and nothing else.

    Of the model only shapes are read. fleet: the address of a Ray cluster that builds and measures, instead
    of this machine; on: what its workers that measure declare (tuning/fleet.py); storage: the URL of an
    Optuna storage to show the search in (tuning/mirror.py). The rest, and errors, are those of
    driver.compile_model; NoFleet is a CannotBuild.
    """
    clock, machine, teller = Clock(progress), target_of(target, isa, quant), Teller(events)
    if fleet:
        machine = measured_on(machine, on)
    threads = threads or len(os.sched_getaffinity(0))
    known = Log(Path(log or default_path()), machine.measured)
    beyond = Beyond(fleet, Mirror(storage) if storage else None)
    shapes = Path(config or model)
    source = resolve(model, shapes if config or shapes.exists() else None)
    policy = policy_of(quant, quant_config, machine.policies)
    front = understand(source, machine, clock, None, False, policy, cache_of(machine, cache))
    with clock.step("tune"):
        called = conditions(machine, front.graph, front.kernels.values(), threads, routing_trace)
        plan = planned(
            front, known, Budget.parse(budget), called, progress, retune, teller=teller, beyond=beyond
        )
        guessed = guesses(plan, known, teller.place, called)
    weights = stored_weights(laid_out(front, machine, plan)[0], Rounding())
    manifest = describe(front, machine, plan, teller, {}, weights, guessed)
    return Report(manifest, None, clock.seconds, [*known.problems, *beyond.warnings])
