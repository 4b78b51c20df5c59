"""The worker process: kernels that crash, hang, lie or eat memory harm no one; gains are told from noise."""

from __future__ import annotations

import importlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moec.targets.base import CannotBuild, Kernel
from moec.tuning import worker as far_end
from moec.tuning.measure import Worker, compare

KERNEL = Kernel("linear", (("k", 8),), (("eps", 1e-6),))
SECONDS = {"1": 0.002, "2": 0.001, "4": 0.004}


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with Worker("fake_device:FakeDevice", {"seconds": SECONDS}, limit_s=3, memory_bytes=1 << 32) as worker:
        yield worker


def test_candidate_and_incumbent_are_timed_in_one_run(worker: Worker) -> None:
    alone = worker.trial(KERNEL, {"tile": 1}, None)
    assert (alone.status, alone.against) == ("ok", None)
    assert set(alone.samples) == {"m=1", "m=64"}
    both = worker.trial(KERNEL, {"tile": 2}, {"tile": 1})
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
    bad = worker.trial(KERNEL, {"tile": 1, "fault": fault}, {"tile": 2})
    assert bad.status == status
    assert reason in bad.reason
    assert worker.trial(KERNEL, {"tile": 1}, {"tile": 2}).status == "ok"


def test_a_candidate_that_hangs_is_killed_in_time(worker: Worker) -> None:
    started = time.monotonic()
    assert worker.trial(KERNEL, {"tile": 1, "fault": "hang"}, None).status == "timeout"
    assert time.monotonic() - started < 20
    assert worker.trial(KERNEL, {"tile": 1}, None).status == "ok"


def test_a_machine_that_cannot_build_ends_it(worker: Worker) -> None:
    with pytest.raises(CannotBuild, match="no C\\+\\+ compiler on PATH; install g\\+\\+"):
        worker.trial(KERNEL, {"tile": 1, "fault": "no compiler"}, None)


def test_a_worker_that_does_not_start_says_why() -> None:
    with (
        Worker("no_such_module:Device", {}) as worker,
        pytest.raises(CannotBuild, match=r"did not start \(exit status 1\).*no_such_module"),
    ):
        worker.trial(KERNEL, {"tile": 1}, None)


def test_a_started_worker_is_the_one_that_tries(worker: Worker) -> None:
    worker.start()
    process = worker._process
    assert worker.trial(KERNEL, {"tile": 1}, None).status == "ok"
    assert worker._process is process


def test_ctrl_c_leaves_no_process(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.trial(KERNEL, {"tile": 1}, None)
    process = worker._process
    assert process is not None

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moec.tuning.measure.select.select", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker.trial(KERNEL, {"tile": 2}, None)
    assert process.returncode is not None


def test_closing_leaves_no_process_and_no_files(worker: Worker) -> None:
    worker.trial(KERNEL, {"tile": 1}, None)
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
        reply = desk.answer({"kernel": kernel, "schedule": {"tile": tile}, "incumbent": {"tile": 1}})
        assert reply["status"] == "ok"
        assert len(desk.loaded) == min(2, device.builds)
    assert device.builds == 3


class Scripted:
    """A bench whose runs take the given seconds at each point."""

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.points = seconds, list(seconds)

    def check(self) -> str | None:
        return None

    def time(self, point: str) -> float:
        return self.seconds[point]


def test_a_hopeless_candidate_is_not_timed_at_every_point() -> None:
    incumbent = Scripted(one=1.0, many=1.0)
    slow, its = far_end.race([Scripted(one=1.4, many=0.1), incumbent])
    assert list(slow) == list(its) == ["one"]
    assert compare(slow, its).value == pytest.approx(1.4)
    close, its = far_end.race([Scripted(one=1.2, many=0.7), incumbent])
    assert list(close) == list(its) == ["one", "many"]
    assert compare(close, its).wins


def test_an_incumbent_alone_is_timed_at_every_point() -> None:
    assert list(far_end.race([Scripted(one=1.0, many=2.0)])[0]) == ["one", "many"]


def test_noise_on_the_candidate_is_no_reason_to_stop() -> None:
    lucky = {"one": [9.0, 9.0, 9.0, 1.0, 9.0]}
    assert far_end._behind(lucky, {"one": [1.0] * 5}) == 1.0


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
