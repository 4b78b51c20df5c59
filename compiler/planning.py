"""A schedule for each kernel of a model: searched for, from the log, from elsewhere, or the default."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..targets.base import Kernel, Schedules, Space
from ..tuning import heuristic, verification
from ..tuning.fingerprint import Here
from ..tuning.heuristic import Heuristic
from ..tuning.log import Log
from ..tuning.plan import Plan, make_plan
from ..tuning.search import Budget, Progress, Summary
from ..tuning.transfer import starts
from ..tuning.worth import worth
from . import costs, library, rooms
from .beyond import Beyond
from .conditions import Conditions
from .progress import Steps
from .tuning_events import Teller, Warned

if TYPE_CHECKING:
    from .driver import Front

NOTHING = Budget(seconds=0)


def planned(
    front: Front,
    log: Log,
    budget: Budget,
    conditions: Conditions,
    progress: Steps,
    retune: bool = False,
    verify: bool = False,
    teller: Teller | None = None,
    beyond: Beyond | None = None,
) -> Plan:
    """A schedule for each kernel: searched for while the budget lasts, or from the log, or what is known of
    others (measured once with verify), or the default. teller is told how it goes.

    Raises CannotBuild where something is to be measured and this machine cannot.
    """
    started, teller, beyond = time.monotonic(), teller or Teller(), beyond or Beyond()
    machine, uses = conditions.machine, Counter(front.kernels.values())
    place = beyond.place(conditions)
    log.profile_of = conditions.profile
    learned = heuristic.read(heuristic.beside(log.path))
    known = Known(uses, {kernel: machine.space(kernel) for kernel in uses}, log, place, learned)
    searches, summary = bool(uses) and not budget.empty, Summary()
    if searches:
        beyond.expect(machine)
    ceilings = _ceilings(front, conditions) if searches and not beyond.fleet else {}
    teller.start(uses, known.spaces, budget, log, place, ceilings)
    if searches:
        summary = _search(known, budget, conditions, retune, teller, progress, beyond)
        if summary.interrupted:
            progress("tuning stopped: compiling with the best so far", 0, 0)
    plan = known.plan(summary.kernels)
    if verify and plan.unmeasured:
        beyond.expect(machine)
        with beyond.judge(conditions, place) as judge:
            judge.start()
            verification.verify(plan, known.spaces, judge, log, place, library.toolchain(machine))
        plan = known.plan(summary.kernels)
    cost = time.monotonic() - started, summary.trials, summary.interrupted
    for warning in beyond.warnings:
        teller.listener(Warned(warning))
    teller.end(plan, worth(plan, known.spaces, uses, log, place, *cost))
    return plan


@dataclass(frozen=True, slots=True)
class Known:
    """Kernels and how many nodes use each, their spaces, and what there is to choose by."""

    uses: Mapping[Kernel, int]
    spaces: Mapping[Kernel, Space]
    log: Log
    place: Here
    learned: Sequence[Heuristic]

    def plan(self, tuned: Sequence[Kernel]) -> Plan:
        """tuned: the kernels that this run has searched."""
        return make_plan(self.uses, self.spaces, self.log, self.place, tuned, self.learned)

    def starts(self, kernel: Kernel) -> Sequence[Schedules]:
        """Where the search of a kernel begins."""
        return starts(kernel, self.spaces[kernel], self.log, self.place.of(kernel), self.learned)


def _search(
    known: Known,
    budget: Budget,
    conditions: Conditions,
    retune: bool,
    teller: Teller,
    progress: Steps,
    beyond: Beyond,
) -> Summary:
    def told(step: Progress) -> None:
        teller.step(step)
        if step.record.status != "done":
            trial = f"tune: {step.kernel}, trial {step.trials}, {step.gain:.2f}x the default's speed"
            progress(trial, step.number - 1, step.kernels)

    weights = {kernel: count * kernel.work for kernel, count in known.uses.items()}
    with beyond.judge(conditions, known.place) as judge:
        judge.start()  # the budget is for trials
        return beyond.tune(
            known.spaces,
            judge,
            budget,
            known.log,
            known.place,
            weights=weights,
            retune=retune,
            versions=library.toolchain(conditions.machine),
            starts=known.starts,
            progress=told,
        )


def _ceilings(front: Front, conditions: Conditions) -> dict[Kernel, float]:
    """Seconds that a kernel takes at least for one token: its weights have to come from memory. None of those
    that find them in a cache.
    """
    if not conditions.cold:
        return {}
    room = rooms.room_of(conditions.machine.name)
    speed = room.read_bandwidth(conditions.threads, conditions.machine.capabilities.name)
    read = costs.read_bytes(front.graph)
    return {kernel: read[node] / speed for node, kernel in front.kernels.items() if read[node]}
