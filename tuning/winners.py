"""What a log has come to: the best schedules of each kernel on each machine, and how two logs differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..targets.base import Kernel
from .fingerprint import Fingerprint
from .record import Record, by_speed, standing

Key = tuple[Kernel, Fingerprint, str]  # and the profile
NO_TRIALS = ("done", "refused")


@dataclass(frozen=True, slots=True)
class Winner:
    """The record of a kernel's best schedules, and how many schedules were built and run to find it."""

    record: Record
    trials: int

    @property
    def gain(self) -> float:
        """The default's time over theirs."""
        return 1 / (self.record.ratio or 1.0)


@dataclass(frozen=True, slots=True)
class Difference:
    """Two logs compared by their winners; same counts those whose schedules are equal."""

    differ: Mapping[Key, tuple[Winner, Winner]]
    only_a: Mapping[Key, Winner]
    only_b: Mapping[Key, Winner]
    same: int


def winners(records: Iterable[Record]) -> dict[Key, Winner]:
    """Each kernel that something won of, in the order they came."""
    told: dict[Key, list[Record]] = {}
    trials: Counter[Key] = Counter()
    for record in records:
        key = (record.kernel, record.fingerprint, record.profile)
        trials[key] += record.status not in NO_TRIALS and not record.settled
        if record.beats or record.settled:
            told.setdefault(key, []).append(record)
    stand = {key: standing(own, lambda each: each.beats) for key, own in told.items()}
    return {key: Winner(min(own, key=by_speed), trials[key]) for key, own in stand.items() if own}


def compared(a: Mapping[Key, Winner], b: Mapping[Key, Winner]) -> Difference:
    """Where they differ in schedules, and what only one of them has."""
    both = {key: (a[key], b[key]) for key in a if key in b}
    differ = {key: pair for key, pair in both.items() if pair[0].record.schedules != pair[1].record.schedules}
    only_a, only_b = ({key: own[key] for key in own if key not in both} for own in (a, b))
    return Difference(differ, only_a, only_b, len(both) - len(differ))
