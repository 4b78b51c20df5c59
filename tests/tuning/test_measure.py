"""The worker process: kernels that crash, hang, lie or eat memory harm no one; gains are told from noise."""

from __future__ import annotations

import importlib
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from moec.targets.base import CannotBuild, Kernel
from moec.tuning import worker as far_end
from moec.tuning.measure import Worker, bucket_of, by_bucket, compare, won

KERNEL = Kernel("linear", (("k", 8),), (("eps", 1e-6),))
SECONDS = {"1": 0.002, "2": 0.001, "4": 0.004}


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with Worker("fake_device:FakeDevice", {"seconds": SECONDS}, limit_s=3, memory_bytes=1 << 32) as worker:
        yield worker


def test_candidate_and_incumbent_are_timed_in_one_run(worker: Worker) -> None:
    alone = worker.trial(KERNEL, {1: {"tile": 1}}, None)
    assert (alone.status, alone.against) == ("ok", None)
    assert set(alone.samples) == {"m=1", "m=64"}
    both = worker.trial(KERNEL, {1: {"tile": 2}}, {1: {"tile": 1}})
    assert both.against is not None
    assert compare(both.samples, both.against).value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ("segfault", "crashed", "killed by SIGSEGV"),
        ("wrong", "wrong", "row 3 differs"),
        ("raise", "crashed", "ValueError: tile 3 does not divide 8"),
        ("memory", "crashed", "out of memory"),
    ],
)
def test_a_bad_candidate_is_reported_and_the_next_one_runs(
    worker: Worker, fault: str, status: str, reason: str
) -> None:
    bad = worker.trial(KERNEL, {1: {"tile": 1, "fault": fault}}, {1: {"tile": 2}})
    assert bad.status == status
    assert reason in bad.reason
    assert worker.trial(KERNEL, {1: {"tile": 1}}, {1: {"tile": 2}}).status == "ok"


def test_a_candidate_that_hangs_is_killed_in_time(worker: Worker) -> None:
    started = time.monotonic()
    assert worker.trial(KERNEL, {1: {"tile": 1, "fault": "hang"}}, None).status == "timeout"
    assert time.monotonic() - started < 20
    assert worker.trial(KERNEL, {1: {"tile": 1}}, None).status == "ok"


def test_a_machine_that_cannot_build_ends_it(worker: Worker) -> None:
    with pytest.raises(CannotBuild, match="no C\\+\\+ compiler on PATH; install g\\+\\+"):
        worker.trial(KERNEL, {1: {"tile": 1, "fault": "no compiler"}}, None)


def test_a_worker_that_does_not_start_says_why() -> None:
    with (
        Worker("no_such_module:Device", {}) as worker,
        pytest.raises(CannotBuild, match=r"did not start \(exit status 1\).*no_such_module"),
    ):
        worker.trial(KERNEL, {1: {"tile": 1}}, None)


def test_a_started_worker_is_the_one_that_tries(worker: Worker) -> None:
    worker.start()
    process = worker._process
    assert worker.trial(KERNEL, {1: {"tile": 1}}, None).status == "ok"
    assert worker._process is process


def test_ctrl_c_leaves_no_process(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.trial(KERNEL, {1: {"tile": 1}}, None)
    process = worker._process
    assert process is not None

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moec.tuning.measure.select.select", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker.trial(KERNEL, {1: {"tile": 2}}, None)
    assert process.returncode is not None


def test_closing_leaves_no_process_and_no_files(worker: Worker) -> None:
    worker.trial(KERNEL, {1: {"tile": 1}}, None)
    process, folder = worker._process, worker._folder
    assert process is not None
    assert folder is not None
    worker.close()
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_the_incumbent_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    device = importlib.import_module("fake_device").FakeDevice(SECONDS)
    desk = far_end.Desk(device)
    kernel = {"kind": "linear", "dims": [["k", 8]], "reals": [], "dtype": "f32"}
    for tile in (1, 2, 4):
        rivals = {"schedules": [[1, {"tile": tile}]], "incumbent": [[1, {"tile": 1}]]}
        reply = desk.answer({"kernel": kernel, **rivals, "points": None})
        assert reply["status"] == "ok"
        assert len(desk.loaded) == min(2, device.builds)
    assert device.builds == 3


@dataclass
class Scripted:
    """A bench whose runs take the given seconds at each point; runs are counted."""

    seconds: dict[str, float]
    runs: Counter[str] = field(default_factory=Counter)

    @property
    def points(self) -> list[str]:
        return [*self.seconds]

    def check(self) -> str | None:
        return None

    def time(self, point: str) -> float:
        self.runs[point] += 1
        return self.seconds[point]


def test_a_loser_of_one_point_is_timed_at_the_others() -> None:
    slow, incumbent = Scripted({"m=1": 1.4, "m=64": 0.5}), Scripted({"m=1": 1.0, "m=64": 1.0})
    mine, its = far_end.race([slow, incumbent])
    assert list(mine) == list(its) == ["m=1", "m=64"]
    assert (len(mine["m=1"]), len(mine["m=64"])) == (4, far_end.MOST_PAIRS)
    assert won(mine, its) == {17}


def test_long_runs_need_fewer_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 10 * far_end.POINT_SECONDS)
    monkeypatch.setattr(far_end.time, "monotonic", lambda: next(clock))
    mine, _ = far_end.race([Scripted({"m=512": 1.0}), Scripted({"m=512": 1.0})])
    assert len(mine["m=512"]) == far_end.FEWEST


def test_points_may_be_named() -> None:
    benches = [Scripted({"m=1": 1.0, "m=8": 1.0, "m=64": 1.0}) for _ in range(2)]
    assert list(far_end.race(benches, ["m=8"])[0]) == ["m=8"]
    assert set(benches[0].runs) == {"m=8"}


def test_an_incumbent_alone_is_timed_at_every_point() -> None:
    assert list(far_end.race([Scripted({"m=1": 1.0, "m=64": 2.0})])[0]) == ["m=1", "m=64"]


@pytest.mark.parametrize(
    ("ratios", "buckets"),
    [
        ({"m=1": 0.9, "m=8": 1.0, "m=512": 1.2}, {1}),
        ({"m=1": 1.0, "m=8": 1.0}, set()),
        ({"m=1": 1.2, "m=3": 1.3}, set()),
        ({"m=1": 0.97, "m=3": 0.97, "m=8": 0.97, "m=32": 0.97, "m=512": 1.3}, {1, 2, 5, 17}),
    ],
    ids=["one", "none", "a loser", "together"],
)
def test_buckets_that_are_won(ratios: dict[str, float], buckets: set[int]) -> None:
    spread = [1 + step / 100 for step in range(-5, 6)]
    mine = {point: [ratio * noise for noise in spread] for point, ratio in ratios.items()}
    assert won(mine, {point: [1.0] * 11 for point in ratios}) == buckets


def test_points_of_a_bucket_are_judged_together() -> None:
    its = {"m=17": [1.0] * 9, "m=64": [1.0] * 9}
    (ratio,) = by_bucket({"m=17": [0.5] * 9, "m=64": [2.0] * 9}, its).values()
    assert ratio.value == pytest.approx(1)


@pytest.mark.parametrize(
    ("tokens", "first"), [(1, 1), (2, 2), (4, 2), (5, 5), (16, 5), (64, 17), (9999, 257)]
)
def test_buckets(tokens: int, first: int) -> None:
    assert bucket_of(f"m={tokens}") == first


def test_points_one_of_them_lacks_are_left_out() -> None:
    assert compare({"m=1": [2.0]}, {"m=1": [1.0], "m=64": [9.0]}).value == pytest.approx(2)


def noisy(seconds: float, dice: random.Random, pairs: int = 11) -> dict[str, list[float]]:
    return {
        point: [seconds * dice.lognormvariate(0, 0.03) for _ in range(pairs)] for point in ("m=1", "m=64")
    }


def test_a_gain_wins_and_noise_rarely_does() -> None:
    dice = random.Random(1)
    faster = [compare(noisy(0.9, dice), noisy(1, dice)).wins for _ in range(50)]
    equal = [compare(noisy(1, dice), noisy(1, dice)).wins for _ in range(200)]
    assert sum(faster) >= 45
    assert sum(equal) <= 6


def test_drift_hits_both_and_cancels_out() -> None:
    drift = [1 + step / 3 for step in range(11)]
    slower = {"m=1": [1.1 * factor for factor in drift]}
    assert compare(slower, {"m=1": drift}).value == pytest.approx(1.1)


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        compare({"m=1": [1.0]}, {"m=2": [1.0]})
