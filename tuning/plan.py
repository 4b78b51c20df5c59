"""The plan: which schedules each kernel is built with, and why."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import geometric_mean
from typing import Any

from ..targets.base import BUCKETS, Kernel, Schedule, Schedules, Space, merged, serving, spans
from .fingerprint import Fingerprint, Here
from .heuristic import Heuristic
from .log import Log
from .record import bare, spelled
from .transfer import Hint, admitted, hints

UNMEASURED = ("neighbour", "transferred", "learned")


@dataclass(frozen=True, slots=True)
class Choice:
    """One kernel's schedules, by the tokens of the calls they serve.

    why is "tuned" (this run searched and they won), "log" (an earlier run's winners), "neighbour",
    "transferred" or "learned" (not measured here, see transfer.py) or "default" (nothing beat it, or nothing
    is known); reason is a sentence about it. gain is the default's time over theirs as measured here: 1.25 is
    a quarter faster; gains is that of each schedule. tried counts the schedules that were measured for this
    kernel on such a machine, over all runs.
    """

    schedules: Schedules
    why: str
    gain: float = 1.0
    tried: int = 0
    gains: Mapping[int, float] = field(default_factory=dict)
    reason: str = ""

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

    @property
    def unmeasured(self) -> list[Kernel]:
        """The kernels whose schedules are from elsewhere."""
        return [kernel for kernel, choice in self.items() if choice.why in UNMEASURED]

    def json(self) -> str:
        """The plan as text: equal plans are equal bytes, whether this run searched or an earlier one did."""
        rows = [
            {
                "kernel": {"kind": kernel.kind, "dims": dict(kernel.dims), "reals": dict(kernel.reals)},
                "dtype": kernel.dtype,
                "schedules": choice.rows(),
                "why": "log" if choice.why == "tuned" else choice.why,
                "reason": choice.reason,
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
    place: Fingerprint | Here,
    tuned: Collection[Kernel] = (),
    learned: Sequence[Heuristic] = (),
) -> Plan:
    """The log's best schedules of each kernel that its space admits, else what transfer.py says, else the
    default.

    tuned names the kernels (without their reals) that this run has searched; it only decides what `why` says.
    """

    def choose(kernel: Kernel) -> Choice:
        return _choose(kernel, spaces[kernel], log, place.of(kernel), tuned, learned)

    return Plan({kernel: choose(kernel) for kernel in kernels})


def _choose(
    kernel: Kernel,
    space: Space,
    log: Log,
    fingerprint: Fingerprint,
    tuned: Collection[Kernel],
    learned: Sequence[Heuristic],
) -> Choice:
    if not any(len(values) > 1 for values in space.choices.values()):
        return Choice(space.defaults, "default", reason="there is nothing to choose")
    known = [record for record in log.of(kernel, fingerprint) if record.status == "ok" and not record.larger]
    tried = len({spelled(record.schedules) for record in known})
    best = admitted(space, log.ranked(kernel, fingerprint))
    if best is None or best.ratio is None:
        return replace(_unmeasured(space, hints(kernel, space, log, fingerprint, learned)), tried=tried)
    where = f"on {best.fingerprint.cpu}, shipped with moec" if log.came_with_moec(best) else "here"
    if merged(best.schedules) == space.defaults:
        return Choice(space.defaults, "default", tried=tried, reason=f"none of {tried} tried {where} beat it")
    why, schedules = "tuned" if bare(kernel) in tuned else "log", merged(best.schedules)
    reason = f"the best of {tried} tried {where}"
    return Choice(schedules, why, 1 / best.ratio, tried, gains(schedules, best.ratios), reason)


def _unmeasured(space: Space, hints: Iterable[Hint]) -> Choice:
    """The nearest neighbour's schedules, else the nearest other machine's, else those learned, if sound.

    No farther place is asked where the nearest one is in doubt: of many, one wins by luck.
    """
    nearest: dict[str, Hint] = {}
    for hint in hints:
        nearest.setdefault(hint.why, hint)
    for hint in nearest.values():
        if hint.schedules == space.defaults:
            return Choice(space.defaults, "default", reason=f"the best elsewhere too: {hint.reason}")
        if hint.sound:
            return Choice(hint.schedules, hint.why, reason=hint.reason)
    for hint in nearest.values():
        return Choice(space.defaults, "default", reason=f"not sure of the {hint.why} one {hint.reason}")
    return Choice(space.defaults, "default", reason="the log knows nothing like it")


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


def _order(kernel: Kernel) -> tuple[str, str]:
    return str(kernel), repr(kernel.reals)
