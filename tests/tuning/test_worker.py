"""The worker processes: kernels that crash, hang, lie or eat memory harm no one, neither built nor run."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moec.targets.base import CannotBuild, Kernel
from moec.tuning.judge import Worker
from moec.tuning.measure import Prepares, compare
from moec.tuning.worker import Desk

KERNEL = Kernel("linear", (("k", 8),), (("eps", 1e-6),))
SECONDS = {"1": 0.002, "2": 0.001, "4": 0.004}


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    options = {"seconds": SECONDS}
    with Worker("fake_device:FakeDevice", options, limit_s=3, memory_bytes=1 << 32, build_s=2) as worker:
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
        ("broken build", "crashed", "killed by SIGSEGV while it was built"),
        ("slow build", "timeout", "did not build within 2 s"),
        ("no compiler", "crashed", "no C++ compiler"),  # others did build
    ],
)
def test_a_bad_candidate_is_reported_and_the_next_one_runs(
    worker: Worker, fault: str, status: str, reason: str
) -> None:
    assert worker.trial(KERNEL, {1: {"tile": 2}}, None).status == "ok"
    bad = worker.trial(KERNEL, {1: {"tile": 1, "fault": fault}}, {1: {"tile": 2}})
    assert bad.status == status
    assert reason in bad.reason
    assert worker.trial(KERNEL, {1: {"tile": 1}}, {1: {"tile": 2}}).status == "ok"


def test_what_is_tried_afresh_finds_a_process_that_ran_nothing(worker: Worker) -> None:
    ages = {1: {"tile": 1, "fault": "ages"}}
    for _ in range(2):
        worker.trial(KERNEL, ages, None)
        worker.trial(KERNEL, {1: {"tile": 2}}, None)
        assert min(worker.afresh(KERNEL, ages, None, ["m=1"]).samples["m=1"]) == SECONDS["1"]
    old = worker.trial(KERNEL, ages, None).samples
    assert min(old["m=1"]) > SECONDS["1"], "so an old process can be told from a new one"


@pytest.mark.parametrize(
    ("fault", "reason"), [("segfault", "killed by SIGSEGV"), ("exit", "exit status 0"), ("", "")]
)
def test_a_bad_candidate_ends_no_more_than_its_own_process(worker: Worker, fault: str, reason: str) -> None:
    seen = worker.afresh(KERNEL, {1: {"tile": 1, "fault": fault}}, None)
    assert (seen.status, seen.reason) == (("crashed" if fault else "ok"), reason)
    assert worker.afresh(KERNEL, {1: {"tile": 2}}, {1: {"tile": 1}}).status == "ok"


def test_a_candidate_that_hangs_is_killed_in_time(worker: Worker) -> None:
    started = time.monotonic()
    assert worker.trial(KERNEL, {1: {"tile": 1, "fault": "hang"}}, None).status == "timeout"
    assert time.monotonic() - started < 20
    assert worker.trial(KERNEL, {1: {"tile": 1}}, None).status == "ok"


def test_a_candidate_that_does_not_build_leaves_the_incumbent_loaded(worker: Worker) -> None:
    worker.trial(KERNEL, {1: {"tile": 1}}, None)
    measuring = worker.bench.pid
    assert worker.trial(KERNEL, {1: {"tile": 2, "fault": "broken build"}}, None).status == "crashed"
    assert worker.bench.pid == measuring


def test_several_are_built_at_a_time_and_each_failure_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    some = [{1: {"tile": 1, "fault": fault}} for fault in ("slow build", "broken build", "")]
    with Worker("fake_device:FakeDevice", {"seconds": SECONDS}, build_s=1, builders=2) as worker:
        assert isinstance(worker, Prepares)
        worker.start()
        worker.prepare(KERNEL, some)
        started = time.monotonic()
        assert [worker.trial(KERNEL, each, None).status for each in some] == ["timeout", "crashed", "ok"]
        assert time.monotonic() - started < 1, "none of them is built again"


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
    process = worker.bench.pid
    assert worker.trial(KERNEL, {1: {"tile": 1}}, None).status == "ok"
    assert worker.bench.pid == process


def test_ctrl_c_leaves_no_process(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.trial(KERNEL, {1: {"tile": 1}}, None)

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    for schedule, process in (({"tile": 1}, worker.bench), ({"tile": 2}, worker.building.processes[0])):
        pid = process.pid
        assert pid is not None
        with monkeypatch.context() as patch:
            patch.setattr("moec.tuning.process.select.select", interrupted)
            with pytest.raises(KeyboardInterrupt):
                worker.trial(KERNEL, {1: schedule}, None)
        assert process.pid is None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_closing_leaves_no_process_and_no_files(worker: Worker) -> None:
    worker.trial(KERNEL, {1: {"tile": 1}}, None)
    worker.afresh(KERNEL, {1: {"tile": 1}}, None)
    processes = (worker.bench, worker.fresh, *worker.building.processes)
    pids, folders = [each.pid for each in processes], [each._folder for each in processes]
    worker.close()
    assert not any(folder is None or folder.exists() for folder in (*folders, worker.building._folder))
    for pid in pids:
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_the_incumbent_is_loaded_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    device = importlib.import_module("fake_device").FakeDevice(SECONDS)
    desk = Desk(device)
    kernel = {"kind": "linear", "dims": [["k", 8]], "reals": [], "dtype": "f32"}
    for tile in (1, 2, 4):
        (folder := tmp_path / str(tile)).mkdir()
        reply = desk.answer({"kernel": kernel, "build": [[1, {"tile": tile}]], "folder": str(folder)})
        assert reply == {"status": "built"}
        rivals = {"rivals": [[[1, {"tile": each}]] for each in (tile, 1)]}
        built = [str(tmp_path / str(each)) for each in (tile, 1)]
        reply = desk.answer({"kernel": kernel, **rivals, "built": built, "points": None})
        assert reply["status"] == "ok"
        assert len(desk.loaded) == min(2, device.loads)
    assert device.loads == 3
