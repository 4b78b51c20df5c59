"""Kernels searched at the same time: how they are shared out, told of, and ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from moec.targets.base import CannotBuild, Kernel, Schedules, Space
from moec.tuning.log import Log
from moec.tuning.measure import Measurement
from moec.tuning.search import Budget, Progress
from moec.tuning.side_by_side import shared_out, tune_side_by_side

from .log_records import HERE

KERNELS = [Kernel("linear", (("k", size),)) for size in (8, 16, 32, 64, 128)]
SPACE = Space({"tile": (1, 2, 4)}, {"tile": 1})


class Three:
    """A judge of three lanes, that counts who is in them."""

    lanes = 3

    def __init__(self, fails_at: int = -1, error: type[BaseException] = CannotBuild) -> None:
        self.fails_at, self.error = fails_at, error
        self.trials = self.now = self.most = 0
        self.closed = False
        self.turn = threading.Lock()

    def trial(
        self,
        kernel: Kernel,
        schedules: Schedules,
        incumbent: Schedules | None,
        points: Collection[str] | None = None,
    ) -> Measurement:
        with self.turn:
            self.trials += 1
            self.now += 1
            self.most = max(self.most, self.now)
            if self.closed:
                raise KeyboardInterrupt
            if self.trials == self.fails_at:
                raise self.error("as simulated")
        time.sleep(0.02)
        with self.turn:
            self.now -= 1
        return Measurement("ok", "", {"m=1": [1e-3] * 9}, {"m=1": [1e-3] * 9} if incumbent else None)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log.jsonl")


@pytest.mark.parametrize("budget", ["2t", "60s"])
def test_every_kernel_is_searched_and_told_of_once(log: Log, budget: str) -> None:
    judge, events = Three(), list[Progress]()
    spaces = {**dict.fromkeys(KERNELS, SPACE), Kernel("norm", ()): Space({}, {})}
    summary = tune_side_by_side(spaces, judge, Budget.parse(budget), log, HERE, progress=events.append)
    assert judge.most == 3
    assert summary.trials == judge.trials == len(KERNELS) * (2 if budget == "2t" else 3)
    assert {event.number for event in events} == {1, 2, 3, 4, 5}
    assert {event.kernels for event in events} == {5}
    assert all(log.tuned(kernel, HERE) for kernel in KERNELS)
    again = tune_side_by_side(spaces, judge, Budget.parse(budget), log, HERE)
    assert (again.trials, again.kernels) == (0, [])


def test_what_one_search_raises_ends_all(log: Log) -> None:
    judge = Three(fails_at=4)
    with pytest.raises(CannotBuild, match="as simulated"):
        tune_side_by_side(dict.fromkeys(KERNELS, SPACE), judge, Budget.parse("3t"), log, HERE)
    assert judge.closed
    assert judge.trials < 3 * len(KERNELS)


def test_an_interrupted_search_says_so_and_the_next_goes_on(log: Log) -> None:
    spaces, budget = dict.fromkeys(KERNELS, SPACE), Budget.parse("3t")
    assert tune_side_by_side(spaces, Three(5, KeyboardInterrupt), budget, log, HERE).interrupted
    summary = tune_side_by_side(spaces, Three(), budget, log, HERE)
    assert not summary.interrupted
    assert all(log.tuned(kernel, HERE) for kernel in KERNELS)


def test_groups_weigh_about_the_same() -> None:
    weights = dict(zip(KERNELS, (8.0, 4.0, 3.0, 2.0, 1.0)))
    groups = shared_out(KERNELS, weights, 2)
    assert sorted(sum(weights[kernel] for kernel in group) for group in groups) == [9.0, 9.0]
    assert len(shared_out(KERNELS, weights, 9)) == len(KERNELS)
    assert shared_out([], {}, 3) == []


def test_kernels_that_differ_in_reals_only_stay_together() -> None:
    alike = [Kernel("norm", (("k", 8),), (("eps", eps),)) for eps in (1e-5, 1e-6)]
    assert shared_out([*alike, *KERNELS[:1]], {}, 3) == [alike, KERNELS[:1]]
