"""Tuning on a Ray cluster of three workers: what they do together, and what is left when some are lost.

There is no GPU: the fake device stands in for one, under another name, and builds nothing itself.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from moec.targets.base import Kernel, Space
from moec.tuning import cluster, crew, fleet
from moec.tuning.cluster import NoFleet
from moec.tuning.fingerprint import Fingerprint, cpu_model, here
from moec.tuning.fleet import Fleet, Wanted, unlike
from moec.tuning.judge import Worker
from moec.tuning.log import Log
from moec.tuning.search import Budget, tune
from moec.tuning.side_by_side import tune_side_by_side

ray = pytest.importorskip("ray", reason="a fleet needs Ray: pip install 'moec[fleet]'")

CPU, GPU = f"cpu:{cpu_model()}", "gpu:H200"
KERNELS = [Kernel("linear", (("k", size), ("n", 8))) for size in (8, 16, 32)]
SPACE, APART = (
    Space({"tile": (1, 2, 4), "fault": ("", fault, "wrong")}, {"tile": 1, "fault": ""})
    for fault in ("lose", "lose builder")
)
SECONDS = {"1": 0.004, "2": 0.002, "4": 0.003}
TOOLS = {"numpy": version("numpy")}
BOTH = ("builder", "worker")  # what workers leave a note of
LIMITS = {"limit_s": 20, "memory_bytes": 1 << 32, "builders": 2}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target's folder: the device, and the sources that its fingerprint is of."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("fake_device.py", "fleet_device.py"):
        shutil.copy(Path(__file__).parent / name, folder)
    for name in ("emit.py", "space.py"):
        (folder / name).write_text("")
    return folder


@pytest.fixture(scope="module", autouse=True)
def workers(sources: Path) -> Iterator[None]:
    """Three that measure on this processor, one that says it has a GPU, and two cores."""
    # Sockets' paths have to be short, so this is no folder of pytest's.
    with tempfile.TemporaryDirectory(prefix="ray-") as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(sources))
        for name, value in cluster.SETTINGS.items():
            patch.setenv(name, value)
        ray.init(
            num_cpus=3,
            include_dashboard=False,
            object_store_memory=cluster.STORE_BYTES,
            resources={CPU: 3, GPU: 1, cluster.CORES: 2},
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=scratch,
        )
        yield
        ray.shutdown()


@pytest.fixture
def place(sources: Path) -> Fingerprint:
    return here("any", 1, sources)


@pytest.fixture
def gpu(place: Fingerprint) -> Fingerprint:
    """What is measured on the device that stands in for a GPU."""
    return replace(place, cpu="H200")


@pytest.fixture
def cores() -> int:
    """That a test is about them; for the others there are none."""
    return 2


@pytest.fixture(autouse=True)
def without_cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "cores" not in request.fixturenames:
        monkeypatch.setattr(fleet, "CORES", "nobody's")


def device(folder: Path, gpu: str = "") -> tuple[str, dict[str, Any]]:
    return "fleet_device:FleetDevice", {"seconds": SECONDS, "folder": str(folder), "gpu": gpu}


def joined(folder: Path, place: Fingerprint, kind: str = CPU, lost: int = 0) -> Fleet:
    """A fleet that will lose so many workers."""
    for number in range(lost):
        (folder / f"ticket {number}").touch()
    own = device(folder, "" if place.cpu == cpu_model() else place.cpu)
    return Fleet("of this test", kind, own, Wanted(place, TOOLS, {}), **LIMITS)


def outcomes(log: Log, place: Fingerprint) -> list[list[Any]]:
    """What the log says of each kernel, but for the time of day and the samples."""
    return [
        [(each.schedules, each.status, each.reason, each.ratio, each.beats) for each in log.of(kernel, place)]
        for kernel in KERNELS
    ]


def test_a_lost_worker_changes_nothing_in_the_log(tmp_path: Path, place: Fingerprint) -> None:
    spaces, budget = dict.fromkeys(KERNELS, SPACE), Budget.parse("7t")
    alone, together = Log(tmp_path / "alone.jsonl"), Log(tmp_path / "together.jsonl")
    with Worker(*device(tmp_path), **LIMITS) as judge:
        tune(spaces, judge, budget, alone, place, versions=TOOLS)
    one, processes = (len([*tmp_path.glob(f"{each} *")]) for each in ("worker", "process"))
    assert processes == 1 + 3 * len(KERNELS), "each winner has raced its default in three of its own"
    with joined(tmp_path, place, lost=1) as many:
        many.start()
        summary = tune_side_by_side(spaces, many, budget, together, place, versions=TOOLS)
    assert (one, many.lanes, len(many.lost)) == (1, 3, 1), many.lost
    assert len([*tmp_path.glob("worker *")]) >= one + 2
    assert len([*tmp_path.glob("process *")]) >= 2 * processes
    assert (summary.trials, summary.interrupted) == (7 * len(KERNELS), False)
    assert sorted(summary.kernels, key=str) == sorted(KERNELS, key=str)
    assert outcomes(together, place) == outcomes(alone, place)
    assert {status for some in outcomes(alone, place) for _, status, *_ in some} == {"ok", "wrong", "done"}
    assert together.problems == []


def test_cores_build_what_a_gpu_measures_though_one_is_lost(
    tmp_path: Path, gpu: Fingerprint, cores: int
) -> None:
    spaces, budget = dict.fromkeys(KERNELS[:1], APART), Budget.parse("7t")
    alone, together = Log(tmp_path / "alone.jsonl"), Log(tmp_path / "together.jsonl")
    with Worker(*device(tmp_path / "own"), **LIMITS) as judge:
        (tmp_path / "own").mkdir()
        tune(spaces, judge, budget, alone, gpu, versions=TOOLS)
    with joined(tmp_path, gpu, GPU, lost=1) as judge:
        judge.start()
        assert (judge.lanes, judge.builders) == (1, cores)
        tune_side_by_side(spaces, judge, budget, together, gpu, versions=TOOLS)
    assert len(judge.lost) == 1, judge.lost
    assert outcomes(together, gpu) == outcomes(alone, gpu)
    built, measured = ({each.name.split()[1] for each in tmp_path.glob(f"{name} *")} for name in BOTH)
    assert len(measured) == 1
    assert len(built) == cores
    assert not built & measured


def test_candidates_are_tried_while_others_are_built_until_it_is_closed(
    tmp_path: Path, gpu: Fingerprint, cores: int
) -> None:
    with joined(tmp_path, gpu, GPU) as judge:
        judge.start()
        judge.prepare(KERNELS[0], [{1: {"tile": 1, "fault": fault}} for fault in ("", "slow build")])
        assert judge.trial(KERNELS[0], {1: {"tile": 1, "fault": ""}}, None).status == "ok"
        slow = judge._build(KERNELS[0], {1: {"tile": 1, "fault": "slow build"}})
        assert not slow.done()
        judge.close()
        assert isinstance(slow.exception(10), KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            judge.trial(KERNELS[0], {1: {"tile": 2}}, None)


def test_cores_that_cannot_build_say_why(tmp_path: Path, gpu: Fingerprint, cores: int) -> None:
    with joined(tmp_path, gpu, GPU) as judge:
        judge.start()
        with pytest.raises(NoFleet, match=r"for 'cores' is left: .*no C.. compiler on PATH; install g"):
            judge.trial(KERNELS[0], {1: {"tile": 1, "fault": "no compiler"}}, None)


def test_a_trial_that_takes_three_workers_down_is_given_up(tmp_path: Path, place: Fingerprint) -> None:
    with joined(tmp_path, place, lost=3) as few:
        few.start()
        seen = few.trial(KERNELS[0], {1: {"tile": 1, "fault": "lose"}}, None)
        assert seen.status == "crashed"
        assert "3 workers were lost with it" in seen.reason
        with pytest.raises(NoFleet, match=r"no worker of the fleet at of this test .* is left: .*died"):
            few.trial(KERNELS[0], {1: {"tile": 1}}, None)


def test_a_device_is_one_fleets_at_a_time(
    tmp_path: Path, place: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with joined(tmp_path, place, GPU) as first, joined(tmp_path, place, GPU) as second:
        first.start()
        monkeypatch.setattr(crew, "START_SECONDS", 1)
        with pytest.raises(NoFleet, match="1 are in use or do not start"):
            second.start()


def test_closing_ends_a_trial_in_flight(tmp_path: Path, place: Fingerprint) -> None:
    ended: list[BaseException] = []

    def hang() -> None:
        try:
            judge.trial(KERNELS[0], {1: {"tile": 1, "fault": "hang"}}, None)
        except KeyboardInterrupt as interrupt:
            ended.append(interrupt)

    with joined(tmp_path, place, GPU) as judge:
        judge.start()
        waiting = threading.Thread(target=hang)
        waiting.start()
        while not [*tmp_path.glob("worker *")]:
            time.sleep(0.05)
    waiting.join(10)
    assert len(ended) == 1


def test_a_fleet_without_a_fitting_worker_says_what_there_is(tmp_path: Path, place: Fingerprint) -> None:
    with joined(tmp_path, place, "npu:910C") as none, pytest.raises(NoFleet) as refusal:
        none.start()
    assert "declares 'npu:910C'" in str(refusal.value)
    assert f"they declare 'cores' (2), {CPU!r} (3), {GPU!r} (1)" in str(refusal.value)


def test_a_worker_with_other_sources_takes_no_part(tmp_path: Path, place: Fingerprint) -> None:
    wanted = replace(place, generator="00ff")
    with (
        joined(tmp_path, wanted, GPU) as judge,
        pytest.raises(NoFleet, match=f"its generator of kernels: {place.generator}; wanted: 00ff"),
    ):
        judge.start()


def test_what_makes_a_worker_unlike(
    place: Fingerprint, gpu: Fingerprint, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(sources)
    wanted = Wanted(place, TOOLS, {})

    def why(builders: int = 1, measures: bool = True, **changed: Any) -> str:
        with Worker(*device(sources), builders=builders) as worker:
            for process in worker.building.processes:
                process.told = {"tools": {"numpy": "of a compiler"}}
            return unlike(replace(wanted, **changed), "fleet_device:FleetDevice", worker, measures)

    assert why() == ""
    assert "its processor: " in why(place=gpu)
    assert why(place=gpu, measures=False) == ""
    assert "its cores: " in why(place=replace(place, threads=100_000))
    assert "its generator of kernels: " in why(place=replace(place, generator="00ff"), measures=False)
    assert why(builders=0, packages={"numpy": "0"}) == f"its numpy: {TOOLS['numpy']}; wanted: 0"
    assert why(packages={"no-such-package": "1"}) == "its no-such-package: none; wanted: 1"
    assert why(builders=0, packages={"no-such-package": "1"}) == "", "it builds nothing"
    assert why(tools={"numpy": "of a compiler"}) == ""
    assert why(tools={"numpy": "0"}) == "its numpy: of a compiler; wanted: 0"
    assert why(builders=0, tools={"numpy": "0"}) == ""
    assert why(architecture="another").endswith(f"is built: {platform.machine()}; wanted: another")


def test_the_command_that_joins_declares_one_device_or_all_cores() -> None:
    commands = cluster.join_command("", GPU), cluster.join_command("10.0.0.1:6379", cluster.CORES)
    assert "--head" in commands[0]
    assert "--address=10.0.0.1:6379" in commands[1]
    declared = [each for words in commands for each in words if each.startswith("--resources=")]
    wanted = {GPU: 1}, {cluster.CORES: len(os.sched_getaffinity(0))}
    assert [json.loads(each.partition("=")[2]) for each in declared] == [*wanted]
