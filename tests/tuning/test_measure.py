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
    assert device.builds == 3


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
