"""Schedules for a kernel that the log has no answer for: from the nearest shape, another machine, or learned.

They were good somewhere else, so a search begins with them. Unmeasured, they take the default's place only
where the evidence is sound:

* neighbour: the nearest shape within FAR, on such a machine, has them for its best, ahead of its default; and
  over all near shapes where these very schedules were tried, they are ahead of it on the mean.
* transferred: the same on another machine with the same instruction set; and in all places near (a place is a
  shape on a machine) where these very schedules were tried, which are AGREE or more, they beat the default.
* learned: a tree foresees a gain, and what it chose for shapes that it had not seen was sound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from ..targets.base import Kernel, Schedules, Space, merged, serving
from .fingerprint import Fingerprint
from .heuristic import Heuristic
from .log import Log
from .measure import LEAST_GAIN
from .record import Record, bare, spelled

FAR = 2.0  # Euclidean, in log2 of the dims: one of them four times as large, or two of them 2.7 times
AGREE = 2
STARTS = 4  # of a search: each costs it a trial


@dataclass(frozen=True, slots=True)
class Hint:
    """Schedules that were good elsewhere, and whether they may be used unmeasured.

    why is "neighbour", "transferred" or "learned", reason a sentence about it; ratio is their time over the
    default's there, or the one foreseen.
    """

    schedules: Schedules
    why: str
    reason: str
    ratio: float
    sound: bool


@dataclass(frozen=True, slots=True)
class Place:
    """A shape on a machine that the log knows, and how far away the shape is."""

    kernel: Kernel
    fingerprint: Fingerprint
    distance: float

    @property
    def dims(self) -> str:
        return " ".join(f"{name}={size}" for name, size in self.kernel.dims)

    @property
    def order(self) -> tuple[float, str, str]:
        return self.distance, self.dims, repr(self.fingerprint)


def starts(
    kernel: Kernel,
    space: Space,
    log: Log,
    fingerprint: Fingerprint,
    learned: Iterable[Heuristic] = (),
) -> list[Schedules]:
    """Where a search begins, the likeliest first: schedules that its space admits, without its defaults."""
    found = {spelled(space.defaults): space.defaults}
    for hint in hints(kernel, space, log, fingerprint, learned):
        found.setdefault(spelled(hint.schedules), hint.schedules)
    return list(found.values())[1 : 1 + STARTS]


def hints(
    kernel: Kernel,
    space: Space,
    log: Log,
    fingerprint: Fingerprint,
    learned: Iterable[Heuristic] = (),
) -> Iterator[Hint]:
    """What is known elsewhere that this space admits: of neighbours, of other machines, then learned; the
    nearest first.
    """
    places = near(kernel, log, fingerprint)
    same = [place for place in places if place.fingerprint == fingerprint]
    others = [place for place in places if place.fingerprint != fingerprint]
    for place in (*same, *others):
        best = admitted(space, log.ranked(place.kernel, place.fingerprint))
        if best is not None and best.ratio is not None:
            here = place.fingerprint == fingerprint
            yield _neighbour(place, best, same, log) if here else _transferred(place, best, others, log)
    for heuristic in learned:
        if heuristic.fits(kernel, fingerprint, log.profile_of(kernel)):
            yield _learned(heuristic, kernel, space, fingerprint)


def near(kernel: Kernel, log: Log, fingerprint: Fingerprint) -> list[Place]:
    """The places within FAR, of the same instruction set and generator, the nearest first; not this one."""
    family = (fingerprint.isa, fingerprint.generator)
    places = [
        Place(other, place, far)
        for other, place in log.keys()
        if (place.isa, place.generator) == family and (far := distance(kernel, other)) <= FAR
        if (other, place) != (bare(kernel), fingerprint) and log.best(other, place) is not None
    ]
    return sorted(places, key=lambda place: place.order)


def distance(one: Kernel, other: Kernel) -> float:
    """Euclidean, in log2 of the dims; infinite between kernels that no schedule could be shared by."""
    mine, its = dict(one.dims), dict(other.dims)
    if (one.kind, one.dtype, set(mine)) != (other.kind, other.dtype, set(its)):
        return math.inf
    if any(bool(mine[name]) != bool(its[name]) for name in mine):
        return math.inf  # 0 is no size: a dim that may be 0 says whether there is something at all
    return math.hypot(*(math.log2(size / its[name]) for name, size in mine.items() if size))


def ratio_of(schedules: Schedules, records: Iterable[Record]) -> float | None:
    """The schedules' time over the default's in one place, put together from what was tried there; None where
    one of them was not, for calls that others were.
    """
    found: dict[int, list[float]] = {}
    for record in records:
        for first, ratio in record.ratios.items():
            each, tried = found.setdefault(first, []), record.schedules
            if tried[serving(tried, first)] == schedules[serving(schedules, first)]:
                each.append(ratio)
    if not found or not all(found.values()):
        return None
    return geometric_mean(geometric_mean(each) for each in found.values())


def admitted(space: Space, ranked: Iterable[Record]) -> Record | None:
    """The first record whose schedules the space admits: a log is data from anywhere, the space decides."""
    return next((record for record in ranked if space.objection_to(record.schedules) is None), None)


def _neighbour(place: Place, best: Record, same: Sequence[Place], log: Log) -> Hint:
    schedules, ratio = merged(best.schedules), best.ratio or 1.0
    mean = geometric_mean(_ratios(schedules, same, log) or [ratio])
    among = f"the nearest of {len(same)} shapes" if place == same[0] else f"one of {len(same)} shapes near"
    reason = f"from {place.dims}, {among} (distance {place.distance:.1f}), where it is {_speed(ratio)}"
    if ratio < 1 - LEAST_GAIN <= mean:
        reason += f", but on the mean of all near {_speed(mean)}"
    return Hint(schedules, "neighbour", reason, ratio, max(ratio, mean) < 1 - LEAST_GAIN)


def _transferred(place: Place, best: Record, others: Sequence[Place], log: Log) -> Hint:
    schedules, machine = merged(best.schedules), place.fingerprint
    ratios = _ratios(schedules, others, log)
    agreed = sum(ratio < 1 - LEAST_GAIN for ratio in ratios)
    reason = (
        f"from {place.dims} (distance {place.distance:.1f}) on {machine.cpu} with {machine.threads} threads, "
        f"where it is {_speed(best.ratio or 1.0)}; it beat the default in {agreed} of {len(ratios)} places"
    )
    sound = len(ratios) >= AGREE and agreed == len(ratios)
    return Hint(schedules, "transferred", reason, best.ratio or 1.0, sound)


def _ratios(schedules: Schedules, places: Iterable[Place], log: Log) -> list[float]:
    """The schedules' times over the default's in those places where they were tried."""
    tried = [ratio_of(schedules, log.of(place.kernel, place.fingerprint)) for place in places]
    return [ratio for ratio in tried if ratio is not None]


def _learned(heuristic: Heuristic, kernel: Kernel, space: Space, fingerprint: Fingerprint) -> Hint:
    schedules, ratio = heuristic.choose(kernel, space, fingerprint.threads)
    sound = heuristic.sound and ratio < 1 - LEAST_GAIN
    return Hint(schedules, "learned", f"{heuristic}, which foresees {_speed(ratio)}", ratio, sound)


def _speed(ratio: float) -> str:
    return f"{1 / ratio:.2f}x the default's speed"
