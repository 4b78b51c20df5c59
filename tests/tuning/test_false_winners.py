"""Races on a simulated machine as bad as real ones: heavy tails, drift, bursts of other work, preemptions."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from moec.tuning import race as races
from moec.tuning.measure import bucket_of, won
from moec.tuning.race import race

CALLS = {"m=1": 4e-4, "m=3": 4e-4, "m=8": 6e-4, "m=32": 2e-3, "m=128": 5e-3, "m=512": 1.5e-2}  # seconds
BURST_SECONDS, TAIL, PREEMPTED = 0.02, 0.15, 0.03


@dataclass
class Machine:
    """Seconds pass where something runs; speed wanders, and other work comes for a while."""

    dice: random.Random
    noise: float  # of most runs; the others have four times as much, upwards
    now: float = 0.0
    level: float = 0.0
    slow: float = 1.0
    until: float = 0.0
    preemptions: int = 0

    def run(self, seconds: float) -> float:
        self.level = 0.98 * self.level + self.dice.gauss(0, 0.02)
        if self.now > self.until:
            self.slow = 1.0
            if self.dice.random() < 0.01:
                self.slow = self.dice.choice([1.3, 1.6, 2.5])
                self.until = self.now + self.dice.expovariate(1 / BURST_SECONDS)
        tail = self.dice.random() < TAIL
        noise = abs(self.dice.gauss(0, 4 * self.noise)) if tail else self.dice.gauss(0, self.noise)
        taken = seconds * self.slow * math.exp(self.level + noise)
        if self.dice.random() < PREEMPTED:
            self.preemptions += 1
            taken += seconds * self.dice.random()
        self.now += 2 * taken  # a run is some calls
        return taken


@dataclass
class Simulated:
    machine: Machine
    speed: float  # its time over the incumbent's
    points: Sequence[str] = tuple(CALLS)

    def time(self, point: str) -> float:
        return self.machine.run(self.speed * CALLS[point])


def contests(monkeypatch: pytest.MonkeyPatch, count: int, speed: float, noise: float) -> Iterator[set[int]]:
    """The buckets that such a candidate wins twice, as a contest has it; one set for each of many races."""
    for seed in range(count):
        machine = Machine(random.Random(seed), noise)
        monkeypatch.setattr(races.time, "monotonic", lambda machine=machine: machine.now)
        usage = lambda who, machine=machine: SimpleNamespace(ru_nivcsw=machine.preemptions)  # noqa: E731
        monkeypatch.setattr(races.resource, "getrusage", usage)
        rivals = [Simulated(machine, speed), Simulated(machine, 1.0)]
        (mine, its), _ = race(rivals)
        seeming = won(mine, its)
        if not seeming:
            yield set()
            continue
        (mine, its), _ = race(rivals, [point for point in mine if bucket_of(point) in seeming])
        yield won(mine, its)


@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_equals_hardly_ever_win(monkeypatch: pytest.MonkeyPatch, noise: float) -> None:
    assert sum(map(bool, contests(monkeypatch, 200, 1.0, noise))) < 0.01 * 200


def test_the_slower_never_win(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(contests(monkeypatch, 100, 1.03, 0.05))


@pytest.mark.parametrize(("noise", "share"), [(0.02, 0.95), (0.05, 0.6)])
def test_three_percent_are_found(monkeypatch: pytest.MonkeyPatch, noise: float, share: float) -> None:
    assert sum(map(bool, contests(monkeypatch, 50, 0.97, noise))) > share * 50
