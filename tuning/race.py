"""Two schedules timed in turns until one is known to be faster, or nobody will know in time.

At each point pairs are taken until the candidate wins beyond the noise, cannot win any more, or its time is
up. What else a machine does only ever adds to a run: so where runs are short, a few are taken in turns, and
the fastest of each schedule are a pair. A loser is given up early, but never on less than the noise that the
incumbent shows beside itself: on a machine that others use too, a few slow runs in a row say nothing.
"""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Protocol

from .measure import CHANCE, LEAST_GAIN, compare, ranks

FEWEST, MOST = 3, 250  # pairs at a point
RUNS, PAIR_SECONDS = 3, 3e-3  # of each schedule for a pair: fewer where so many would take longer
KNOWN = 5  # runs of a schedule, from which on one can be called slow for it
GROWTH = 1.3  # the verdict is looked at whenever pairs have grown by that
GIVE_UP = 0.05  # chance of a candidate worth having to be given up at one look
SIGMAS = 1.64  # by which a normal estimate is off with that chance
POINT_SECONDS = 0.12  # enough for one point
LEANING_SECONDS = 0.6  # where the candidate seems faster, and more pairs may prove it
ALONE = 5  # runs of a schedule that nobody is compared with: for the record, and for its noise
HISTORY = 31  # samples of the incumbent by which its noise is known
NORMAL = 1.4826  # from the median deviation of normal noise to its standard deviation
DEVIATIONS = 3.0  # of the noise: a preempted run that is slower by that is taken again

Samples = dict[str, list[float]]


class Timed(Protocol):
    """What can be raced."""

    @property
    def points(self) -> Sequence[str]:
        """Names of the calls it is timed at, by their tokens ("m=1", "m=64 zipf")."""

    def time(self, point: str) -> float:
        """Seconds of one call."""


def race(
    benches: Sequence[Timed],
    points: Collection[str] | None = None,
    earlier: Mapping[str, Sequence[float]] | None = None,
) -> tuple[list[Samples], int]:
    """Seconds per call of each bench at each point, pair by pair, and how many pairs were taken again.

    benches are a candidate and perhaps the incumbent; earlier, the incumbent's samples from races before.
    """
    samples: list[Samples] = [{} for _ in benches]
    repeated = 0
    for point in benches[0].points:
        if points is None or point in points:
            duel = Duel(benches, point, (earlier or {}).get(point, ()))
            duel.run()
            repeated += duel.repeated
            for taken, seconds in zip(samples, duel.taken):
                taken[point] = seconds
    return samples, repeated


class Duel:
    """The race at one point. The order flips every round: who runs second may find warmer caches."""

    def __init__(self, benches: Sequence[Timed], point: str, earlier: Sequence[float]) -> None:
        self.benches, self.point, self.earlier = benches, point, earlier
        self.taken: list[list[float]] = [[] for _ in benches]
        self.repeated = 0
        self.quickest = math.inf  # seconds of a run of each

    def run(self) -> None:
        """Takes pairs until there are enough."""
        for bench in self.benches:
            bench.time(self.point)  # warm up
        started, look = time.monotonic(), FEWEST
        while True:
            while len(self.taken[0]) < look:
                self.pair()
            if self.enough(time.monotonic() - started):
                return
            look = math.ceil(GROWTH * look)

    def pair(self) -> None:
        """One more pair; kept unless it was disturbed, of which no more are dropped than are kept."""
        runs = self.fastest()
        if self.repeated < max(FEWEST, len(self.taken[0])) and any(
            preempted and self.slow(which, seconds) for which, (seconds, preempted) in runs.items()
        ):
            self.repeated += 1
            return
        for which, (seconds, _) in runs.items():
            self.taken[which].append(seconds)

    def fastest(self) -> dict[int, tuple[float, bool]]:
        """Each schedule's fastest run of a few, and whether it was preempted."""
        rounds: list[dict[int, tuple[float, bool]]] = []
        turn = len(self.taken[0]) + self.repeated
        while not rounds or (len(rounds) < RUNS and len(rounds) * self.quickest < PAIR_SECONDS):
            order, started = range(len(self.benches)), time.monotonic()
            if (turn + len(rounds)) % 2:
                order = order[::-1]
            rounds.append({which: run(self.benches[which], self.point) for which in order})
            self.quickest = min(self.quickest, time.monotonic() - started)
        return {which: min(each[which] for each in rounds) for which in rounds[0]}

    def slow(self, which: int, seconds: float) -> bool:
        """Whether a run took longer than its schedule's own runs do, noise considered."""
        known = self.taken[which]
        if len(known) < KNOWN:
            return False
        return seconds > statistics.median(known) * math.exp(DEVIATIONS * spread(known) / math.sqrt(2))

    def enough(self, seconds: float) -> bool:
        """Whether the pairs say all that they will, after so many seconds."""
        pairs = len(self.taken[0])
        if len(self.taken) == 1:
            return pairs >= ALONE
        mine, its = ({self.point: taken} for taken in self.taken)
        if pairs >= MOST or (ranks(pairs, CHANCE) is not None and compare(mine, its).wins):
            return True
        likely = compare(mine, its, GIVE_UP)
        noise = spread([*self.earlier, *self.taken[-1]][-HISTORY:])
        doubt = math.exp(-SIGMAS * noise / math.sqrt(pairs))
        if min(likely.lower, likely.value * doubt) > 1 - LEAST_GAIN:
            return True
        return seconds > (LEANING_SECONDS if likely.upper < 1 else POINT_SECONDS)


def spread(seconds: Sequence[float]) -> float:
    """The standard deviation of the logarithm of neighbours' ratio, but for outliers; drift is no noise."""
    steps = [abs(math.log(after / before)) for before, after in pairwise(seconds)]
    return NORMAL * statistics.median(steps) if steps else 0.0


def run(bench: Timed, point: str) -> tuple[float, bool]:
    """Seconds of one call, and whether a thread of this process had to leave its core meanwhile."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    seconds = bench.time(point)
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw > before
