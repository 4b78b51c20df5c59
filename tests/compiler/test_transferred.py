"""Schedules from elsewhere on their way to the user: what builds do with them, and what is said about it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command import moec, printed, refused

from moec.compiler.beyond import Beyond
from moec.compiler.conditions import Conditions
from moec.compiler.driver import NOTHING, planned, quiet
from moec.compiler.rooms import target_of
from moec.targets.base import CannotBuild, Kernel
from moec.targets.cpu import isa
from moec.tuning.fingerprint import here
from moec.tuning.heuristic import BadHeuristics
from moec.tuning.log import Log
from moec.tuning.plan import Plan
from moec.tuning.record import Record

from .. import models

FAMILY = "deepseek_v3"
KERNEL = Kernel("linear", (("k", 64), ("n", 48)))
GOOD = {"group": 64}  # what wins in these logs, and is no default


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log.jsonl")


def plan(log: Log, machine: Any = None, verify: bool = False) -> Plan:
    """What a build with this kernel alone would plan."""
    front: Any = SimpleNamespace(kernels={"node": KERNEL})
    called = Conditions(machine or target_of("cpu", None), 1, cold=True)
    return planned(front, log, NOTHING, called, quiet, verify=verify)


def won(kernel: Kernel, scale: int, machine: Any = None) -> Record:
    """Another schedule than the default's won at a shape so many times as large."""
    machine = machine or target_of("cpu", None)
    kernel = replace(kernel, dims=tuple((name, size * scale) for name, size in kernel.dims))
    schedule = {**machine.space(kernel).default, **GOOD}
    place = here(machine.capabilities.name, 1, machine.folder)
    return Record(kernel, place, schedule, "ok", "", {}, 0.8, True, time="", ratios={1: 0.8, 5: 0.8})


def test_explain_names_the_shape_that_schedules_come_from(tmp_path: Path, log: Log) -> None:
    models.save(tmp_path / FAMILY, FAMILY)
    explain = ("explain", tmp_path / FAMILY, "--log", log.path, "--threads", 1)
    rows = [row for row in printed(*explain)["kernels"] if row["kernel"].startswith("linear ")]
    assert {(row["why"], row["reason"]) for row in rows} == {("default", "the log knows nothing like it")}
    for row in rows:
        dims = (part.split("=") for part in row["kernel"].split()[1:-1])
        record = won(Kernel("linear", tuple((name, int(size)) for name, size in dims)), 2)
        log.append(replace(record, profile="standard warm"))  # so small a model stays in caches
    shown = " ".join(moec(*explain).stdout.split())
    assert "neighbour: from k=" in shown
    assert "neighbour, " not in shown, "nothing was measured here, so there is no gain to tell"


def test_verifying_measures_it_once(log: Log) -> None:
    log.append(won(KERNEL, 2))
    assert plan(log)[KERNEL].why == "neighbour"
    verified = plan(log, verify=True)
    assert verified[KERNEL].why in ("log", "default")
    assert verified[KERNEL].tried == 2
    before = log.path.read_bytes()
    assert plan(log, verify=True).json() == plan(log).json() == verified.json()
    assert log.path.read_bytes() == before


def test_verifying_needs_a_machine_that_runs_the_kernels(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moec.targets.cpu.isa.cpu_flags", lambda: frozenset(isa.V3.features))
    machine = target_of("cpu", "x86-64-v4")
    log.append(won(KERNEL, 2, machine))
    assert plan(log, machine)[KERNEL].why == "neighbour"
    with pytest.raises(
        CannotBuild, match="does not run x86-64-v4: tune there, or --budget 0 without --verify"
    ):
        plan(log, machine, verify=True)


def test_learning_writes_a_file_that_builds_read(log: Log) -> None:
    for scale in (16, 32, 64, 1024, 2048, 4096):
        record = won(KERNEL, scale)
        default = target_of("cpu", None).space(record.kernel).default
        for schedule, ratio in ((default, 1.0), ({**default, "unroll": 1}, 1.3)):
            lost = replace(record, schedule=schedule, ratio=ratio, ratios={1: ratio, 5: ratio}, beats=False)
            log.append(lost)
        for grain in (256, 1024, 4096):
            log.append(replace(record, schedule={**record.schedule, "grain": grain}))
    assert plan(log)[KERNEL].why == "default"
    found = printed("log", "learn", "--log", log.path)
    assert Path(found["file"]) == log.path.with_name("log.learned.json")
    (row,) = found["heuristics"]
    assert (row["kind"], row["shapes"], row["unmeasured"]) == ("linear", 6, True)
    assert "unmeasured too" in moec("log", "learn", "--log", log.path).stdout
    choice = plan(log)[KERNEL]
    assert choice.why == "learned", choice.reason
    assert choice.schedule["group"] == GOOD["group"]


def test_a_log_too_small_to_learn_from(log: Log) -> None:
    assert "too few shapes to learn from" in moec("log", "learn", "--log", log.path).stdout


def test_a_broken_file_of_what_was_learned_is_refused(tmp_path: Path, log: Log) -> None:
    models.save(tmp_path / FAMILY, FAMILY)
    log.path.with_name("log.learned.json").write_text(json.dumps({"schema": 7}))
    wanted = "holds no heuristics (schema 7, this moec reads 1); delete it, or write it anew"
    assert wanted in refused("explain", tmp_path / FAMILY, "--log", log.path)
    with pytest.raises(BadHeuristics):
        plan(log)


def test_what_a_gpu_measured_holds_for_any_number_of_threads() -> None:
    cpu, gpu = target_of("cpu", None), target_of("cuda", "sm_90a")
    place = {
        (machine.name, threads): Beyond().place(Conditions(machine, threads, cold=True))
        for machine in (cpu, gpu)
        for threads in (1, 3)
    }
    assert place["cuda", 3] == place["cuda", 1]
    assert place["cuda", 1].whole == here("sm_90a", 1, gpu.folder, gpu.processor)
    assert place["cpu", 3].whole == replace(place["cpu", 1].whole, threads=3)


def test_a_driver_may_reserve_more_addresses_than_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("moec.compiler.beyond.Worker", lambda *_, **rest: seen.append(rest))
    for name, isa_ in (("cpu", None), ("cuda", "sm_90a")):
        called = Conditions(target_of(name, isa_), 1, cold=True)
        Beyond().judge(called, Beyond().place(called))
    cpu, gpu = (each["memory_bytes"] for each in seen)
    assert cpu is None
    assert gpu >= 1 << 46
