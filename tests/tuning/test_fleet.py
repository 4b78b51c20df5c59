"""Tuning on a Ray cluster of three workers: what they do together, and what is left when some are lost."""

from __future__ import annotations

import json
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
from moec.tuning import cluster, fleet
from moec.tuning.cluster import NoFleet
from moec.tuning.fingerprint import Fingerprint, here
from moec.tuning.fleet import Fleet, unlike
from moec.tuning.judge import Worker
from moec.tuning.log import Log
from moec.tuning.search import Budget, tune
from moec.tuning.side_by_side import tune_side_by_side

ray = pytest.importorskip("ray", reason="a fleet needs Ray: pip install 'moec[fleet]'")

KERNELS = [Kernel("linear", (("k", size), ("n", 8))) for size in (8, 16, 32, 64)]
SPACE = Space({"tile": (1, 2, 4), "fault": ("", "lose", "wrong")}, {"tile": 1, "fault": ""})
SECONDS = {"1": 0.004, "2": 0.002, "4": 0.003}
TOOLS = {"numpy": version("numpy")}
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
    """Three that measure on this processor, and one that says it has a GPU."""
    # Sockets' paths have to be short, so this is no folder of pytest's.
    with tempfile.TemporaryDirectory(prefix="ray-") as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(sources))
        for name, value in cluster.SETTINGS.items():
            patch.setenv(name, value)
        ray.init(
            num_cpus=3,
            include_dashboard=False,
            object_store_memory=cluster.STORE_BYTES,
            resources={cluster.cpu(): 3, "gpu:H200": 1},
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=scratch,
        )
        yield
        ray.shutdown()


@pytest.fixture
def place(sources: Path) -> Fingerprint:
    return here("any", 1, sources)


def device(folder: Path) -> tuple[str, dict[str, Any]]:
    return "fleet_device:FleetDevice", {"seconds": SECONDS, "folder": str(folder)}


def joined(folder: Path, place: Fingerprint, kind: str = "", lost: int = 0) -> Fleet:
    """A fleet that will lose so many workers."""
    for number in range(lost):
        (folder / f"ticket {number}").touch()
    return Fleet("of this test", kind or cluster.cpu(), device(folder), place, TOOLS, **LIMITS)


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
    one = len([*tmp_path.glob("worker *")])
    with joined(tmp_path, place, lost=1) as many:
        many.start()
        summary = tune_side_by_side(spaces, many, budget, together, place, versions=TOOLS)
    assert (one, many.lanes, len(many.lost)) == (1, 3, 1), many.lost
    assert len([*tmp_path.glob("worker *")]) >= one + 2
    assert (summary.trials, summary.interrupted) == (7 * len(KERNELS), False)
    assert sorted(summary.kernels, key=str) == sorted(KERNELS, key=str)
    assert outcomes(together, place) == outcomes(alone, place)
    assert {status for some in outcomes(alone, place) for _, status, *_ in some} == {"ok", "wrong", "done"}
    assert together.problems == []


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
    with joined(tmp_path, place, "gpu:H200") as first, joined(tmp_path, place, "gpu:H200") as second:
        first.start()
        monkeypatch.setattr(fleet, "START_SECONDS", 1)
        with pytest.raises(NoFleet, match="1 are in use or do not start"):
            second.start()


def test_closing_ends_a_trial_in_flight(tmp_path: Path, place: Fingerprint) -> None:
    ended: list[BaseException] = []

    def hang() -> None:
        try:
            judge.trial(KERNELS[0], {1: {"tile": 1, "fault": "hang"}}, None)
        except KeyboardInterrupt as interrupt:
            ended.append(interrupt)

    with joined(tmp_path, place, "gpu:H200") as judge:
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
    assert f"they declare {cluster.cpu()!r} (3), 'gpu:H200' (1)" in str(refusal.value)


def test_a_worker_with_other_sources_takes_no_part(tmp_path: Path, place: Fingerprint) -> None:
    wanted = replace(place, generator="00ff")
    with (
        joined(tmp_path, wanted, "gpu:H200") as judge,
        pytest.raises(NoFleet, match=f"its generator of kernels: {place.generator}; wanted: 00ff"),
    ):
        judge.start()


def test_what_makes_a_worker_unlike(
    place: Fingerprint, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(sources)
    name = "fleet_device:FleetDevice"
    assert unlike(place, TOOLS, name) == ""
    assert "its processor: " in unlike(replace(place, cpu="another"), TOOLS, name)
    assert "its cores: " in unlike(replace(place, threads=100_000), TOOLS, name)
    assert unlike(place, {"numpy": "0"}, name) == f"its numpy: {TOOLS['numpy']}; wanted: 0"
    assert unlike(place, {"no-such-package": "1"}, name) == "its no-such-package: none; wanted: 1"
    assert "it has no module no_such_device" in unlike(place, TOOLS, "no_such_device:Device")


def test_the_command_that_joins_declares_one_device() -> None:
    first, next_one = (
        cluster.join_command("", "gpu:H200"),
        cluster.join_command("10.0.0.1:6379", cluster.cpu()),
    )
    assert "--head" in first
    assert "--address=10.0.0.1:6379" in next_one
    (declared,) = (each for each in next_one if each.startswith("--resources="))
    assert json.loads(declared.partition("=")[2]) == {cluster.cpu(): 1}
