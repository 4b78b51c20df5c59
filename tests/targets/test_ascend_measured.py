"""Kernels measured on an NPU, over stand-ins for ACL and hivmc: what is made, launched, timed, recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from moec.targets.ascend import npu, soc, space
from moec.targets.ascend.bundle import from_bytes
from moec.targets.ascend.emit import emit
from moec.targets.ascend.finish import HIVMC
from moec.targets.ascend.host import object_code
from moec.targets.ascend.lowering import Linalg
from moec.targets.ascend.target import target
from moec.targets.base import Kernel
from moec.tuning.fingerprint import of_target
from moec.tuning.judge import Worker
from moec.tuning.log import Log
from moec.tuning.measure import Measurement
from moec.tuning.record import PROFILE

from . import ascend_stand_in
from .stand_in_objects import Function

ROOT = Path(__file__).parents[2]
NORM = Kernel("rms_norm", (("n", 64), ("width", 80), ("start", 16)), (("eps", 1e-6),), "f32")
DECODE = Kernel("mla_decode", (("heads", 4), ("latent", 32), ("rope", 16)), (("scale", 0.1),), "f32+bf16")
B3 = soc.SOCS[0]
DEVICE = "moec.targets.ascend.device:Device"
HERE = """
import json
from moec.targets.ascend import target
one, other = target.target(), target.target("910B1")
told = target.here()
print(json.dumps([[each.processor, each.facts["times"], each.device(1)[1]["simulated"], len(each.guesses)]
                  for each in (one, other)] + [told["device"], told["simulated"], told["times"]]))
"""
ALONE = """
import json
from moec.targets.ascend import acl, space, soc
from moec.targets.buffers import placed
from moec.targets.ascend.device import Device
from moec.targets.base import Kernel
import numpy as np
each = placed(acl.acl(), np.arange(6, dtype=np.int64))
clean = each.spoiled()
acl.acl().fill(each.address + each.size, 0, 3)
kernel = Kernel("mla_decode", (("heads", 4), ("latent", 32), ("rope", 16)), (("scale", 0.1),), "f32+bf16")
bench = Device("Ascend910B3", simulated=False).bench(kernel, space.space(kernel, soc.SOCS[0]).defaults)
calls = bench.tried.calls("m=1 decode", bench.asked["m=1 decode"], True, lambda call: 1e-4)
caches = [len({call.operands[i].address for call in calls}) for i in (1, 2)]
seconds, launch, launched = bench.time("m=1 decode"), bench.library.launch, []
bench.cold = False
bench.library.launch = lambda *given: (launched.append(given[0].operands[1].address), launch(*given))
warm = bench.time("m=1 decode")
print(json.dumps([clean, each.spoiled(), each.read().tolist(), len(calls), caches, seconds,
                  warm, len(launched), len(set(launched))]))
"""
TOY = """
import torch


def model():
    torch.manual_seed(0)
    return torch.nn.Linear(64, 48, bias=False), (torch.randn(5, 64),)
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="loads libascendcl.so from LD_LIBRARY_PATH")


def program(path: Path, script: str) -> None:
    """For the shell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


class Machine:
    """A machine with an NPU: the stand-in for ACL, and a CANN with a hivmc."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        ascend_stand_in.driver(folder)
        patch.setenv("LD_LIBRARY_PATH", str(folder))
        patch.setenv("STAND_IN_LOG", str(folder / "log"))
        patch.setenv("ASCEND_HOME_PATH", str(folder / "cann"))
        tool = folder / "cann" / "tools" / "hivmc" / "bin" / "hivmc"
        words = f'"{sys.executable}" -m tests.targets.ascend_hivmc "{folder}/table" "{folder}/calls" "$@"'
        program(tool, f'[ "$1" = --version ] && exec echo hivmc 1.2.0\nPYTHONPATH="{ROOT}" exec {words}')
        (folder / "cann" / "version.cfg").write_text("runtime_running_version=[1.0:9.0.0]\n")

    def knows(self, kernel: Kernel, was: str = "", becomes: str = "") -> list[str]:
        """Has hivmc know the kernel's functions, whose linalg says something else; their names."""
        table = {}
        emitted = emit(kernel, space.space(kernel, B3).defaults, B3)
        bundle = from_bytes(emitted.object_code)
        for place, image in enumerate(bundle.images):
            text = image.linalg.decode()
            assert was in text
            host = self.folder / f"{image.entry}.o"
            host.write_bytes(object_code(Linalg(image.entry, text.replace(was, becomes), image.mixed)))
            launch = next(each for all in bundle.launches.values() for each in all if each.image == place)
            types = "".join("p" if a.port else ascend_stand_in.LETTERS[a.type] for a in launch.arguments)
            function = Function(image.entry, types, image.mixed, image.workspace, image.locks)
            told = {"hivm": image.hivm.decode(), "host": str(host), "function": asdict(function)}
            table[image.entry] = told
        (self.folder / "table").write_text(json.dumps(table))
        return list(table)

    def trial(self, kernel: Kernel) -> Measurement:
        """What a tuning worker says of the default schedules."""
        options = {"soc": B3.name, "simulated": False}
        with Worker(DEVICE, options) as judge:
            return judge.trial(kernel, space.space(kernel, B3).defaults, None)

    def lines(self, name: str) -> list[str]:
        return (self.folder / name).read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def facts(script: str = HERE, **settings: str) -> Any:
    """What a process says of this machine."""
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | settings, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_kernel_is_finished_checked_and_timed_on_the_npu(
    ascend_toolchain: object, machine: Machine
) -> None:
    names = machine.knows(NORM)
    found = machine.trial(NORM)
    assert found.status == "ok", found.reason
    assert [json.loads(line) for line in machine.lines("calls")] == [
        [f"../../{name}.hivm.mlir", *HIVMC, "-o", "kernel"] for name in names
    ]
    assert set(found.samples) == {"m=1", "m=2", "m=16", "m=64", "m=256", "m=1024"}
    # An eighth of a millisecond for each run, as ACL's events say here: eight calls make one.
    assert {seconds for each in found.samples.values() for seconds in each} == {0.125e-3 / 8}
    log = machine.lines("log")
    assert not [line for line in log if line.startswith("wrong")]
    assert {line.split()[1] for line in log if line.startswith("load")} == set(names)


def test_each_call_of_a_run_reads_a_cache_of_its_own_and_margins_are_watched(
    ascend_toolchain: object, machine: Machine
) -> None:
    machine.knows(DECODE)
    clean, spoiled, kept, count, caches, seconds, *warm = facts(ALONE)
    assert (clean, spoiled) == (None, "3 bytes behind it were written, the nearest 0 bytes away")
    assert kept == [*range(6)]
    assert count == 10
    assert caches == [10, 10]
    assert seconds == pytest.approx(0.125e-3 / 10)
    # Two calls to know how long one takes and eight in a run, each time one before; all of one cache.
    assert warm == [pytest.approx(0.125e-3 / 8), 2 * (1 + 1) + 8 + 1, 1]
    assert not [line for line in machine.lines("log") if line.startswith("wrong")]


def test_a_kernel_that_computes_something_else_is_not_timed(
    ascend_toolchain: object, machine: Machine
) -> None:
    machine.knows(NORM, "arith.mulf", "arith.addf")
    found = machine.trial(NORM)
    assert found.status == "wrong"
    assert "is off by" in found.reason


def test_what_hivmc_refuses_is_told_in_its_words(ascend_toolchain: object, machine: Machine) -> None:
    machine.knows(NORM)
    table = (machine.folder / "table").read_text()
    (machine.folder / "table").write_text(table.replace('"hivm": "', '"hivm": "another '))
    found = machine.trial(NORM)
    assert found.status == "crashed"
    assert "finish.sh made no object of rows:rms_norm: this is not the HIVM" in found.reason
    (machine.folder / "cann" / "version.cfg").unlink()
    assert "rows:rms_norm: finish.sh: " in (said := machine.trial(NORM).reason)
    assert "names no version" in said


def test_what_hivmc_refuses_is_compiled_by_that_machine_from_linalg(
    ascend_toolchain: object, machine: Machine
) -> None:
    """As finish.sh does it in an artifact: so what is measured is what will run."""
    names = machine.knows(NORM)
    table = (machine.folder / "table").read_text()
    (machine.folder / "table").write_text(table.replace('"hivm": "', '"hivm": "planned anew'))
    for name in names:
        (machine.folder / f"{name}.hivm.mlir").write_text(f"planned anew{json.loads(table)[name]['hivm']}")
    planned = f'cp "{machine.folder}/$(basename "$1" .linalg.mlir).hivm.mlir" .'
    script = f"{planned}\nexec hivmc *.hivm.mlir -o kernel"
    program(machine.folder / "cann" / "bin" / "bishengir-compile", script)
    found = machine.trial(NORM)
    assert found.status == "ok", found.reason
    calls = [json.loads(line)[0] for line in machine.lines("calls")]
    assert calls == [f"{folder}{name}.hivm.mlir" for name in names for folder in ("../../", "")]


def test_without_an_npu_nothing_is_taken_for_measured(
    ascend_toolchain: object, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.knows(NORM)
    monkeypatch.setenv("MOEC_SIMULATE", "1")
    found = machine.trial(NORM)
    assert found.status == "crashed"
    assert "does not find the NPU" in found.reason


def test_records_name_the_npu_where_it_is_measured(machine: Machine) -> None:
    other = ["simulated Ascend910B1", "simulated", True, 13]
    assert facts() == [["Ascend910B3", "measured", False, 0], other, "Ascend910B3", False, "measured"]
    simulated = ["simulated Ascend910B3", "simulated", True, 13]
    for settings, why in (
        ({"ASCEND_HOME_PATH": ""}, "hivmc is neither on PATH nor in CANN, which ASCEND_HOME_PATH names"),
        ({"MOEC_SIMULATE": "1"}, "MOEC_SIMULATE is 1"),
    ):
        assert facts(**settings)[0::4] == [simulated, f"simulated: {why}"]
    assert facts(STAND_IN_DEVICES="0")[0] == simulated


@pytest.mark.parametrize("says", ["echo hivmc 1.3.0", "exit 1", "exec echo"])
def test_records_of_another_hivmc_are_not_taken_for_equal(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    """What says nothing of its version is known by its bytes."""
    monkeypatch.setattr(npu, "soc_here", lambda: B3.name)
    one, tool = target("910B3"), Path(str(npu.hivmc()))
    before, same = of_target(one, 1), of_target(one, 1)
    assert one.versions["hivmc"] == "hivmc 1.2.0"
    program(tool, says)
    after = of_target(one, 1)
    assert before.of(NORM) == same.of(NORM)
    assert before.of(NORM) != after.of(NORM)
    assert before.whole != after.whole
    assert before.of(NORM).sources == after.of(NORM).sources, "for log refit and log prune they are no others"
    assert one.versions["hivmc"].startswith("hivmc 1.3.0" if "1.3" in says else "sha256 ")
    monkeypatch.setenv("MOEC_SIMULATE", "1")
    simulated = of_target(one, 1)
    program(tool, "echo hivmc 1.2.0")
    assert of_target(one, 1).of(NORM) == simulated.of(NORM), "nothing is finished by it there"
    assert "hivmc" not in one.versions


def test_tuning_measures_and_what_it_logs_is_fitted_to(ascend_toolchain: object, machine: Machine) -> None:
    machine.knows(Kernel("linear", (("k", 64), ("n", 48), ("wide", 1)), (), "bf16"))
    (machine.folder / "toy.py").write_text(TOY)

    def moec(*words: str) -> Any:
        command = [
            sys.executable,
            "-m",
            "moec.compiler",
            *words,
            "--log",
            str(machine.folder / "own"),
            "--json",
        ]
        place = os.environ | {"PYTHONPATH": str(machine.folder)}
        done = subprocess.run(command, env=place, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    tuned = moec("tune", "toy:model", "--target", "ascend", "--budget", "1t")
    assert "guesses" not in tuned["tuning"]
    log = Log(machine.folder / "own")
    tried = [record for record in log if record.status == "ok"]
    assert tried
    assert {(record.fingerprint.isa, record.fingerprint.cpu) for record in tried} == {(B3.name, B3.name)}
    assert {record.profile for record in tried} == {"standard warm"}, "the model is small"
    for record in tried:  # as if it were not
        log.append(replace(record, profile=PROFILE))
    (found,) = moec("log", "refit")
    assert (found["isa"], found["calls"]) == (B3.name, 6)
    assert found["off"][1] < found["off"][0]


def test_measured_and_simulated_records_are_of_different_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = target("910B3")
    assert of_target(machine, 1).of(NORM).cpu == "simulated Ascend910B3"
    monkeypatch.setattr(npu, "why_simulated", lambda name: "")
    assert of_target(machine, 1).of(NORM).cpu == "Ascend910B3"
