"""Schedules by tokens on simulated machines: who takes over which calls, and what luck and layouts forbid."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from moec.targets.base import BUCKETS, Kernel, Schedule, Schedules, Space, serving
from moec.tuning.contest import Contest, spliced
from moec.tuning.fingerprint import Fingerprint
from moec.tuning.log import Log
from moec.tuning.measure import Measurement, bucket_of
from moec.tuning.plan import Choice, make_plan
from moec.tuning.search import Budget, tune
from moec.tuning.winners import winners

KERNEL = Kernel("linear", (("k", 1024), ("n", 512)))
HERE = Fingerprint("x86-64-v3", "some cpu", 2, "00ff")
POINTS = {1: "m=1", 2: "m=3", 5: "m=8", 17: "m=32", 65: "m=128", 257: "m=512"}
SPACE = Space({"tile": (1, 2, 3, 4), "lanes": (8, 16)}, {"tile": 1, "lanes": 8}, layout=("lanes",))


def one(tile: int, lanes: int = 8) -> Schedules:
    return {1: {"tile": tile, "lanes": lanes}}


@dataclass
class Machine:
    """A judge that knows how long a schedule takes at a point."""

    cost: Callable[[Schedule, str], float]
    noise: float = 0.01
    races: list[tuple[Schedules, Collection[str] | None]] = field(default_factory=list)
    dice: random.Random = field(default_factory=lambda: random.Random(0))

    def trial(
        self,
        kernel: Kernel,
        schedules: Schedules,
        incumbent: Schedules | None,
        points: Collection[str] | None = None,
    ) -> Measurement:
        self.races.append((schedules, points))
        timed = [point for point in POINTS.values() if points is None or point in points]
        against = None if incumbent is None else self._samples(incumbent, timed)
        return Measurement("ok", "", self._samples(schedules, timed), against)

    def _samples(self, schedules: Schedules, points: Sequence[str]) -> dict[str, list[float]]:
        found = {}
        for point in points:
            seconds = self.cost(schedules[serving(schedules, bucket_of(point))], point)
            found[point] = [seconds * self.dice.lognormvariate(0, self.noise) for _ in range(9)]
        return found


def by(costs: Mapping[tuple[int, int], Mapping[int, float]]) -> Callable[[Schedule, str], float]:
    """Costs by tile and lanes, then by bucket; 1 where nothing is said."""
    return lambda schedule, point: costs.get((int(schedule["tile"]), int(schedule["lanes"])), {}).get(
        bucket_of(point), 1.0
    )


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log.jsonl")


def contest(log: Log, machine: Machine, space: Space = SPACE) -> Contest:
    return Contest(KERNEL, space, machine, log, HERE, {})


def entered(log: Log, machine: Machine, *candidates: Schedules, space: Space = SPACE) -> Contest:
    made = contest(log, machine, space)
    for candidate in candidates:
        made.enter(candidate)
    return made


def chosen(log: Log, space: Space = SPACE) -> Choice:
    return make_plan([KERNEL], {KERNEL: space}, log, HERE)[KERNEL]


def test_a_schedule_takes_over_what_it_wins(log: Log) -> None:
    machine = Machine(by({(2, 8): {1: 2.0, 17: 0.8, 65: 0.5, 257: 0.5}, (3, 8): {1: 0.5, 257: 3.0}}))
    entered(log, machine, one(1), one(2), one(3))
    choice = chosen(log)
    assert choice.schedules == {1: one(3)[1], 2: one(1)[1], 17: one(2)[1]}
    assert choice.why == "log"
    assert choice.gains == pytest.approx({1: 2, 2: 1, 17: (1.25 * 2 * 2) ** (1 / 3)}, rel=0.02)
    assert choice.gain == pytest.approx((2 * 1.25 * 2 * 2) ** (1 / 6), rel=0.02)
    assert [row["tokens"] for row in choice.rows()] == ["1", "2-16", "17+"]


def test_only_what_seemed_won_is_raced_again(log: Log) -> None:
    machine = Machine(by({(2, 8): {1: 2.0, 65: 0.5}}))
    entered(log, machine, one(1), one(2))
    assert [points for _, points in machine.races] == [None, None, ["m=128"]]
    both, own = log.records[1:]
    assert (own.schedules, own.beats, own.leads) == (one(2), False, False)
    assert both.schedules == {1: one(1)[1], 65: one(2)[1], 257: one(1)[1]}
    assert (both.beats, both.leads, [*both.samples]) == (True, True, ["m=128"])


def test_a_winner_everywhere_stands_alone(log: Log) -> None:
    machine = Machine(lambda schedule, point: 1 / int(schedule["tile"]))
    entered(log, machine, one(1), one(2))
    assert [record.schedules for record in log.records] == [one(1), one(2)]
    assert chosen(log).schedules == one(2)


@pytest.mark.parametrize("seed", range(3))
def test_noise_splits_nothing(log: Log, seed: int) -> None:
    machine = Machine(by({}), noise=0.05, dice=random.Random(seed))
    space = replace(SPACE, choices={"tile": tuple(range(1, 41)), "lanes": (8, 16)})
    tune({KERNEL: space}, machine, Budget.parse("60t"), log, HERE)
    assert (chosen(log, space).schedules, chosen(log, space).why) == (space.defaults, "default")


def test_luck_that_does_not_repeat_takes_nothing(log: Log) -> None:
    lucky = iter([0.5, 1.0])

    def cost(schedule: Schedule, point: str) -> float:
        return next(lucky) if schedule["tile"] == 2 and point == "m=128" else 1.0

    entered(log, Machine(cost), one(1), one(2))
    assert chosen(log).why == "default"
    assert log.records[1].ratios[65] == pytest.approx(1, rel=0.02), "the second race says how much"


def test_layouts_do_not_mix(log: Log) -> None:
    machine = Machine(by({(1, 16): {1: 0.5, **dict.fromkeys(BUCKETS[1:], 1.5)}}))
    entered(log, machine, one(1), one(1, lanes=16))
    assert chosen(log).schedules == one(1)


def test_the_layout_whose_winners_are_best_together_wins(log: Log) -> None:
    few, many = BUCKETS[:3], BUCKETS[3:]
    costs = {
        (1, 16): {**dict.fromkeys(few, 0.7), **dict.fromkeys(many, 1.6)},
        (2, 16): {**dict.fromkeys(few, 1.6), **dict.fromkeys(many, 0.7)},
    }
    machine = Machine(by(costs))
    entered(log, machine, one(1), one(1, lanes=16), one(2, lanes=16))
    assert chosen(log).schedules == {1: one(1, lanes=16)[1], 17: one(2, lanes=16)[1]}
    assert chosen(log).gain == pytest.approx(1 / 0.7, rel=0.02)
    last, points = machine.races[-1]
    assert (last, points) == (chosen(log).schedules, None), (
        "what other layouts are left for raced them itself"
    )


def test_a_layout_that_only_seems_ahead_is_found_out(log: Log) -> None:
    lucky = iter([*[0.9] * 6, *[1.0] * 6])

    def cost(schedule: Schedule, point: str) -> float:
        return next(lucky) if schedule["lanes"] == 16 else 1.0

    found = entered(log, Machine(cost), one(1), one(1, lanes=16))
    assert chosen(log).why == "default"
    assert found.leaders[16,].ratio == pytest.approx(1, rel=0.02)


def test_a_default_may_go_by_tokens(log: Log) -> None:
    space = replace(SPACE, larger={17: {"tile": 2}})
    machine = Machine(lambda schedule, point: 1 / int(schedule["tile"]))
    assert space.defaults == {1: one(1)[1], 17: one(2)[1]}
    assert chosen(log, space).schedules == space.defaults
    tune({KERNEL: space}, machine, Budget.parse("1t"), log, HERE)
    assert [(record.schedules, record.ratio) for record in log.records[:1]] == [(space.defaults, 1.0)]
    assert (chosen(log, space).why, chosen(log, space).schedules) == ("default", space.defaults)
    tune({KERNEL: space}, machine, Budget.parse("8t"), log, HERE, retune=True)
    assert [schedule["tile"] for schedule in chosen(log, space).schedules.values()] == [4]


def test_a_contest_goes_on_where_the_log_ends(log: Log) -> None:
    machine = Machine(by({(2, 8): {257: 0.5}, (3, 16): {1: 0.9, **dict.fromkeys(BUCKETS[1:], 1.2)}}))
    before = entered(log, machine, one(1), one(2), one(3, lanes=16))
    after = contest(Log(log.path), machine)
    assert before.best is not None
    assert after.best is not None
    assert after.best.line() == before.best.line()
    assert {layout: record.line() for layout, record in after.leaders.items()} == {
        layout: record.line() for layout, record in before.leaders.items()
    }
    assert set(after.leaders) == {(8,), (16,)}


def test_the_same_log_gives_the_same_plan(log: Log) -> None:
    machine = Machine(by({(2, 8): {257: 0.5}, (3, 8): {1: 0.8}, (4, 16): {17: 0.9}}))
    tune({KERNEL: SPACE}, machine, Budget.parse("8t"), log, HERE)
    races, content = len(machine.races), log.path.read_bytes()
    tune({KERNEL: SPACE}, machine, Budget.parse("8t"), Log(log.path), HERE)
    assert (len(machine.races), log.path.read_bytes()) == (races, content)
    plans = [make_plan([KERNEL], {KERNEL: SPACE}, each, HERE).json() for each in (log, Log(log.path))]
    assert plans[0] == plans[1]
    assert '"tokens": "257+"' in plans[0]


def test_decode_and_prefill_have_their_own_winners(log: Log) -> None:
    machine = Machine(by({(2, 8): {1: 0.8, 257: 1.25}, (3, 8): {1: 1.25, 257: 0.8}}))
    entered(log, machine, one(1), one(2), one(3))
    assert chosen(log).schedules == {1: one(2)[1], 2: one(1)[1], 257: one(3)[1]}


def test_a_winner_says_how_sure_it_is(log: Log) -> None:
    noisy = Machine(lambda schedule, point: 1 / int(schedule["tile"]), noise=0.05)
    quiet = Machine(lambda schedule, point: 1 / int(schedule["tile"]), noise=0.01)
    found = {}
    for name, machine in (("noisy", noisy), ("quiet", quiet)):
        own = Log(log.path.with_name(name))
        entered(own, machine, one(1), one(2), one(4))
        alone, *found[name] = (record.noise for record in own.records)
        assert alone is None
    first, second = found["noisy"]
    assert 0.01 < first < second, "the second's ratio to the default is a product of two"
    assert max(found["quiet"]) < first


def test_what_was_measured_says_under_which_conditions(log: Log) -> None:
    log.profile_of = lambda kernel: "standard warm"
    entered(log, Machine(by({(2, 8): {1: 0.5}})), one(1), one(2))
    assert {record.profile for record in log.records} == {"standard warm"}
    assert chosen(log).why == "log"
    log.profile_of = lambda kernel: "standard"
    assert chosen(log).why == "default"


def test_pairs_that_were_repeated_are_in_the_log(log: Log) -> None:
    machine = Machine(by({}))
    trial = machine.trial
    machine.trial = lambda *arguments: replace(trial(*arguments), repeated=3)
    entered(log, machine, one(1))
    assert log.records[0].reason == "3 pairs were preempted and taken again"


def test_splicing_merges_what_repeats() -> None:
    a, b = one(1)[1], one(2)[1]
    assert spliced({1: a}, {1: b}, {5, 17}, POINTS) == {1: a, 5: b, 65: a}
    assert spliced({1: a, 5: b}, {1: b}, {1, 2}, POINTS) == {1: b}
    assert spliced({1: a}, {1: b}, set(), POINTS) == {1: a}
    assert spliced({1: a}, {1: b}, {65}, [5, 65]) == {1: a, 65: b}, (
        "calls that nobody timed go with fewer tokens"
    )


@dataclass
class Aged(Machine):
    """A machine whose measuring process flatters a tile until it is started anew."""

    fresh: Callable[[Schedule, str], float] = lambda schedule, point: 1.0
    renewed: int = 0

    raced: list[set[str]] = field(default_factory=list)

    def afresh(self, *arguments: Any) -> Measurement:
        self.renewed += 1
        self.raced.append({*arguments[3]})
        self.cost = self.fresh
        return self.trial(*arguments)


def test_the_winner_is_settled_in_a_process_of_its_own(log: Log) -> None:
    gain = by({(2, 8): dict.fromkeys(BUCKETS, 0.5)})
    machine = Aged(gain, fresh=by({(2, 8): dict.fromkeys(BUCKETS, 0.9)}))
    entered(log, machine, one(1), one(2)).end()
    assert machine.renewed == 3
    assert chosen(log).schedules == one(2)
    assert chosen(log).gain == pytest.approx(1 / 0.9, rel=0.02)
    assert [record.settled for record in log.records] == [False, False, True, False]


def test_a_winner_that_loses_to_the_default_then_is_withdrawn(log: Log) -> None:
    machine = Aged(by({(2, 8): {1: 0.5}}), fresh=by({(2, 8): {1: 1.1}}))
    ended = entered(log, machine, one(1), one(2)).end()
    assert ended.schedules == one(1)
    assert (chosen(log).schedules, chosen(log).why) == (one(1), "default")
    assert winners(log)[KERNEL, HERE, "standard"].record.schedules == one(1)
    assert not contest(log, machine).best.settled  # type: ignore[union-attr]


def test_it_keeps_only_the_buckets_that_it_wins_then(log: Log) -> None:
    machine = Aged(by({(2, 8): {1: 0.5, 257: 0.5}}), fresh=by({(2, 8): {1: 1.1, 257: 0.5}}))
    entered(log, machine, one(1), one(2)).end()
    assert chosen(log).schedules == {1: one(1)[1], 257: one(2)[1]}
    assert chosen(log).gains == pytest.approx({1: 1, 257: 2}, rel=0.02)
    assert machine.raced[1:] == [{point for point in machine.raced[0] if bucket_of(point) == 257}] * 2


def test_calls_that_the_default_serves_are_not_settled(log: Log) -> None:
    machine = Aged(by({(2, 8): {257: 0.5}}), fresh=by({(2, 8): {257: 0.5}}))
    entered(log, machine, one(1), one(2)).end()
    assert chosen(log).schedules == {1: one(1)[1], 257: one(2)[1]}
    assert {bucket_of(point) for race in machine.raced for point in race} == {257}


def test_it_has_to_win_in_every_process(log: Log) -> None:
    class Lucky(Aged):
        def afresh(self, *arguments: Any) -> Measurement:
            self.fresh = by({(2, 8): dict.fromkeys(BUCKETS, 1.05 if self.renewed == 2 else 0.8)})
            return super().afresh(*arguments)

    entered(log, Lucky(by({(2, 8): {1: 0.5}})), one(1), one(2)).end()
    assert chosen(log).why == "default"


def test_another_layout_is_kept_or_withdrawn_as_a_whole(log: Log) -> None:
    machine = Aged(by({(1, 16): dict.fromkeys(BUCKETS, 0.5)}), fresh=by({(1, 16): {1: 1.1, 257: 0.5}}))
    entered(log, machine, one(1), one(1, 16)).end()
    assert chosen(log).schedules == one(1, 16)
    assert chosen(log).gain > 1


def test_a_winner_that_dies_then_is_withdrawn(log: Log) -> None:
    class Dying(Aged):
        def trial(self, *arguments: Any) -> Measurement:
            return Measurement("crashed", "killed") if self.renewed else super().trial(*arguments)

    machine = Dying(by({(2, 8): {1: 0.5}}))
    entered(log, machine, one(1), one(2)).end()
    assert chosen(log).why == "default"
