"""Products of fp8 for CUDA without a GPU: regions have kernels, spaces and operands, code stays in bounds."""

from __future__ import annotations

import pickle
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnxruntime
import pytest

from moec.compiler import library, slices
from moec.compiler.interpret import interpret
from moec.compiler.ir import DTYPES, Graph, Miss, Node, Value
from moec.compiler.onnx_graph import frontier, to_onnx
from moec.compiler.ops.elementwise import CAST
from moec.compiler.ops.region import REGION, inline
from moec.compiler.ops.sources import INPUT
from moec.compiler.pipeline import run
from moec.compiler.rounding import Rounding, stored_weights
from moec.compiler.source import resolve
from moec.compiler.trace import Traced, trace
from moec.passes.caches import NarrowCaches
from moec.passes.precision import FP8, Precision
from moec.targets.base import BUCKETS, CannotBuild, Emitted, Kernel, Schedule
from moec.targets.bf16 import MATMULS, kernel_of
from moec.targets.cases_bf16 import Sample
from moec.targets.cases_quantized import Codes
from moec.targets.cuda import build, fp8_tiles, sm
from moec.targets.cuda.bundle import from_bytes
from moec.targets.cuda.space import space
from moec.targets.cuda.target import Target

from ..device.kernels import ODD

SM = sm.named("sm_90a")
MACHINE = Target(SM)
SPILLED = 16  # bytes of a thread, at most


def kernel(kind: str, **dims: int) -> Kernel:
    return Kernel(kind, tuple(dims.items()), (), "fp8")


MAIN = (
    kernel("grouped_swiglu", k=2048, n=1536, experts=128, share=8),
    kernel("grouped_swiglu", k=7168, n=4096, experts=257, share=9),
    kernel("grouped_swiglu", k=2048, n=2816, experts=64, share=6),
    kernel("grouped_combine", k=768, n=2048, experts=128, share=8, base=0),
    kernel("grouped_combine", k=2048, n=7168, experts=257, share=9, base=1),
    kernel("grouped_combine", k=1408, n=2048, experts=64, share=6, base=0),
    kernel("linear", k=1536, n=24576, wide=0),
    kernel("linear_add", k=10944, n=2048, wide=0),
    kernel("linear_swiglu", k=2048, n=21888, wide=0),
)
# One of each function there is: stores of 16 bytes and single ones, residuals, results in f32, parts of k.
SMALL = {
    "stores of 16 bytes": kernel("linear_add", k=144, n=64, wide=0),
    "single stores": kernel("linear_add", k=16, n=37, wide=1),
    "experts": kernel("grouped_swiglu", k=48, n=80, experts=6, share=3),
    "tokens": kernel("grouped_combine", k=32, n=40, experts=5, share=2, base=2),
}


@pytest.mark.parametrize("one", [*MAIN, *SMALL.values(), *ODD], ids=str)
def test_every_default_can_run(one: Kernel) -> None:
    each = space(one, SM)
    assert each.objection_to(each.defaults) is None
    assert set(each.defaults) <= set(BUCKETS)
    for knob in each.choices:
        assert knob in str(each.objection({**each.default, knob: -1}))


@pytest.mark.parametrize("one", MAIN[:6], ids=str)
def test_few_tokens_have_as_much_on_the_way_as_fits(one: Kernel) -> None:
    schedule = space(one, SM).default
    t = fp8_tiles.tiles_of(one, schedule, SM)
    ring = t.per_sm * t.stages * t.parts * t.cols * fp8_tiles.DEPTH
    assert ring > SM.shared_bytes * 0.6
    deeper = {**schedule, "t_stages": t.stages + 1}
    assert space(one, SM).objection(deeper)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"t_stages": 12}, "bytes of shared memory"),
        ({"t_rows": 128, "t_blocks": 2, "t_stages": 2}, "registers a thread"),
        ({"t_split": 2}, "t_split=2 is not among [1]"),
    ],
)
def test_what_cannot_run_is_told(changed: dict[str, int], why: str) -> None:
    each = space(MAIN[0], SM)
    assert why in str(each.objection({**each.default, **changed}))


def test_rows_of_no_whole_16_bytes_have_no_schedule() -> None:
    each = space(kernel("linear", k=24, n=64, wide=0), SM)
    assert "k=24 is no multiple of 16" in str(each.objection(each.default))


def test_parts_of_k_have_steps_each() -> None:
    each = space(kernel("linear", k=384, n=64, wide=0), SM)
    assert each.objection({**each.default, "t_split": 2}) is None
    assert "too few steps of 128 for 4 parts" in str(each.objection({**each.default, "t_split": 4}))


def admitted(one: Kernel) -> Iterator[Schedule]:
    """Schedules drawn from the space, as far as its rules let them pass; the same at every run."""
    known, source = space(one, SM), random.Random(str(one))
    for _ in range(4000):
        schedule = {knob: source.choice(list(values)) for knob, values in known.choices.items()}
        if known.objection(schedule) is None:
            yield schedule


def jobs() -> dict[tuple[str, str], Schedule]:
    """Defaults for one token and for many, one drawn from the space, and one with parts of k."""
    found = {(name, "default"): space(one, SM).default for name, one in SMALL.items()}
    many = ("experts", "tokens")
    found |= {(name, "many"): [*space(SMALL[name], SM).defaults.values()][-1] for name in many}
    found |= {(name, "drawn"): next(admitted(SMALL[name])) for name in ("single stores", "tokens")}
    split = {**found["stores of 16 bytes", "default"], "t_split": 2}
    return {**found, ("stores of 16 bytes", "split"): split}


JOBS = jobs()


def at_once(job: tuple[str, str]) -> bool:
    """Whether blocks of the product round tokens, and no step before it."""
    return fp8_tiles.inline(JOBS[job])


@pytest.fixture(scope="module")
def emitted(home: Path) -> dict[tuple[str, str], Emitted]:
    """All of them compiled, in processes of their own."""
    try:
        made = library.emit_all(MACHINE, [(SMALL[name], {1: each}) for (name, _), each in JOBS.items()])
    except CannotBuild as cannot:
        if "nvcc is neither" in str(cannot):
            pytest.skip(str(cannot))
        raise
    return dict(zip(JOBS, made))


@pytest.mark.parametrize("job", JOBS, ids=" ".join)
def test_it_compiles_within_the_limits(emitted: Mapping[tuple[str, str], Emitted], job: Any) -> None:
    bundle = from_bytes(emitted[job].object_code)
    before, after = not at_once(job), job[0] == "tokens" or job[1] == "split"
    assert len(bundle.launches[1]) == before + 1 + after
    for launch in bundle.launches[1]:
        needs, threads = bundle.resources[launch.image], int(launch.block[0])
        assert needs.spilled <= SPILLED or job[1] == "drawn", launch.entry
        assert 0 < needs.registers * threads <= SM.registers, launch.entry
        assert int(launch.shared) + needs.shared <= SM.shared_bytes, launch.entry


@pytest.mark.parametrize("job", JOBS, ids=" ".join)
def test_shared_memory_is_what_the_rules_reckon_with(
    emitted: Mapping[tuple[str, str], Emitted], job: Any
) -> None:
    t = fp8_tiles.tiles_of(SMALL[job[0]], JOBS[job], SM)
    bundle = from_bytes(emitted[job].object_code)
    launch = bundle.launches[1][0 if at_once(job) else 1]
    taken = int(launch.shared) + bundle.resources[launch.image].shared
    assert taken <= fp8_tiles.shared_bytes(t, at_once(job)) <= taken + 5 * 1024


@pytest.mark.parametrize("job", JOBS, ids=" ".join)
def test_every_operand_is_read(emitted: Mapping[tuple[str, str], Emitted], job: Any) -> None:
    launches = from_bytes(emitted[job].object_code).launches[1]
    ports = {each.port for launch in launches for each in launch.arguments if each.port[:1] in ("x", "y")}
    operands = Sample(SMALL[job[0]]).example(1).operands
    assert ports == {"y0", *(f"x{i}" for i in range(len(operands)))}


@pytest.mark.parametrize("job", [job for job in JOBS if not at_once(job)], ids=" ".join)
def test_scales_of_experts_have_room_to_begin_earlier(
    emitted: Mapping[tuple[str, str], Emitted], job: Any
) -> None:
    """An expert's rows begin anywhere, but the innermost coordinate of a bulk copy at whole 16 bytes."""
    t = fp8_tiles.tiles_of(SMALL[job[0]], JOBS[job], SM)
    arguments = from_bytes(emitted[job].object_code).launches[1][1].arguments
    maps = {each.port: each.map for each in arguments if each.map}
    assert maps["s1"].box == (str(t.rows + 4 * t.ragged), "1")


def test_scales_of_experts_are_loaded_from_whole_16_bytes_on() -> None:
    """Anywhere else is an illegal instruction. Sources are written in a process that has no other TVM."""
    program = (
        "import pickle, sys\n"
        "from moec.targets.cuda import emit, sm\n"
        "for asked in pickle.load(sys.stdin.buffer):\n"
        "    print('--- source', emit.sources(*asked, sm.named('sm_90a'))[1])\n"
    )
    kernels = [SMALL[name] for name in ("experts", "tokens")]
    asked = pickle.dumps([(one, {**space(one, SM).default, "t_inline": 0}) for one in kernels])
    done = subprocess.run([sys.executable, "-c", program], input=asked, capture_output=True, check=True)
    _, *sources = done.stdout.decode().split("--- source")
    assert len(sources) == len(kernels)
    for source in sources:
        load = re.search(r"tma_load\(s1_desc, .*, (\w+), \w+\);", source)
        assert load, source
        assert f"int {load[1]} = (at[1] - (at[1] & 3));" in source


def test_they_become_one_library(emitted: Mapping[tuple[str, str], Emitted], tmp_path: Path) -> None:
    """Its kinds take codes as bytes, with scales in f32 behind them."""
    build.link([emitted[name, "default"] for name in SMALL], tmp_path / "lib.so", SM)


@pytest.fixture(scope="module", params=("deepseek_v3", "qwen3_moe"))
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Traced, Graph, list[Miss]]:
    """A tiny model after all passes."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    models.save(folder, request.param)
    traced, misses = trace(resolve(str(folder))), list[Miss]()
    passes = (NarrowCaches(), *MACHINE.passes, Precision(FP8, MACHINE.formats, MACHINE.widest))
    graph, _ = run(traced.graph, passes, misses=misses)
    return traced, graph, misses


def coded(graph: Graph) -> dict[Kernel, Node]:
    """The regions whose weights are fp8."""
    found = {kernel_of(node): node for node in graph if node.op is REGION}
    return {one: node for one, node in found.items() if one.weights == "fp8"}


def test_regions_have_a_kernel_and_operands_of_its_types(compiled: tuple[Traced, Graph, list[Miss]]) -> None:
    _, graph, misses = compiled
    found = coded(graph)
    assert {one.kind for one in found} >= {"grouped_swiglu", "grouped_combine"}
    assert all(one.kind in MATMULS for one in found)
    assert {kernel_of(node).weights for node in graph if node.op is REGION} <= {"fp8", "bf16", "f32"}
    for one, node in found.items():
        body, example = node.attrs["body"], Sample(one).example(3)
        assert space(one, SM).objection_to(space(one, SM).defaults) is None
        assert [each.dtype for each in example.operands] == [DTYPES[x.type.dtype] for x in body.inputs]
        assert list(example.dtypes) == [DTYPES[y.type.dtype] for y in body.outputs]
    for miss in misses:
        assert "is bf16, not fp8: its rows of " in str(miss)
        assert "are not whole groups of 16" in str(miss)


def ranked(given: Any, value: Value) -> Any:
    """With as many axes as a value has: one more for a batch."""
    return given.reshape((1,) * (value.type.rank - given.ndim) + given.shape)


def test_references_are_what_regions_say(compiled: tuple[Traced, Graph, list[Miss]]) -> None:
    """Both round activations alike, also where a quotient falls between two codes: f32 says to which."""
    for one, node in coded(compiled[1]).items():
        body, example = node.attrs["body"], Sample(one).example(5)
        feeds = {f"x{i}": ranked(given, x) for i, (x, given) in enumerate(zip(body.inputs, example.operands))}
        for mine, its in zip(example.results, interpret(body, feeds, {}).values()):
            found = its.reshape(mine.shape).astype(np.float64)
            np.testing.assert_allclose(found, mine, rtol=4e-3, atol=1e-5 * np.abs(mine).max())


def test_standard_ops_stand_in_for_the_kernels(compiled: tuple[Traced, Graph, list[Miss]]) -> None:
    """In onnxruntime, with experts unpacked one at a time."""
    for one, node in coded(compiled[1]).items():
        body, example = node.attrs["body"], Sample(one).example(5)
        entries = [INPUT(name=f"x{i}", dtype="f32" if x.type.dtype == "bf16" else x.type.dtype, shape=x.shape)
                   for i, x in enumerate(body.inputs)]  # fmt: skip
        meant = [x if x.type.dtype == y.type.dtype else CAST(x, dtype="bf16")
                 for x, y in zip(entries, body.inputs)]  # fmt: skip
        results = tuple(CAST(y, dtype="f32") for y in inline(body, meant))
        model = to_onnx(Graph(tuple(entries), results, ("y",)), {}, lambda node: None)
        session = onnxruntime.InferenceSession(model.SerializeToString())
        feeds = {x.node.attrs["name"]: ranked(given, x).astype(DTYPES[x.type.dtype])
                 for x, given in zip(entries, example.operands)}  # fmt: skip
        (its,), (mine,) = session.run(None, feeds), example.results
        np.testing.assert_allclose(its.reshape(mine.shape), mine, rtol=4e-3, atol=1e-5 * np.abs(mine).max())


def test_the_error_of_weights_is_measured(compiled: tuple[Traced, Graph, list[Miss]]) -> None:
    traced, graph, _ = compiled
    rounding = Rounding()
    for _, parts in slices.evaluated(frontier(graph), traced.weights, rounding.observe):
        list(parts)
    rows = [each for each in stored_weights(graph, rounding) if each.format == "fp8"]
    assert rows
    for each in rows:
        assert each.error is not None
        assert 0.01 < each.error < 0.04, each


def test_rows_of_a_random_weight_are_those_of_the_whole() -> None:
    weights = Sample(kernel("linear", k=144, n=300, wide=0)).weights
    whole = Codes(weights[1], weights[2])
    np.testing.assert_array_equal(whole[128:300].astype(np.float64), whole.astype(np.float64)[128:])
    assert np.isfinite(whole.astype(np.float32)).all()
