"""Races: how many pairs they take, what they give up, and what disturbs them. The clock is simulated."""

from __future__ import annotations

import itertools
import random
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from moec.tuning import race as races
from moec.tuning.measure import compare, won
from moec.tuning.race import race


@dataclass
class Scripted:
    """A bench whose runs take the given seconds at each point, or what a function draws; runs are counted."""

    seconds: dict[str, float | Callable[[], float]]
    runs: Counter[str] = field(default_factory=Counter)

    @property
    def points(self) -> list[str]:
        return [*self.seconds]

    def time(self, point: str) -> float:
        self.runs[point] += 1
        seconds = self.seconds[point]
        return seconds() if callable(seconds) else seconds


@dataclass
class World:
    """A machine on which time passes only where something runs, and whose preemptions are counted."""

    now: float = 0.0
    preemptions: int = 0


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(races.time, "monotonic", lambda: made.now)
    usage = types.SimpleNamespace
    monkeypatch.setattr(races.resource, "getrusage", lambda who: usage(ru_nivcsw=made.preemptions))
    return made


def test_a_loser_of_one_point_is_timed_at_the_others(world: World) -> None:
    slow, incumbent = Scripted({"m=1": 1.4, "m=64": 0.5}), Scripted({"m=1": 1.0, "m=64": 1.0})
    (mine, its), repeated = race([slow, incumbent])
    assert list(mine) == list(its) == ["m=1", "m=64"]
    assert (len(mine["m=1"]), repeated) == (races.FEWEST, 0)
    assert won(mine, its) == {17}


def test_points_may_be_named(world: World) -> None:
    benches = [Scripted({"m=1": 1.0, "m=8": 1.0, "m=64": 1.0}) for _ in range(2)]
    assert list(race(benches, ["m=8"])[0][0]) == ["m=8"]
    assert set(benches[0].runs) == {"m=8"}


def test_an_incumbent_alone_is_timed_at_every_point(world: World) -> None:
    (alone,), _ = race([Scripted({"m=1": 1.0, "m=64": 2.0})])
    assert {point: len(taken) >= races.ALONE for point, taken in alone.items()} == {"m=1": True, "m=64": True}


def lasting(world: World, seconds: Callable[[], float]) -> Scripted:
    def run() -> float:
        taken = seconds()
        world.now += taken
        return taken

    return Scripted({"m=1": run})


def noisy(world: World, dice: random.Random, seconds: float, noise: float) -> Scripted:
    return lasting(world, lambda: seconds * dice.lognormvariate(0, noise))


def test_pairs_are_taken_until_the_ratio_is_known(world: World) -> None:
    dice, taken = random.Random(0), {}
    for gain in (0.5, 0.96):
        (mine, its), _ = race([noisy(world, dice, gain * 1e-4, 0.05), noisy(world, dice, 1e-4, 0.05)])
        taken[gain] = len(mine["m=1"])
        assert compare(mine, its).wins
    assert taken[0.5] < 12 < taken[0.96]


def test_what_nobody_will_know_ends_in_time(world: World) -> None:
    dice = random.Random(0)
    race([noisy(world, dice, 0.03, 0.1), noisy(world, dice, 0.03, 0.1)])
    assert world.now < 2 * races.LEANING_SECONDS


def test_a_loser_is_not_given_up_on_less_than_the_noise(world: World) -> None:
    """Earlier runs were 30 % apart from each other, so some in a row 20 % slower mean nothing yet."""
    earlier = {"m=1": [1.0, 1.3] * 10}
    slow = itertools.chain([1e-4] + [1.2e-4] * 5 * races.RUNS, itertools.repeat(0.8e-4))

    def pairs(known: dict[str, list[float]] | None) -> int:
        script = iter(list(itertools.islice(slow, 40 * races.RUNS)))
        return len(
            race([lasting(world, lambda: next(script)), lasting(world, lambda: 1e-4)], None, known)[0][0][
                "m=1"
            ]
        )

    assert pairs(earlier) > races.FEWEST
    slow = itertools.chain([1e-4] + [1.2e-4] * 5 * races.RUNS, itertools.repeat(0.8e-4))
    assert pairs(None) == races.FEWEST


LONG = races.PAIR_SECONDS  # such a run has no others beside it in its pair


def test_of_a_few_short_runs_the_fastest_count(world: World) -> None:
    """Every third run has other work beside it: nothing of that is in the samples."""
    dice, beside = random.Random(0), random.Random(1)
    busy = lasting(world, lambda: 1e-4 * dice.lognormvariate(0, 0.01) * (1 + (beside.random() < 1 / 3)))
    (alone,), _ = race([busy])
    assert max(alone["m=1"]) < 1.1e-4
    assert busy.runs["m=1"] == 1 + races.RUNS * len(alone["m=1"])


def preempting(world: World, every: int, factor: float) -> Iterator[float]:
    for count in itertools.count():
        hit = count > 6 and count % every == 0
        world.preemptions += hit
        yield LONG * (factor if hit else 1.0)


@pytest.mark.parametrize(("factor", "again"), [(3.0, True), (1.0, False)], ids=["slower", "as fast"])
def test_a_run_that_preemption_made_slow_is_taken_again(world: World, factor: float, again: bool) -> None:
    dice, runs = random.Random(0), preempting(world, 7, factor)
    candidate = lasting(world, lambda: next(runs) * dice.lognormvariate(-0.015, 0.03))
    (mine, _), repeated = race([candidate, noisy(world, dice, LONG, 0.01)])
    assert (repeated > 0) == again
    assert max(mine["m=1"]) < 2 * LONG


def test_slow_runs_without_preemption_count(world: World) -> None:
    dice, numbers = random.Random(0), itertools.count()
    slow = lasting(
        world, lambda: (3 * LONG if next(numbers) % 7 == 6 else LONG) * dice.lognormvariate(0, 0.01)
    )
    (mine, _), repeated = race([slow, noisy(world, dice, LONG, 0.01)])
    assert (repeated, max(mine["m=1"]) > 2 * LONG) == (0, True)


def test_a_machine_that_always_preempts_still_gives_pairs(world: World) -> None:
    numbers = itertools.count()

    def run() -> float:
        world.preemptions += 1
        return LONG * (1.0 + next(numbers) % 5)

    (mine, its), repeated = race([lasting(world, run), lasting(world, lambda: LONG)])
    assert repeated <= len(mine["m=1"]) == len(its["m=1"])
