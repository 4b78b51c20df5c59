"""Targets that a fleet measures: on which of its workers, and what these are asked to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.compiler.beyond import Beyond
from moec.compiler.conditions import Conditions
from moec.compiler.rooms import measured_on, target_of, unit_here
from moec.targets.base import CannotBuild
from moec.targets.cuda import target as cuda
from moec.tuning.fingerprint import cpu_model
from moec.tuning.fleet import Fleet

from .. import models
from ..command import refused

CPU = f"cpu:{cpu_model()}"


def joined(target: str, worker: str = "", isa: str | None = None) -> Fleet:
    """The fleet that would measure it."""
    called, beyond = Conditions(measured_on(target_of(target, isa), worker), 1, cold=True), Beyond("h:6379")
    judge = beyond.judge(called, beyond.place(called))
    assert isinstance(judge, Fleet)
    return judge


def test_each_target_has_workers_of_its_own() -> None:
    assert [joined(*each).kind for each in (("cpu",), ("cuda", "", "sm_90a"), ("ascend", "", "910B2"))] == [
        CPU,
        "gpu:NVIDIA H200",
        "npu:Ascend910B2",
    ]
    assert joined("cuda", "gpu:NVIDIA H100 NVL").kind == "gpu:NVIDIA H100 NVL"


def test_they_are_asked_for_what_measures_there() -> None:
    npu, gpu, cpu = joined("ascend", "", "910B2"), joined("cuda", "gpu:NVIDIA H100 NVL"), joined("cpu")
    assert [each._wanted.place.cpu for each in (npu, gpu)] == ["Ascend910B2", "NVIDIA H100 NVL"]
    assert npu._device[1]["simulated"] is False
    assert [each._limits["memory_bytes"] for each in (npu, gpu, cpu)] == [1 << 46, 1 << 46, None]
    assert "tilelang" in gpu._wanted.packages
    assert npu._wanted.tools == target_of("ascend", None).versions


def test_what_a_fleet_measures_is_not_simulated() -> None:
    machine = target_of("ascend", "910B2")
    away = measured_on(machine, "")
    assert (away.facts["times"], away.guesses, away.processor) == ("measured", (), "Ascend910B2")
    assert machine.facts["times"] == "simulated"
    assert repr(away) == repr(machine), "its code is the same, also in the cache"


def test_workers_that_cannot_measure_a_target_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotBuild, match="measured by workers that declare gpu:NAME, not 'cpu:some'"):
        measured_on(target_of("cuda", "sm_90a"), "cpu:some")
    with pytest.raises(CannotBuild, match="for Ascend910B2 are not measured on Ascend910B3; name that with"):
        measured_on(target_of("ascend", "910B2"), "npu:Ascend910B3")
    models.save(tmp_path / "model", "deepseek_v2")
    fleet = ("--fleet", "h:6379", "--on", "gpu:")
    assert "declare cpu:NAME, not 'gpu:'" in refused("tune", tmp_path / "model", "--target", "cpu", *fleet)


def test_a_worker_declares_its_gpu_where_it_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "gpu", lambda: "")
    assert unit_here() == CPU
    monkeypatch.setattr(cuda, "gpu", lambda: "NVIDIA H200")
    assert unit_here() == "gpu:NVIDIA H200"
