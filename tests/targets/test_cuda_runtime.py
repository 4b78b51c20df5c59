"""The CUDA library's runtime without a GPU: sessions over a stand-in for the driver, which checks calls."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from moec.targets import native
from moec.targets.cuda.build import EXPORTS, RUNTIME

HERE = Path(__file__).parent
NEEDED = r"these kernels need an NVIDIA GPU of compute capability 9.0 \(sm_90a\)"
NOTHING_LEFT = "left: 0 allocations, 0 of the host, 0 streams, 0 events, 0 graphs, 0 modules"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="loads libcuda.so.1 from LD_LIBRARY_PATH")

# As targets/cuda/table.py writes it: embed, add (more than 4 rows by way of scratch memory and a tensor map),
# write, wide.
TABLE = r"""
#include "launch.h"
namespace moec {
extern const char* const sm_name;
extern const int sm_major, sm_minor;
const char* const sm_name = "sm_90a";
const int sm_major = 9, sm_minor = 0;
namespace kind { extern const Kind embedding, linear_add, append, linear_wide; }
static const unsigned char image0[] = "gather pppii;";
static const unsigned char image1[] = "sum pppi;copy mpi;";
static const unsigned char image2[] = "append pppiiiii;widen ppi;";
static const int64_t none[] = {0};
static const double reals[] = {0};
static int64_t nothing(const Run&, int) { return 0; }

static Function gather{image0, "gather"};
static void embed0(Run& run) {
  const int64_t m = run.size(kM);
  void *a0 = run.x(0), *a1 = run.x(1), *a2 = run.y(0);
  int32_t a3 = int32_t(m), a4 = 8;
  void* arguments[] = {&a0, &a1, &a2, &a3, &a4};
  run.launch(gather, {m, 1, 1}, {32, 1, 1}, 0, true, arguments);
}
static Step* const embed_steps[] = {embed0};
static const Program embed{embed_steps, 1, nothing, 0};
static void* const embed_functions[] = {(void*)&embed};
static const int64_t embed_dims[] = {4, 8};
static const Variant embed_variants[] = {{INT64_MAX, none, embed_functions}};

static Function sum{image1, "sum"}, copy{image1, "copy"};
static void add0(Run& run) {
  const int64_t m = run.size(kM);
  void *a0 = run.x(0), *a1 = run.x(2), *a2 = run.y(0);
  int32_t a3 = int32_t(m * 8);
  void* arguments[] = {&a0, &a1, &a2, &a3};
  run.launch(sum, {m, 1, 1}, {32, 1, 1}, 0, false, arguments);
}
static void add1_0(Run& run) {
  const int64_t m = run.size(kM);
  const TensorMap a0 = run.map(run.x(0), {9, 2, {8, m}, {16}, {8, 64}, {1, 1}, 0, 0, 2, 0});
  void* a1 = run.s(0);
  int32_t a2 = int32_t(m * 8);
  void* arguments[] = {(void*)&a0, &a1, &a2};
  run.launch(copy, {1, (m + 63) / 64, 1}, {128, 1, 1}, 100000, true, arguments);
}
static void add1_1(Run& run) {
  const int64_t m = run.size(kM);
  void *a0 = run.s(0), *a1 = run.x(2), *a2 = run.y(0);
  int32_t a3 = int32_t(m * 8);
  void* arguments[] = {&a0, &a1, &a2, &a3};
  run.launch(sum, {m, 1, 1}, {32, 1, 1}, 0, true, arguments);
}
static int64_t add1_scratch(const Run& run, int i) { return i == 0 ? run.size(kM) * 16 : 0; }
static Step* const add0_steps[] = {add0};
static Step* const add1_steps[] = {add1_0, add1_1};
static const Program add0_program{add0_steps, 1, nothing, 0}, add1_program{add1_steps, 2, add1_scratch, 1};
static void* const add0_functions[] = {(void*)&add0_program};
static void* const add1_functions[] = {(void*)&add1_program};
static const int64_t add_dims[] = {8, 8, 0}, wide_dims[] = {8, 8, 1};
static const Variant add_variants[] = {{4, none, add0_functions}, {INT64_MAX, none, add1_functions}};

static Function append{image2, "append"}, widen{image2, "widen"};
static void write0(Run& run) {
  const int64_t batch = run.size(kBatch), tokens = run.size(kTokens), room = run.size(kRoom);
  void *a0 = run.x(1), *a1 = run.x(3), *a2 = run.y(0);
  int32_t a3 = int32_t(batch), a4 = int32_t(tokens), a5 = int32_t(room), a6 = 8, a7 = 1;
  void* arguments[] = {&a0, &a1, &a2, &a3, &a4, &a5, &a6, &a7};
  run.launch(append, {batch, tokens, 1}, {32, 1, 1}, 0, true, arguments);
}
static Step* const write_steps[] = {write0};
static const Program write{write_steps, 1, nothing, 0};
static void* const write_functions[] = {(void*)&write};
static const int64_t write_dims[] = {1, 8};
static const Variant write_variants[] = {{INT64_MAX, none, write_functions}};

static void wide0(Run& run) {
  const int64_t m = run.size(kM);
  void *a0 = run.x(0), *a1 = run.y(0);
  int32_t a2 = int32_t(m * 8);
  void* arguments[] = {&a0, &a1, &a2};
  run.launch(widen, {m, 1, 1}, {32, 1, 1}, 0, true, arguments);
}
static Step* const wide_steps[] = {wide0};
static const Program wide{wide_steps, 1, nothing, 0};
static void* const wide_functions[] = {(void*)&wide};
static const Variant wide_variants[] = {{INT64_MAX, none, wide_functions}};

const Row rows[] = {
    {"embed", &kind::embedding, embed_dims, reals, 1, embed_variants},
    {"add", &kind::linear_add, add_dims, reals, 1, add_variants},
    {"write", &kind::append, write_dims, reals, 1, write_variants},
    {"wide", &kind::linear_wide, wide_dims, reals, 1, wide_variants},
};
const size_t row_count = 4;
}  // namespace moec
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, and the stand-in for the driver."""
    folder = tmp_path_factory.mktemp("cuda")
    native.link(RUNTIME, TABLE, {}, EXPORTS, folder / "libmoec_cuda.so")
    flags = ("-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror")
    driver = folder / "libcuda.so.1"
    native.run(native.find_compiler(), *flags, HERE / "stand_in_cuda.cc", "-o", driver)
    return folder


Run = Callable[..., Any]


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Run:
    """Runs scenarios of stand_in_session.py in a process; gives what they print, and the stand-in's log."""

    def run(*scenarios: str, driver: Path = folder, **settings: str) -> tuple[Any, list[str]]:
        log = tmp_path / "log"
        environment = {**os.environ, **settings, "LD_LIBRARY_PATH": str(driver), "STAND_IN_LOG": str(log)}
        library = str(folder / "libmoec_cuda.so")
        command = [sys.executable, str(HERE / "stand_in_session.py"), library, "gpu", *scenarios]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = log.read_text().splitlines() if log.exists() else []
        assert not [line for line in lines if line.startswith("wrong")]
        return json.loads(done.stdout), lines

    return run


def launches(lines: Sequence[str], word: str) -> list[list[str]]:
    """The memory of every kernel that was launched, or captured."""
    found = [
        re.findall("0x[0-9a-f]+", line) for line in lines if line.startswith(word) and "copying" not in line
    ]
    return [each for each in found if each]


def test_sessions(run: Run) -> None:
    seen, lines = run("plain", "bound", "two_sessions", "two_threads", "bad_shapes")
    assert seen["plain"] == [True] * 5
    assert seen["bound"] == {"right": [True] * 4, "cache": [0, 16, 32, 48, 7, 7]}
    assert seen["two_sessions"] == [True] * 8
    assert seen["two_threads"] == [True] * 2
    assert "write: input 3 holds 6 elements; 2 were expected" in seen["bad_shapes"][0]
    assert re.search(r"write: the attention mask covers 7 .* cache's 6 rows", seen["bad_shapes"][1])
    assert lines[-1].startswith(NOTHING_LEFT)
    assert any(line.endswith("overlapping") for line in lines)


def test_memory_is_used_again(run: Run) -> None:
    seen, lines = run("many_shapes")
    assert sum(line.startswith("allocate") for line in lines) < seen["many_shapes"] / 2


def test_graphs(run: Run) -> None:
    seen, lines = run("graph")
    assert seen["graph"] == {"right": [True] * 8, "cache": [0, 16, 32, 48, 0, 16], "elapsed": 125.0}
    assert lines.count("begin capture") == lines.count("end capture") == 2
    assert lines.count("launch graph") == 7
    first, second = (i for i, line in enumerate(lines) if line == "begin capture")
    assert not any("allocate" in line for line in lines[first : lines.index("end capture")])
    # What the first graph writes to is nobody else's, but for what the caller bound.
    captured = launches(lines[first:second], "capture")
    later = launches(lines[first:second], "launch") + launches(lines[second:], "capture")
    e, a = captured[0][2], captured[1][2]
    assert later
    assert not {e, a} & {memory for each in later for memory in each}
    assert lines[-1].startswith(NOTHING_LEFT)


def test_kernels_timed_one_by_one(run: Run) -> None:
    seen, lines = run("clocked")
    assert seen["clocked"] == {
        "right": [True] * 4,
        "cache": [0, 16, 32, 48, 7, 7],
        "counts": [[[0, 0]] * 4, [[4, 500]] * 4],
    }
    assert "begin capture" not in lines


def test_a_graph_keeps_to_the_gpus_memory(run: Run) -> None:
    seen, lines = run("graph_to_host_memory", "mixed")
    refused, *well = seen["graph_to_host_memory"]
    assert "a CUDA graph reads and writes the GPU's memory only; bind all inputs and outputs there" in refused
    assert well == ["nothing"] * 3
    assert seen["mixed"][0] is True
    assert "not been assigned to MoecCudaExecutionProvider" in seen["mixed"][1]
    assert lines[-1].startswith(NOTHING_LEFT)


def test_kernels_without_onnxruntime(run: Run) -> None:
    seen, _ = run("direct")
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


def test_no_memory(run: Run) -> None:
    seen, _ = run("out_of_memory", STAND_IN_MEMORY="100000")
    assert "add: no memory for 48000 bytes of scratch" in seen["out_of_memory"]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"STAND_IN_DEVICES": "0"}, r"none that can be used \(no CUDA-capable device is detected\)"),
        ({"STAND_IN_CAPABILITY": "8.0"}, "one of 8.0; compile again on this machine"),
    ],
    ids=["no GPU", "another GPU"],
)
def test_what_is_missing_is_said(run: Run, settings: Mapping[str, str], why: str) -> None:
    seen, _ = run("refused", **settings)
    for said in seen["refused"]:
        assert re.search(f"moec: {NEEDED}; this machine has {why}", said)


def test_no_driver(run: Run, tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_text("no library")
    seen, _ = run("refused", driver=tmp_path)
    for said in seen["refused"]:
        assert re.search(f"moec: {NEEDED}; this machine has no NVIDIA driver \\(.*libcuda.so.1.*\\)", said)


def test_an_old_onnxruntime_is_told(run: Run) -> None:
    seen, _ = run("old_onnxruntime")
    assert seen["old_onnxruntime"] == "moec: these kernels need onnxruntime 1.27 or newer, this is 1.22.0"
