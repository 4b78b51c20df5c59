"""The search, on simulated machines: what it tries, keeps, refuses, and never tries again."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from moec.targets.base import Kernel, Schedule, Schedules, Space
from moec.tuning.fingerprint import Fingerprint
from moec.tuning.log import Log
from moec.tuning.measure import Measurement
from moec.tuning.plan import make_plan
from moec.tuning.record import Record, spelled
from moec.tuning.search import Budget, Progress, tune

KERNEL = Kernel("linear", (("k", 1024), ("n", 512)))
OTHER = Kernel("linear", (("k", 64), ("n", 64)))
HERE = Fingerprint("x86-64-v3", "some cpu", 2, "00ff")
CHOICES: Mapping[str, tuple[int, ...]] = {
    "rows": (1, 2, 4, 6, 8),
    "lanes": (8, 16, 32, 64),
    "unroll": (1, 2, 4, 8),
}
SPACE = Space(
    CHOICES,
    default={"rows": 1, "lanes": 8, "unroll": 1},
    known=({"rows": 6, "lanes": 16, "unroll": 2},),
    rules=(lambda s: "36 accumulators, 16 registers" if int(s["rows"]) * int(s["lanes"]) > 128 else None,),
)


def cost(schedule: Schedule) -> float:
    """Fastest at 4 x 16 x 4, a smooth bowl around it, in seconds."""
    best = {"rows": 4, "lanes": 16, "unroll": 4}
    return 1e-3 * (1 + sum(abs(math.log2(int(schedule[knob]) / best[knob])) for knob in best))


@dataclass
class Simulated:
    """A judge that knows each schedule's time; fails where it is told to."""

    cost: Callable[[Schedule], float] = cost
    noise: float = 0.0
    faults: Mapping[str, Measurement] = field(default_factory=dict)
    tried: list[tuple[Kernel, Schedule]] = field(default_factory=list)
    interrupt_at: int | None = None
    dice: random.Random = field(default_factory=lambda: random.Random(0))

    def trial(
        self,
        kernel: Kernel,
        schedules: Schedules,
        incumbent: Schedules | None,
        points: Collection[str] | None = None,
    ) -> Measurement:
        if len(self.tried) == self.interrupt_at:
            raise KeyboardInterrupt
        (schedule,) = schedules.values()
        self.tried.append((kernel, dict(schedule)))
        if (fault := self.faults.get(spelled(schedules))) is not None:
            return fault
        against = None if incumbent is None else {"m=1": self._seconds(incumbent[1])}
        return Measurement("ok", "", {"m=1": self._seconds(schedule)}, against)

    def _seconds(self, schedule: Schedule) -> list[float]:
        return [self.cost(schedule) * self.dice.lognormvariate(0, self.noise) for _ in range(9)]


def steps(seconds: float) -> Callable[[], float]:
    """A clock: every look at it takes so long."""
    looks = itertools.count()
    return lambda: seconds * next(looks)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log.jsonl")


def best(log: Log, kernel: Kernel = KERNEL) -> Record:
    record = log.best(kernel, HERE)
    assert record is not None
    return record


def test_it_finds_the_best_schedule(log: Log) -> None:
    tune({KERNEL: SPACE}, Simulated(noise=0.02), Budget.parse("40t"), log, HERE)
    assert cost(best(log).schedule) <= 1.1e-3
    assert best(log).ratio == pytest.approx(cost(best(log).schedule) / cost(SPACE.default), rel=0.1)


@dataclass
class Ticking(Simulated):
    """A judge of whose time every race takes a second."""

    now: float = 0.0

    def trial(self, *arguments: Any) -> Measurement:
        self.now += 1
        return super().trial(*arguments)

    def afresh(self, *arguments: Any) -> Measurement:
        return self.trial(*arguments)


@pytest.mark.parametrize("seconds", [9, 14, 22])
def test_the_seconds_are_enough_to_settle_the_winner_too(log: Log, seconds: int) -> None:
    judge = Ticking()
    tune({KERNEL: SPACE}, judge, Budget(seconds), log, HERE, clock=lambda: judge.now)
    assert best(log).settled
    assert seconds - 4 <= judge.now <= seconds + 1


def test_the_default_is_first_then_the_known(log: Log) -> None:
    judge = Simulated()
    tune({KERNEL: SPACE}, judge, Budget.parse("2t"), log, HERE)
    assert judge.tried[0][1] == SPACE.default
    assert judge.tried[1][1] == SPACE.known[0]


def test_nothing_is_measured_twice_or_against_the_rules(log: Log) -> None:
    judge = Simulated(cost=lambda schedule: 1.0)
    tune({KERNEL: SPACE}, judge, Budget.parse("1000t"), log, HERE)
    tried = [spelled({1: schedule}) for _, schedule in judge.tried]
    assert len(tried) == len(set(tried))
    assert all(SPACE.objection(schedule) is None for _, schedule in judge.tried)
    refused = [record for record in log.records if record.status == "refused"]
    assert {record.reason for record in refused} == {"36 accumulators, 16 registers"}


def test_a_small_space_is_searched_to_its_end(log: Log) -> None:
    space = Space({"tile": (1, 2, 3)}, {"tile": 2})
    judge = Simulated(cost=lambda schedule: 1.0 + int(schedule["tile"]))
    tune({KERNEL: space}, judge, Budget.parse("1h"), log, HERE)
    assert best(log).schedule == {"tile": 1}
    assert {int(schedule["tile"]) for _, schedule in judge.tried} == {1, 2, 3}


def test_noise_does_not_unseat_the_default(log: Log) -> None:
    tune({KERNEL: SPACE}, Simulated(cost=lambda schedule: 1.0, noise=0.05), Budget.parse("60t"), log, HERE)
    choice = make_plan([KERNEL], {KERNEL: SPACE}, log, HERE)[KERNEL]
    assert (choice.schedule, choice.why) == (SPACE.default, "default")


@pytest.mark.parametrize("status", ["wrong", "crashed", "timeout"])
def test_what_fails_is_recorded_and_never_wins(log: Log, status: str) -> None:
    fault = Measurement(status, "as simulated")
    judge = Simulated(faults={spelled({1: {"rows": 4, "lanes": 16, "unroll": 4}}): fault})
    space = replace(SPACE, known=({"rows": 4, "lanes": 16, "unroll": 4},))
    tune({KERNEL: space}, judge, Budget.parse("30t"), log, HERE)
    assert [record.reason for record in log.records if record.status == status] == ["as simulated"]
    assert best(log).status == "ok"


def test_a_default_that_fails_leaves_the_field_to_others(log: Log) -> None:
    judge = Simulated(faults={spelled(SPACE.defaults): Measurement("crashed", "killed by SIGSEGV")})
    tune({KERNEL: SPACE}, judge, Budget.parse("3t"), log, HERE)
    assert best(log).schedule != SPACE.default


def test_a_second_search_runs_no_trial(log: Log) -> None:
    first = tune({KERNEL: SPACE}, Simulated(), Budget.parse("10t"), log, HERE)
    judge = Simulated()
    spaces = {replace(KERNEL, reals=(("eps", 1e-5),)): SPACE}
    second = tune(spaces, judge, Budget.parse("1h"), Log(log.path), HERE)
    assert (len(first.kernels), first.trials, second.kernels, judge.tried) == (1, 10, [], [])


def test_retune_goes_on_where_the_log_ends(log: Log) -> None:
    first, second = Simulated(), Simulated()
    tune({KERNEL: SPACE}, first, Budget.parse("12t"), log, HERE)
    before = best(log)
    tune({KERNEL: SPACE}, second, Budget.parse("12t"), Log(log.path), HERE, retune=True)
    seen = {spelled({1: schedule}) for _, schedule in first.tried}
    assert second.tried
    assert seen.isdisjoint(spelled({1: schedule}) for _, schedule in second.tried)
    assert (best(Log(log.path)).ratio or 1) <= (before.ratio or 1)


def test_another_generator_is_another_search(log: Log) -> None:
    tune({KERNEL: SPACE}, Simulated(), Budget.parse("3t"), log, HERE)
    changed = replace(HERE, generator="11ee")
    assert tune({KERNEL: SPACE}, Simulated(), Budget.parse("3t"), log, changed).trials == 3


def test_interrupt_keeps_what_was_learned_and_goes_on_next_time(log: Log) -> None:
    summary = tune({KERNEL: SPACE}, Simulated(interrupt_at=6), Budget.parse("20t"), log, HERE)
    assert summary.interrupted
    learned = len(log.records)
    assert learned >= 3
    again = tune({KERNEL: SPACE}, Simulated(), Budget.parse("20t"), Log(log.path), HERE)
    assert again.trials == 20
    assert not again.interrupted


def test_zero_budget_reads_the_log_only(log: Log) -> None:
    judge = Simulated()
    assert tune({KERNEL: SPACE}, judge, Budget.parse("0"), log, HERE).trials == 0
    assert (judge.tried, log.records) == ([], [])


def test_seconds_go_by_weight(log: Log) -> None:
    judge = Simulated()
    space = replace(SPACE, rules=())
    weights = {KERNEL: 4.0}
    spaces = {OTHER: space, KERNEL: space}
    tune(spaces, judge, Budget.parse("60s"), log, HERE, weights=weights, clock=steps(1))
    counts = [sum(kernel == each for kernel, _ in judge.tried) for each in (KERNEL, OTHER)]
    assert judge.tried[0][0] == KERNEL
    assert 2 * counts[1] < counts[0] < 8 * counts[1]


def test_seconds_that_would_be_scattered_go_to_what_matters(log: Log) -> None:
    judge = Simulated()
    light = [Kernel("linear", (("k", size), ("n", 8))) for size in range(1, 9)]
    spaces = {KERNEL: SPACE, **dict.fromkeys(light, SPACE)}
    tune(spaces, judge, Budget.parse("3s"), log, HERE, weights={KERNEL: 8.0}, clock=steps(0.1))
    assert {kernel for kernel, _ in judge.tried} == {KERNEL}
    assert tune(spaces, judge, Budget.parse("3s"), log, HERE).trials == 0


def test_every_kernel_that_matters_gets_some_trials(log: Log) -> None:
    judge = Simulated()
    tiny = Kernel("linear", (("k", 1), ("n", 1)))
    space = replace(SPACE, rules=())
    spaces = {KERNEL: space, OTHER: space, tiny: space}
    weights = {KERNEL: 100.0, OTHER: 5.0, tiny: 0.1}
    tune(spaces, judge, Budget.parse("12s"), log, HERE, weights=weights, clock=steps(0.1))
    counts = [sum(kernel == each for kernel, _ in judge.tried) for each in (KERNEL, OTHER, tiny)]
    assert counts[0] > counts[1] >= 5
    assert counts[2] == 0


def test_a_kernel_without_a_choice_is_not_measured(log: Log) -> None:
    judge = Simulated()
    spaces = {KERNEL: Space({}, {}), OTHER: Space({"tile": (1,)}, {"tile": 1})}
    tune(spaces, judge, Budget.parse("9t"), log, HERE)
    assert judge.tried == []


def test_progress_tells_the_best_so_far(log: Log) -> None:
    events: list[Progress] = []
    tune({KERNEL: SPACE}, Simulated(), Budget.parse("20t"), log, HERE, progress=events.append)
    gains = [event.gain for event in events]
    assert gains == sorted(gains)
    assert gains[-1] == pytest.approx(cost(SPACE.default) / cost(best(log).schedule))
    assert events[-1].trials == 20


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("60s", Budget(seconds=60)),
        ("2m", Budget(seconds=120)),
        ("0.5h", Budget(seconds=1800)),
        ("40t", Budget(trials=40)),
        ("0", Budget(seconds=0)),
    ],
)
def test_budgets(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget
    assert budget.empty == (text == "0")


@pytest.mark.parametrize("text", ["", "fast", "60", "-3s", "1.5t", "5d"])
def test_a_budget_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not understood; give seconds in all"):
        Budget.parse(text)
