"""The timeline's guesses fitted to what an NPU took, and whether it ranks schedules better with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean

import numpy as np

from ...compiler.ir import Array
from ..base import CannotBuild, Kernel, Refit, Schedule, Took
from ..cases_bf16 import CASES
from ..sample import draws
from . import fitting, timeline
from .device import calls
from .hivm.constants import GUESSED
from .hivm.machine import Fault
from .hivm.sampled import CannotSimulate
from .hivm.view import OutOfBounds
from .measured import affordable
from .program import Number
from .soc import Soc
from .space import steps

LEAST = 0.01  # of a time: schedules that differ by less are not ranked


def refit(times: Sequence[Took], soc: Soc) -> Refit:
    """Raises CannotBuild where none of them can be simulated."""
    kept: list[Took] = []
    records: list[fitting.Record] = []
    why = "there are no times"
    for each in times:
        try:
            records.append(recorded(each, soc))
        except (CannotBuild, CannotSimulate, Fault, OutOfBounds, ValueError) as error:
            why = f"{each.kernel} at {each.point} cannot be simulated: {error}"
            continue
        kept.append(each)
    if not records:
        raise CannotBuild(f"nothing to fit the timeline's constants to: {why}")
    found = fitting.fit(records)
    before, after = (fitting.errors(records, known, [])[0] for known in (timeline.PUBLISHED, found))
    places = by_call(kept)
    return Refit(
        {name: (getattr(timeline.PUBLISHED, name), getattr(found, name)) for name in GUESSED},
        len(records),
        len(times) - len(records),
        (off_by(before), off_by(after)),
        (misranked(kept, before, places), misranked(kept, after, places)),
        (slower(kept, before, places), slower(kept, after, places)),
    )


def recorded(took: Took, soc: Soc) -> fitting.Record:
    """A call with what its blocks do, of the kernel that was measured. Raises as timeline.sampled does."""
    kernel = affordable(with_reals(took.kernel, took.schedule, soc))
    asked = calls(kernel, draws(kernel, CASES[kernel.kind], "")).get(took.point)
    if asked is None:
        raise CannotBuild("it is not timed there any more")
    return fitting.Record(timeline.sampled(kernel, took.schedule, soc, asked), soc, took.seconds * 1e6)


def with_reals(kernel: Kernel, schedule: Schedule, soc: Soc) -> Kernel:
    """With 1 for each real that its steps hand over: a log has none, and no time depends on them."""
    every = (given for step in steps(kernel, schedule, soc) for given in step.arguments.values())
    names = {each.value for each in every if isinstance(each, Number) and isinstance(each.value, str)}
    return replace(kernel, reals=tuple((name, 1.0) for name in sorted(names)))


def by_call(times: Sequence[Took]) -> list[list[int]]:
    """The places of what was tried in one call of one kernel, where that is more than one."""
    found: dict[tuple[Kernel, str], list[int]] = {}
    for place, each in enumerate(times):
        found.setdefault((each.kernel, each.point), []).append(place)
    return [places for places in found.values() if len(places) > 1]


def off_by(logs: Array) -> float:
    """The factor that simulated times are off by."""
    return float(np.exp(np.abs(logs).mean()))


def misranked(times: Sequence[Took], logs: Array, calls: Sequence[Sequence[int]]) -> float:
    """logs: of simulated by measured [times]."""
    measured = np.log([each.seconds for each in times])
    wrong = [
        (measured[a] - measured[b]) * (measured[a] + logs[a] - measured[b] - logs[b]) <= 0
        for places in calls
        for a, b in combinations(places, 2)
        if abs(measured[a] - measured[b]) > LEAST
    ]
    return float(np.mean(wrong)) if wrong else 0.0


def slower(times: Sequence[Took], logs: Array, calls: Sequence[Sequence[int]]) -> float:
    """By what schedules take that are the fastest in simulation."""
    losses = []
    for places in calls:
        chosen = min(places, key=lambda i: times[i].seconds * float(np.exp(logs[i])))
        losses.append(math.log(times[chosen].seconds / min(times[i].seconds for i in places)))
    return math.exp(fmean(losses)) if losses else 1.0
