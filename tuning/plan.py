"""The plan: which schedules each kernel is built with, and why."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import geometric_mean
from typing import Any

from ..targets.base import BUCKETS, Kernel, Schedule, Schedules, Space, merged, serving, spans
from .fingerprint import Fingerprint
from .log import Log
from .record import Record, bare, spelled


@dataclass(frozen=True, slots=True)
class Choice:
    """One kernel's schedules, by the tokens of the calls they serve.

    why is "tuned" (this run searched and they won), "log" (an earlier run's winners) or "default" (nothing
    beat it, or nothing is known). gain is the default's time over theirs: 1.25 is a quarter faster; gains is
    that of each schedule, where it was measured. tried counts the schedules that were measured for this
    kernel on such a machine, over all runs.
    """

    schedules: Schedules
    why: str
    gain: float = 1.0
    tried: int = 0
    gains: Mapping[int, float] = field(default_factory=dict)

    @property
    def schedule(self) -> Schedule:
        """That of one token; all others lay out weights as it does."""
        return self.schedules[BUCKETS[0]]

    def rows(self) -> list[dict[str, Any]]:
        """What served() says of its schedules."""
        return served(self.schedules, self.gains)


class Plan(Mapping[Kernel, Choice]):
    """Kernel -> Choice, never changed, always in the same order: by what the kernel computes."""

    def __init__(self, choices: Mapping[Kernel, Choice]) -> None:
        self._choices = {kernel: choices[kernel] for kernel in sorted(choices, key=_order)}

    def __getitem__(self, kernel: Kernel) -> Choice:
        return self._choices[kernel]

    def __iter__(self) -> Iterator[Kernel]:
        return iter(self._choices)

    def __len__(self) -> int:
        return len(self._choices)

    def json(self) -> str:
        """The plan as text: equal plans are equal bytes."""
        rows = [
            {
                "kernel": {"kind": kernel.kind, "dims": dict(kernel.dims), "reals": dict(kernel.reals)},
                "dtype": kernel.dtype,
                "schedules": choice.rows(),
                "why": choice.why,
                "gain": round(choice.gain, 3),
                "tried": choice.tried,
            }
            for kernel, choice in self.items()
        ]
        return json.dumps(rows, indent=1)


def make_plan(
    kernels: Iterable[Kernel],
    spaces: Mapping[Kernel, Space],
    log: Log,
    fingerprint: Fingerprint,
    tuned: Collection[Kernel] = (),
) -> Plan:
    """The log's best schedules of each kernel that its space admits, else the default.

    tuned names the kernels (without their reals) that this run has searched; it only decides what `why` says.
    """
    return Plan({kernel: _choose(kernel, spaces[kernel], log, fingerprint, tuned) for kernel in kernels})


def _choose(
    kernel: Kernel, space: Space, log: Log, fingerprint: Fingerprint, tuned: Collection[Kernel]
) -> Choice:
    tried = {
        spelled(record.schedules)
        for record in log.of(kernel, fingerprint)
        if record.status == "ok" and not record.larger
    }
    best = admitted(space, log.ranked(kernel, fingerprint))
    if best is None or best.ratio is None or merged(best.schedules) == space.defaults:
        return Choice(space.defaults, "default", tried=len(tried))
    why, schedules = "tuned" if bare(kernel) in tuned else "log", merged(best.schedules)
    return Choice(schedules, why, 1 / best.ratio, len(tried), gains(schedules, best.ratios))


def gains(schedules: Schedules, ratios: Mapping[int, float]) -> dict[int, float]:
    """The default's time over each schedule's: the mean of the buckets it serves."""
    each: dict[int, list[float]] = {}
    for first, ratio in ratios.items():
        each.setdefault(serving(schedules, first), []).append(1 / ratio)
    return {first: geometric_mean(some) for first, some in each.items()}


def served(schedules: Schedules, gains: Mapping[int, float]) -> list[dict[str, Any]]:
    """Which counts of tokens each schedule serves, itself, and its gain over the default."""
    return [
        {"tokens": span, "schedule": dict(schedule), "gain": round(gains.get(first, 1.0), 3)}
        for span, (first, schedule) in zip(spans(schedules), schedules.items())
    ]


def admitted(space: Space, ranked: Iterable[Record]) -> Record | None:
    """The first record whose schedules the space admits: a log is data from anywhere, the space decides."""
    return next((record for record in ranked if space.objection_to(record.schedules) is None), None)


def _order(kernel: Kernel) -> tuple[str, str]:
    return str(kernel), repr(kernel.reals)
