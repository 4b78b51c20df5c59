"""What a measurement is, and how a gain is told from noise: pairs of neighbours in time, ranked."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import NormalDist
from typing import Protocol, runtime_checkable

import numpy as np

from ..targets.base import Kernel, Schedules, bucket

LEAST_GAIN = 0.01  # below one percent a faster schedule is not worth a different plan
CHANCE = 0.005  # that a ratio is beyond its bound, on either side
NORMAL = NormalDist()

Samples = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What became of one trial: one of record.OUTCOMES, and seconds per call at each point of the profile.

    against holds the incumbent's seconds from the same run, pair by pair; None if there was no incumbent.
    repeated counts the pairs that were taken again because other work took a core from them.
    """

    status: str
    reason: str = ""
    samples: Samples = field(default_factory=dict)
    against: Samples | None = None
    repeated: int = 0


class Judge(Protocol):
    """Builds, checks and times one candidate beside the incumbent."""

    def trial(
        self,
        kernel: Kernel,
        schedules: Schedules,
        incumbent: Schedules | None,
        points: Collection[str] | None = None,
    ) -> Measurement:
        """points: where to time them; None: everywhere."""


@runtime_checkable
class Prepares(Protocol):
    """A judge that gains by knowing early what it will be asked to try."""

    @property
    def builders(self) -> int:
        """How many candidates it builds at a time."""

    def prepare(self, kernel: Kernel, candidates: Sequence[Schedules]) -> None:
        """Builds them side by side; what fails is told when it is tried."""


@runtime_checkable
class Renews(Protocol):
    """A judge that can have a trial in a process that has run nothing before."""

    def afresh(
        self,
        kernel: Kernel,
        schedules: Schedules,
        incumbent: Schedules | None,
        points: Collection[str] | None = None,
    ) -> Measurement:
        """As a trial, in a process that is there for it alone."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A candidate's time over the incumbent's, and the most and the least it may be, noise considered."""

    value: float
    upper: float
    lower: float

    @property
    def wins(self) -> bool:
        return self.upper < 1 - LEAST_GAIN

    @property
    def open(self) -> bool:
        """Whether it neither wins nor loses."""
        return not self.wins and self.lower <= 1

    @property
    def noise(self) -> float | None:
        """Half the width between the bounds, as a fraction of the ratio; None where pairs were too few."""
        width = self.upper - self.lower
        return width / 2 / self.value if math.isfinite(width) else None


def compare(candidate: Samples, incumbent: Samples, chance: float = CHANCE) -> Ratio:
    """The geometric mean, over the points both were timed at, of their ratios; bounds as in `between`.

    A pair's two runs are neighbours in time, so what slows the machine down cancels out. Points are
    independent, so what they may be off by adds up in squares.
    """
    points = [
        between(candidate[point], incumbent[point], chance)
        for point in candidate
        if candidate[point] and incumbent.get(point)
    ]
    if not points:
        raise ValueError(f"nothing to compare: points {list(candidate)} against {list(incumbent)}")
    centre = math.fsum(middle for _, middle, _ in points) / len(points)
    up = math.hypot(*(high - middle for _, middle, high in points)) / len(points)
    down = math.hypot(*(middle - low for low, middle, _ in points)) / len(points)
    return Ratio(math.exp(centre), math.exp(centre + up), math.exp(centre - down))


def between(mine: Sequence[float], its: Sequence[float], chance: float) -> tuple[float, float, float]:
    """The least, the middle and the most that the logarithm of the ratio of pairs of samples may be.

    By Hodges and Lehmann: the median of the means of all pairs of ratios, which neither outliers nor heavy
    tails move much; the bounds are those of Wilcoxon's signed ranks, exact for any noise that favours
    nobody, and each is wrong with that chance at most. So few pairs that even their extremes are wrong more
    often have bounds farther out, as they would be for normal noise.
    """
    count = min(len(mine), len(its))
    logs = np.log(np.asarray(mine[:count], float) / np.asarray(its[:count], float))
    means = np.sort(np.add.outer(logs, logs)[np.tril_indices(count)] / 2)
    low, middle, high = float(means[0]), float(np.median(means)), float(means[-1])
    if (beyond := ranks(count, chance)) is not None:
        return float(means[beyond]), middle, float(means[-1 - beyond])
    if count == 1:
        return -math.inf, middle, math.inf
    farther = NORMAL.inv_cdf(chance) / NORMAL.inv_cdf(0.5**count)
    return middle - farther * (middle - low), middle, middle + farther * (high - middle)


@lru_cache(maxsize=1024)
def ranks(count: int, chance: float) -> int | None:
    """The most positive signed ranks that as many signs by luck fall short of with that chance, or None."""
    ways = np.ones(1)
    for rank in range(1, count + 1):  # each rank is positive or not
        ways = np.pad(ways, (0, rank)) / 2 + np.pad(ways, (rank, 0)) / 2
    beyond = int(np.searchsorted(np.cumsum(ways), chance, side="right")) - 1
    return beyond if beyond >= 0 else None


def by_bucket(candidate: Samples, incumbent: Samples) -> dict[int, Ratio]:
    """The comparison for each bucket of tokens that both were timed in, by where it begins."""
    points: dict[int, dict[str, Sequence[float]]] = {}
    for point, seconds in candidate.items():
        if seconds and incumbent.get(point):
            points.setdefault(bucket_of(point), {})[point] = seconds
    return {first: compare(points[first], incumbent) for first in sorted(points)}


def won(candidate: Samples, incumbent: Samples) -> set[int]:
    """The buckets where the candidate wins: each for itself, or those together that none of them decides."""
    each = by_bucket(candidate, incumbent)
    wins = {first for first, ratio in each.items() if ratio.wins}
    undecided = {first for first, ratio in each.items() if ratio.open}
    among = {point: candidate[point] for point in candidate if bucket_of(point) in undecided}
    return wins | undecided if among and compare(among, incumbent).wins else wins


def bucket_of(point: str) -> int:
    """Where the bucket of a point's tokens begins: "m=8" -> 5, "m=64 zipf" -> 17."""
    return bucket(int(point.split()[0].removeprefix("m=")))
