"""The tuning log that comes with moec: of an H200, of these kernels, used where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.targets.base import Kernel
from moec.targets.cuda import sm
from moec.targets.cuda.target import Target
from moec.tuning.fingerprint import Fingerprint, of_target
from moec.tuning.log import Log
from moec.tuning.plan import make_plan

TARGET = Target(sm.named("sm_90a"))


@pytest.fixture(scope="module")
def shipped() -> Log:
    assert TARGET.measured is not None
    return Log(TARGET.measured)


def test_every_line_is_a_record_of_an_h200(shipped: Log) -> None:
    assert not shipped.problems
    assert {(record.fingerprint.isa, record.fingerprint.cpu) for record in shipped} == {
        ("sm_90a", "NVIDIA H200")
    }
    assert all("cuda driver" in record.versions for record in shipped)


def test_a_build_takes_its_schedules_and_says_where_they_are_from(shipped: Log, tmp_path: Path) -> None:
    place = of_target(TARGET, 1, "NVIDIA H200")
    kernels = [kernel for kernel, its in shipped.keys() if its == place.of(kernel)]
    if not kernels:
        pytest.skip("measured.jsonl is of other kernels than these: they were changed since, tune again")
    log = Log(tmp_path / "log.jsonl", TARGET.measured)
    plan = make_plan(kernels, {kernel: TARGET.space(kernel) for kernel in kernels}, log, place)
    assert any(choice.why == "log" and choice.gain > 1 for choice in plan.values())
    for kernel, choice in plan.items():
        assert TARGET.space(kernel).objection_to(choice.schedules) is None
        if choice.tried:
            assert "NVIDIA H200, shipped with moec" in choice.reason
    assert not log.path.exists()


def test_it_says_nothing_of_another_gpu(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl", TARGET.measured)
    elsewhere = Fingerprint("sm_90a", "NVIDIA H100", 1, "00")
    assert log.best(Kernel("linear", (("k", 2048), ("n", 3648), ("wide", 0)), (), "bf16"), elsewhere) is None
