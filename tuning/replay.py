"""A judge that replays a recorded space: strategies are compared without hardware. It measures nothing."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from ..targets.base import Kernel, Schedules
from .measure import Measurement
from .sweep import Sweep, serving_at

PAIRS = 15  # of samples in a replayed trial at each point, about as many as in a real one


class Replay:
    """A judge (measure.Judge) that replays a sweep, with the noise it was recorded with and its own clock.

    Pairs are of the same round, drawn anew with replacement. The clock counts what building and checking took
    when it was recorded, and the seconds of the samples themselves.
    """

    def __init__(self, sweep: Sweep, seed: int = 0) -> None:
        self.sweep, self.dice = sweep, random.Random(seed)
        self.clock = 0.0  # seconds
        self.tried = 0

    def trial(
        self,
        kernel: Kernel,
        schedules: Schedules,
        incumbent: Schedules | None,
        points: Collection[str] | None = None,
    ) -> Measurement:
        """What a worker would have said of these schedules."""
        self.tried += 1
        outcomes = [self.sweep.outcome(schedule) for schedule in schedules.values()]
        self.clock += max(outcome.took for outcome in outcomes)
        if failed := next((outcome for outcome in outcomes if outcome.status != "ok"), None):
            return Measurement(failed.status, failed.reason)
        chosen = [point for point in self.sweep.points if points is None or point in points]
        mine: dict[str, Sequence[float]] = {}
        its: dict[str, Sequence[float]] = {}
        for point in chosen:
            rounds = [self.dice.random() for _ in range(PAIRS)]
            mine[point] = self._drawn(schedules, point, rounds)
            if incumbent is not None:
                its[point] = self._drawn(incumbent, point, rounds)
        return Measurement("ok", "", mine, its if incumbent is not None else None)

    def _drawn(self, schedules: Schedules, point: str, rounds: Sequence[float]) -> list[float]:
        recorded = self.sweep.outcome(serving_at(schedules, point)).samples[point]
        drawn = [recorded[int(place * len(recorded))] for place in rounds]
        self.clock += sum(drawn)
        return drawn
