"""The Ascend library's runtime without an NPU: simulated, and over a stand-in for ACL, which checks calls."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from moec.targets.ascend import build, finish
from moec.targets.ascend.emit import emit
from moec.targets.ascend.soc import SOCS
from moec.targets.ascend.space import space
from moec.targets.base import Kernel

from . import ascend_stand_in

HERE = Path(__file__).parent
NEEDED = r"moec: these kernels need an Ascend NPU \(Ascend910B3\); this machine has "
NOTHING_LEFT = "left: 0 allocations, 0 of the host, 0 streams, 0 events, 0 binaries"
SAID = "moec: no NPU here (libascendcl.so is not found): kernels are simulated on this CPU from the vendor"
# On vector cores alone; on cube cores, with a workspace; with what is written in place.
KERNELS = (
    Kernel("rms_norm", (("n", 64), ("width", 80), ("start", 16)), (("eps", 1e-6),), "f32"),
    Kernel("linear_swiglu", (("k", 32), ("n", 96), ("wide", 0)), (), "bf16"),
    Kernel(
        "latent_write",
        (("c", 14), ("r", 8), ("width", 102), ("start", 80), ("pairs_in", 0), ("pairs_out", 0)),
        (("eps", 1e-6),),
        "f32+bf16",
    ),
)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="loads libascendcl.so from LD_LIBRARY_PATH")

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ascend_stand_in.driver(tmp_path_factory.mktemp("acl"))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ascend_stand_in.library(tmp_path_factory.mktemp("ascend"))


@pytest.fixture
def run(library: Path, stand_in: Path, tmp_path: Path) -> Run:
    """Runs scenarios of stand_in_session.py in a process, over the stand-in (npu) or simulated (cpu).

    Gives what they print, the stand-in's log, and what is said on stderr.
    """

    def run(device: str, *scenarios: str, path: Path | None = None, **settings: str) -> Any:
        log = tmp_path / "log"
        found = path or (stand_in.parent if device == "npu" else tmp_path)
        environment = {**os.environ, **settings, "LD_LIBRARY_PATH": str(found), "STAND_IN_LOG": str(log)}
        command = [sys.executable, str(HERE / "stand_in_session.py"), str(library), device, *scenarios]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = log.read_text().splitlines() if log.exists() else []
        assert not [line for line in lines if line.startswith("wrong")]
        return json.loads(done.stdout), lines, done.stderr

    return run


@pytest.mark.parametrize("device", ["npu", "cpu"])
def test_sessions(run: Run, device: str) -> None:
    seen, lines, _ = run(device, "plain", "bound", "two_sessions", "two_threads", "bad_shapes")
    assert seen["plain"] == [True] * 5
    assert seen["bound"] == {"right": [True] * 4, "cache": [0, 16, 32, 48, 7, 7]}
    assert seen["two_sessions"] == [True] * 8
    assert seen["two_threads"] == [True] * 2
    assert "write: input 3 holds 6 elements; 2 were expected" in seen["bad_shapes"][0]
    assert re.search(r"write: the attention mask covers 7 .* cache's 6 rows", seen["bad_shapes"][1])
    if device == "npu":
        assert lines[-1].startswith(NOTHING_LEFT)
        assert {line.split()[1] for line in lines if line.startswith("load")} == {
            *("gather", "sum", "scale", "widen", "append")
        }
    else:
        assert not lines


def test_that_it_is_simulated_is_said_once_and_is_metadata(run: Run) -> None:
    seen, _, said = run("cpu", "two_sessions", "simulated")
    assert said.count(SAID) == said.count("times mean nothing") == 1
    assert seen["simulated"] == ["1", 1, -1.0]
    seen, _, said = run("npu", "two_sessions", "simulated")
    assert "simulated" not in said
    assert seen["simulated"] == ["0", 0, 125.0]


def test_memory_is_used_again(run: Run) -> None:
    seen, lines, _ = run("npu", "many_shapes")
    assert sum(line.startswith("allocate") for line in lines) < seen["many_shapes"] / 2


def test_a_workspace_and_locks_are_of_the_launch_alone(run: Run) -> None:
    _, lines, _ = run("npu", "plain")
    grids = {line.split()[1]: line.split()[-1] for line in lines if line.startswith("launch")}
    # So the stand-in has seen 96 bytes for each of 20 blocks, and locks that are zero though it spoils them.
    assert grids["sum"] == "20"


@pytest.mark.parametrize("device", ["npu", "cpu"])
def test_kernels_timed_one_by_one(run: Run, device: str) -> None:
    seen, _, _ = run(device, "clocked")
    before, after = seen["clocked"].pop("counts")
    assert seen["clocked"] == {"right": [True] * 4, "cache": [0, 16, 32, 48, 7, 7]}
    assert before == [[0, 0]] * 4
    if device == "npu":
        assert after == [[4, 500]] * 4
    else:
        assert [calls for calls, _ in after] == [4] * 4


@pytest.mark.parametrize("device", ["npu", "cpu"])
def test_other_nodes_before_and_after(run: Run, device: str) -> None:
    seen, _, _ = run(device, "mixed")
    assert seen["mixed"] == [True, "nothing"]  # a wish for graphs is not heard


@pytest.mark.parametrize("device", ["npu", "cpu"])
def test_kernels_without_onnxruntime(run: Run, device: str) -> None:
    seen, _, _ = run(device, "direct")
    assert seen["direct"] == {
        "right": True,
        "said": [
            None,
            None,
            "add: output 0 holds 64 elements; 72 were expected",
            "add: input 2 holds 0 elements; 64 were expected",
            "moec: there are 4 kernels, so none is number 9",
            "add: input 0 is of type 1; 16 was expected",
            "write: a cache and its successor overlap; they must be one buffer or have nothing in common",
        ],
    }


def test_more_blocks_than_can_be_launched(run: Run) -> None:
    for device in ("npu", "cpu"):
        seen, _, _ = run(device, "too_many_rows")
        assert "widen cannot run on a grid of 66000 x 1 x 1: too much at once" in seen["too_many_rows"]


def test_no_memory(run: Run) -> None:
    seen, _, _ = run("npu", "out_of_memory", STAND_IN_MEMORY="100000")
    assert "add: no memory for 48000 bytes of scratch" in seen["out_of_memory"]


def test_kernels_that_were_not_finished(run: Run, library: Path) -> None:
    there = library.parent / "ascend" / "widen.o"
    away = there.rename(there.with_suffix(".away"))
    try:
        seen, _, _ = run("npu", "unfinished")
        assert f"wide: widen cannot be loaded: {there} is not there;" in seen["unfinished"]
        assert "on a machine with CANN, run ascend/finish.sh first" in seen["unfinished"]
        seen, _, _ = run("cpu", "plain")
        assert seen["plain"] == [True] * 5
    finally:
        away.rename(there)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"STAND_IN_DEVICES": "0"}, "none; MOEC_SIMULATE=1 has kernels simulated on this CPU"),
        ({"STAND_IN_SOC": "Ascend910B4"}, "Ascend910B4; compile again on this machine"),
    ],
    ids=["no NPU", "another NPU"],
)
def test_what_is_missing_is_said(run: Run, settings: Mapping[str, str], why: str) -> None:
    seen, _, _ = run("npu", "refused", **settings)
    for said in seen["refused"]:
        assert re.search(NEEDED + why, said)


def test_a_cann_that_cannot_be_loaded_is_no_reason_to_simulate(run: Run, tmp_path: Path) -> None:
    (tmp_path / "libascendcl.so").write_text("no library")
    seen, _, said = run("npu", "refused", path=tmp_path)
    for each in seen["refused"]:
        assert re.search(NEEDED + r"no CANN that can be used \(.*libascendcl.so.*\)", each)
    assert "simulated" not in said


def test_simulating_can_be_wished_for_and_forbidden(run: Run) -> None:
    seen, lines, said = run("npu", "simulated", "plain", MOEC_SIMULATE="1")
    assert seen == {"simulated": ["1", 1, -1.0], "plain": [True] * 5}
    assert "moec: MOEC_SIMULATE is 1: kernels are simulated on this CPU" in said
    assert not [line for line in lines if line.startswith("launch")]
    seen, _, said = run("cpu", "refused", MOEC_SIMULATE="0")
    for each in seen["refused"]:
        assert re.search(NEEDED + r"no CANN that can be used \(libascendcl.so: cannot open", each)
    assert "simulated" not in said


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.kind)
def test_real_kernels_without_onnxruntime(
    kernel: Kernel, ascend_toolchain: object, stand_in: Path, tmp_path: Path
) -> None:
    """Emitted, linked and finished; each call that is compared with float64, by both ways."""
    soc = SOCS[0]
    emitted = [emit(kernel, space(kernel, soc).defaults, soc)]
    library = build.link(emitted, tmp_path / "libmoec_ascend.so", soc)
    for name, content in finish.files(emitted, soc, library.name, {}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert ascend_stand_in.finish(tmp_path / "ascend")
    numbers = [f"{name}={number}" for name, number in (*kernel.dims, *kernel.reals)]
    for device, path in (("npu", stand_in.parent), ("cpu", tmp_path)):
        settings = {"LD_LIBRARY_PATH": str(path), "STAND_IN_LOG": str(tmp_path / "log")}
        command = [
            sys.executable,
            "-m",
            "tests.targets.stand_in_launch",
            library,
            device,
            kernel.kind,
            *numbers,
        ]
        done = subprocess.run(
            list(map(str, command)),
            cwd=HERE.parents[1],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads(done.stdout)
        assert len(found) > 5
        assert set(found.values()) == {None}, found
    lines = (tmp_path / "log").read_text().splitlines()
    assert not [line for line in lines if line.startswith("wrong")]
    assert [line for line in lines if line.startswith("launch") and "copying" not in line]


def test_an_old_onnxruntime_is_told(run: Run) -> None:
    seen, _, _ = run("cpu", "old_onnxruntime")
    assert seen["old_onnxruntime"] == "moec: these kernels need onnxruntime 1.27 or newer, this is 1.22.0"
