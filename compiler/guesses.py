"""Choices between schedules that hang on a guess, of a target that computes times and measures none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from ..targets.base import CannotBuild, Guessing, Schedule, serving
from ..tuning.fingerprint import Fingerprint, Here
from ..tuning.log import Log
from ..tuning.plan import Choice, Plan
from ..tuning.record import Record
from ..tuning.worth import tokens_of
from .conditions import Conditions

RIVALS = 3  # that a chosen schedule is compared with: the fastest of the others that were tried


def guesses(plan: Plan, log: Log, place: Fingerprint | Here, called: Conditions) -> Mapping[str, Any] | None:
    """For the manifest: constants, what is guessed, by name; choices, how many were looked at; flips, where
    half of a guess or twice it would make another choice. None where nothing is guessed.
    """
    machine, trace = called.machine, str(called.path.absolute()) if called.path else ""
    if not isinstance(machine, Guessing) or not machine.guesses:
        return None
    looked, rows = 0, list[Mapping[str, Any]]()
    for kernel, choice in {str(kernel): (kernel, choice) for kernel, choice in plan.items()}.values():
        for point, schedules in contested(choice, [*log.of(kernel, place.of(kernel))]):
            try:
                flips = machine.flips(kernel, point, schedules, trace)
            except CannotBuild:
                continue  # the log has times of it, but they cannot be computed here
            looked += 1
            rows += [
                {
                    **{"kernel": str(kernel), "call": point, "schedule": dict(schedules[0])},
                    **{"constant": flip.constant, "factor": flip.factor},
                    **{"other": dict(flip.other), "faster": round(flip.faster, 4)},
                }
                for flip in flips
            ]
    return {"constants": [*machine.guesses], "choices": looked, "flips": rows}


def contested(choice: Choice, records: Sequence[Record]) -> Iterator[tuple[str, Sequence[Schedule]]]:
    """For each schedule of a choice by times, the smallest call it serves that was timed, and it with its
    rivals in that call.
    """
    known = [record for record in records if record.status == "ok"]
    points = sorted({point for record in known for point in record.samples}, key=lambda p: (tokens_of(p), p))
    for first, schedule in choice.schedules.items() if choice.tried else ():
        served = (each for each in points if serving(choice.schedules, tokens_of(each)) == first)
        point = next(served, None)
        if point and (others := rivals(schedule, point, known)):
            yield point, [schedule, *others]


def rivals(schedule: Schedule, point: str, records: Sequence[Record]) -> Sequence[Schedule]:
    """The fastest others that served such a call when they were tried."""
    times: dict[tuple[tuple[str, int | str], ...], float] = {}
    for record in records:
        if samples := record.samples.get(point):
            other = record.schedules[serving(record.schedules, tokens_of(point))]
            times[tuple(sorted(other.items()))] = median(samples)
    times.pop(tuple(sorted(schedule.items())), None)
    return [dict(each) for each in sorted(times, key=lambda each: (times[each], str(each)))[:RIVALS]]
