"""Linear layers and experts with weights of 4 and 8 bits, against float64 on the numbers the codes mean."""

from __future__ import annotations

import ctypes
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tvm
from arrays import CHOICES

from moec.compiler.bench import Counter
from moec.targets.base import Kernel, Schedule
from moec.targets.cases import operands
from moec.targets.cpu import isa
from moec.targets.cpu.device import Bench, Device
from moec.targets.cpu.emit import compiled
from moec.targets.cpu.kernels import amx, quantized
from moec.targets.cpu.sample import affordable, pack
from moec.targets.cpu.space import space
from moec.targets.sample import deviation

Build = Callable[..., Bench]
KINDS = ("linear", "linear_add", "linear_swiglu", "grouped_swiglu", "grouped_combine")
FORMATS = ("int4", "int8")
EXPERTS, SHARE = 8, 3
MOST = {"int4": (-8, 7), "int8": (-127, 127)}
# Codes and their sums are exact and the scaling is float32: far less is left than the tolerance of a trial.
CLOSE = 2e-6
# Tall tiles of AMX round what they multiply to 16 bits and leave out what is below.
FOLDED = 2e-4
LEVELS = [level for level in isa.ISAS if isa.supports(level)]
FEW = 3  # rows of a tile: enough to have several heights, and quick to compile


def kernel_of(kind: str, weights: str, k: int, n: int, base: int = 1) -> Kernel:
    """A kernel; n is even where it must be."""
    n += n % 2 if kind.endswith("swiglu") else 0
    dims = [("k", k), ("n", n)]
    if kind.startswith("grouped"):
        dims += [("experts", EXPERTS), ("share", SHARE)]
    return Kernel(kind, tuple([*dims, ("base", base)] if kind == "grouped_combine" else dims), dtype=weights)


def error(
    bench: Bench, feeds: Sequence[np.ndarray], weights: Mapping[int, np.ndarray] | None = None
) -> float:
    """The largest error, of the largest value; NaN where something was not written."""
    wanted = bench.case.reference(bench.kernel, operands(feeds, weights or bench.weights))
    return max(deviation(mine, its) for mine, its in zip(bench.run(feeds, wanted), wanted))


def close(level: isa.Isa) -> float:
    """How close results are to the reference's."""
    return FOLDED if level.dot == amx.INSTRUCTION else CLOSE


@contextmanager
def weights_of(bench: Bench, codes: np.ndarray, scales: np.ndarray) -> Iterator[Mapping[int, np.ndarray]]:
    """The bench with weights of the test's choice."""
    place = min(bench.weights)
    weights = {place: codes.astype(np.int8), place + 1: scales.astype(np.float16)}
    saved = bench.packed
    bench.__dict__["packed"] = pack(bench.kernel, bench.schedule, weights)
    try:
        yield weights
    finally:
        bench.__dict__["packed"] = saved


@pytest.fixture(params=LEVELS, ids=str)
def every_level(request: pytest.FixtureRequest) -> isa.Isa:
    """Each instruction set this machine runs: they sum products of bytes each in its way."""
    level: isa.Isa = request.param
    return level


@pytest.fixture(params=[LEVELS[0], LEVELS[-1]], ids=str)
def level(request: pytest.FixtureRequest) -> isa.Isa:
    """The most and the least of them, where what is tried is how tiles are put together."""
    level: isa.Isa = request.param
    return level


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize(("k", "n"), [(32, 1), (160, 77)])
def test_any_count_of_rows(kind: str, weights: str, k: int, n: int, level: isa.Isa, build: Build) -> None:
    bench = build(kernel_of(kind, weights, k, n), level, mr=FEW)
    for rows in (*range(FEW + 2), 7, 33):
        assert (rows, error(bench, bench.feeds(rows)) <= close(level)) == (rows, True)


@pytest.mark.parametrize(("kind", "weights"), [("linear_add", "int8"), ("grouped_swiglu", "int4")])
def test_every_height_at_the_size_of_a_model(kind: str, weights: str, level: isa.Isa, build: Build) -> None:
    bench = build(kernel_of(kind, weights, 2048, 704), level)
    for rows in range(1, int(bench.schedule["mr"]) + 1):
        assert (rows, error(bench, bench.feeds(rows)) <= close(level)) == (rows, True)


@pytest.mark.parametrize("kind", ["grouped_swiglu", "grouped_combine"])
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("chosen", CHOICES.values(), ids=CHOICES)
def test_experts_without_tokens(
    kind: str, weights: str, chosen: Sequence[Sequence[int]], level: isa.Isa, build: Build
) -> None:
    bench = build(kernel_of(kind, weights, 64, 96), level, mr=FEW, grain=1, group=16)
    feeds = bench.feeds(len(chosen))
    flat = np.array(chosen, np.int64).reshape(-1)
    feeds[1] = np.argsort(flat, kind="stable").astype(np.int64)
    feeds[2] = np.cumsum(np.bincount(flat, minlength=EXPERTS)).astype(np.int64)
    assert error(bench, feeds) <= close(level)


def test_combine_without_a_base(level: isa.Isa, build: Build) -> None:
    bench = build(kernel_of("grouped_combine", "int4", 64, 50, base=0), level, mr=FEW)
    assert error(bench, bench.feeds(7)) <= close(level)


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("largest", [1, -1, 0])
def test_the_largest_codes_do_not_saturate(
    weights: str, sign: int, largest: int, every_level: isa.Isa, build: Build
) -> None:
    """Every product of its sign as large as it gets; largest 0: both ends by turns."""
    bench = build(kernel_of("linear", weights, 256, 48), every_level, mr=FEW)
    low, high = MOST[weights]
    ends = {1: [high], -1: [low], 0: [low, high]}[largest]
    with weights_of(bench, np.resize(ends, (48, 256)), np.ones((48, 8))) as chosen:
        x = np.full((3, 256), sign, np.float32)
        assert error(bench, [x], chosen) <= close(every_level)
        (y,) = bench.run([x], [np.zeros((3, 48))])
        np.testing.assert_allclose(y, sign * 256 * np.mean(ends), rtol=1e-5)


@pytest.mark.parametrize("weights", FORMATS)
def test_every_code_is_read_as_it_is(weights: str, every_level: isa.Isa, build: Build) -> None:
    """Each in each of the places of a group, times the only number of x that is not 0."""
    bench = build(kernel_of("linear", weights, 64, 512), every_level, mr=FEW)
    low, high = MOST[weights]
    codes = np.resize(np.arange(low, high + 1), (512, 64))
    x = np.eye(64, dtype=np.float32) * 127
    with weights_of(bench, codes, np.full((512, 2), 0.5)):
        (y,) = bench.run([x], [np.zeros((64, 512))])
    np.testing.assert_allclose(y, codes.T * 63.5, rtol=0, atol=close(every_level) * 63.5 * high)


@pytest.mark.parametrize("weights", FORMATS)
def test_rows_of_zeros_of_one_huge_value_and_of_denormal_numbers(
    weights: str, every_level: isa.Isa, build: Build
) -> None:
    bench = build(kernel_of("linear", weights, 96, 40), every_level, mr=FEW)
    (x,) = bench.feeds(5)
    x[0], x[1, 7], x[2, :32] = 0, 1e30, 0
    x[4] = np.float32(1e-45) * 150  # a scale of one unit, of which codes have no 150
    wanted = bench.sample.wanted([x])
    (y,) = bench.run([x], wanted)
    assert not y[0].any()
    for row in (1, 2, 3):
        assert deviation(y[row], wanted[0][row]) <= close(every_level)
    assert np.abs(y[4]).max() < 1e-40


@pytest.mark.parametrize("weights", FORMATS)
def test_rows_of_one_number_that_is_not_needed(weights: str, every_level: isa.Isa, build: Build) -> None:
    """Beside it the others are too small for 16 bits; k is so long that a row may be uneven."""
    bench = build(kernel_of("linear", weights, 1024, 40), every_level, mr=FEW)
    codes, scales = bench.weights[1].copy(), bench.weights[2]
    codes[:, 7] = 0
    (x,) = bench.feeds(20)
    with weights_of(bench, codes, scales) as chosen:
        assert error(bench, [x], chosen) <= close(every_level)
        x[:, 7] = 1e4
        assert error(bench, [x], chosen) <= CLOSE


@pytest.mark.parametrize("weights", FORMATS)
def test_columns_whose_scales_are_unlike(weights: str, every_level: isa.Isa, build: Build) -> None:
    """The largest is of a group that x does not have; or no number."""
    bench = build(kernel_of("linear", weights, 256, 72), every_level, mr=FEW)
    codes, scales = bench.weights[1], bench.weights[2].copy()
    (x,) = bench.feeds(20)
    x[:, :32] = 0
    scales[:, 0] *= 1000
    with weights_of(bench, codes, scales) as chosen:
        assert error(bench, [x], chosen) <= CLOSE
    for bad in (np.inf, np.nan):
        scales[5, 1] = bad
        with weights_of(bench, codes, scales):
            (y,) = bench.run([x], [np.zeros((20, 72))])
        assert not np.isfinite(y[:, 5]).any()
        assert np.isfinite(np.delete(y, 5, axis=1)).all()


@pytest.mark.parametrize("weights", FORMATS)
def test_numbers_of_a_model(weights: str, level: isa.Isa, build: Build) -> None:
    """Normal ones, with columns that are up to 90 times as large as most."""
    bench = build(kernel_of("grouped_combine", weights, 1408, 96, base=0), level, mr=FEW)
    feeds, dice = bench.feeds(40), np.random.default_rng(0)
    columns = np.exp(dice.standard_normal(1408, np.float32) * 1.5)
    feeds[0] = dice.standard_normal(feeds[0].shape, np.float32) * columns
    assert error(bench, feeds) <= 2 * close(level)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_shows_in_its_row_only(bad: float, every_level: isa.Isa, build: Build) -> None:
    bench = build(kernel_of("linear", "int8", 96, 40), every_level, mr=FEW)
    (x,) = bench.feeds(3)
    clean = bench.run([x], [np.zeros((3, 40))])[0]
    x[1, 50] = bad
    (y,) = bench.run([x], [np.zeros((3, 40))])
    assert not np.isfinite(y[1]).any()
    np.testing.assert_array_equal(y[[0, 2]], clean[[0, 2]])


def test_halves_of_codes_are_rounded_to_even(every_level: isa.Isa, build: Build) -> None:
    bench = build(kernel_of("linear", "int8", 32, 32), every_level, mr=FEW)
    x = np.zeros((1, 32), np.float32)
    x[0, :6] = (127, 0.5, 1.5, 2.5, -0.5, -2.5)
    with weights_of(bench, np.eye(32), np.ones((32, 1))):
        (y,) = bench.run([x], [np.zeros((1, 32))])
    np.testing.assert_array_equal(y[0, :6], (127, 0, 2, 2, 0, -2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", FORMATS)
def test_results_do_not_depend_on_threads_or_tasks(kind: str, weights: str, build: Build) -> None:
    kernel, level = kernel_of(kind, weights, 640, 300), isa.host()
    one, many = build(kernel, level, 1, mr=FEW, grain=16384), build(kernel, level, 3, mr=FEW, grain=1)
    feeds = one.feeds(50)
    wanted = one.sample.wanted(feeds)
    np.testing.assert_array_equal(one.run(feeds, wanted)[0], many.run(feeds, wanted)[0])


@pytest.mark.parametrize("weights", FORMATS)
def test_instruction_sets_agree(weights: str, build: Build) -> None:
    """In all but the order in which float32 are added."""
    kernel = kernel_of("grouped_swiglu", weights, 128, 96)
    benches = [build(kernel, level, mr=FEW) for level in isa.ISAS if isa.supports(level)]
    feeds = benches[0].feeds(20)
    wanted = benches[0].sample.wanted(feeds)
    first, *others = (bench.run(feeds, wanted)[0] for bench in benches)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-4, atol=FOLDED * np.abs(first).max())


@pytest.mark.parametrize(
    ("kind", "weights"), [("linear_swiglu", "int4"), ("linear", "int8"), ("grouped_combine", "int4")]
)
def test_schedules_of_the_space(kind: str, weights: str, level: isa.Isa, build: Build) -> None:
    kernel = kernel_of(kind, weights, 96, 200)
    for schedule in sample(kernel, level, 1):
        bench = build(kernel, level, 2, **schedule)
        for rows in (1, 5, 40):
            assert (schedule, rows, error(bench, bench.feeds(rows)) <= close(level)) == (schedule, rows, True)


def sample(kernel: Kernel, level: isa.Isa, count: int) -> list[Schedule]:
    """Some schedules the space admits, always the same."""
    dice, found, where = Random(str((kernel, level))), [], space(kernel, level)
    while len(found) < count:
        schedule = {knob: dice.choice(list(values)) for knob, values in where.choices.items()}
        if where.objection(schedule) is None:
            found.append(schedule)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("n", [1, 13, 64, 1408])
def test_defaults_are_in_the_space(kind: str, weights: str, n: int) -> None:
    for level in isa.ISAS:
        where = space(kernel_of(kind, weights, 512, n), level)
        assert where.objection_to(where.defaults) is None
        assert [where.objection(schedule) for schedule in where.known] == [None] * len(where.known)


def test_a_row_must_be_whole_groups() -> None:
    with pytest.raises(ValueError, match="k=48 is not a multiple of 32"):
        space(kernel_of("linear", "int4", 48, 64), isa.V3)


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (0, np.zeros((2, 32), np.float32), "input 0 has 32 columns; 64 were compiled in"),
        (1, np.full(6, 6, np.int64), "order[0] is 6; there are 6 slots"),
        (2, np.array([3, 2, 6, 6, 6, 6, 6, 6], np.int64), "ends[1] is 2 after 3"),
        (3, np.zeros(99, np.uint8), "input 3 holds 99 elements; 8192 were expected"),
        (4, np.zeros(99, np.float16), "input 4 holds 99 elements; 512 were expected"),
    ],
)
def test_operands_that_do_not_fit_are_refused(
    place: int, value: np.ndarray, reason: str, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = build(kernel_of("grouped_swiglu", "int4", 64, 30), isa.V3, nr=16, mr=FEW)
    feeds = bench.feeds(2)
    if place in bench.packed:
        monkeypatch.setitem(bench.__dict__, "packed", {**bench.packed, place: [value]})
    else:
        feeds[place] = value
    with pytest.raises(Exception, match=re.escape(reason)) as error:
        bench.run(feeds, [np.zeros((6, 15))])
    assert "grouped_swiglu_int4_k64_n30_experts8_" in str(error.value)


def test_counters_say_what_was_read(build: Build) -> None:
    """The codes and scales of three of the experts, once each."""
    bench = build(kernel_of("grouped_swiglu", "int4", 64, 128), isa.V3, mr=FEW)
    library, counter = ctypes.CDLL(str(bench.library)), Counter()
    library.moec_counts(ctypes.byref(counter), ctypes.c_size_t(1))
    before = counter.weight_bytes
    assert error(bench, bench.feeds(1)) <= CLOSE
    library.moec_counts(ctypes.byref(counter), ctypes.c_size_t(1))
    assert (counter.kind, counter.weight_bytes - before) == (
        b"grouped_swiglu_int4",
        SHARE * 64 * 128 * 18 // 32,
    )


def test_experts_are_left_out_by_the_bytes_they_really_take() -> None:
    dims = (("k", 2048), ("n", 2816), ("experts", 256), ("share", 6))
    kept = {
        weights: affordable(Kernel("grouped_swiglu", dims, (), weights))["experts"] for weights in FORMATS
    }
    assert kept == {
        "int4": (256 << 20) * 32 // (2048 * 2816 * 18),
        "int8": (256 << 20) * 32 // (2048 * 2816 * 34),
    }


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("level", [*isa.ISAS, isa.NEON], ids=str)
def test_products_are_summed_by_the_instruction_of_the_level(level: isa.Isa, weights: str) -> None:
    """One for each row, vector and word of a group; three for two groups of 16 rows in matrix registers."""
    kernel = kernel_of("linear", weights, 64, 64)
    schedule = space(kernel, level).default
    made = quantized.tiles(kernel, schedule, level, "f")
    matrices = level.dot == amx.INSTRUCTION
    code = compiled({"f": made[-1 if matrices else int(schedule["mr"]) - 1]}, level).inspect_source("asm")
    code = code[: code.index(".size")]
    register = {"sdot": "4s", "tdpbsud": "tmm"}.get(level.dot, {8: "ymm", 16: "zmm"}.get(level.lanes))
    words = re.findall(rf"^\s+(vpdpbusd|vpmaddubsw|tdp\w+|sdot)\s.*{register}", code, re.MULTILINE)
    each = [level.dot] * (8 * int(schedule["mr"]) * int(schedule["nr"]) // level.lanes)
    assert words == (["tdpbssd"] * 6 + ["tdpbsud"] * 3 if matrices else each)
    assert not re.search(r"^\s+vpdpbusd\s[^,]*\(%\w+,", code, re.MULTILINE), "x at the sum of two registers"
    assert not re.search(r"^\s+(call\w*|bl)\s", code, re.MULTILINE)


@pytest.mark.parametrize("level", isa.ISAS, ids=str)
def test_registers_are_spilled_as_they_are_aligned(level: isa.Isa) -> None:
    """Whole vectors on the stack; at any other address half of them might cross a cache line."""
    schedule: Schedule = {**space(kernel_of("linear", "int4", 64, 64), level).default, "mr": 16, "sums": 64}
    tall = quantized.tiles(kernel_of("linear", "int4", 64, 64), schedule, level, "f")[15]
    code = compiled({"f": tall}, level).inspect_source("asm")
    moves = set(re.findall(r"^\s+(vmov\w+)\s+%[yz]mm\d+, -?\d*\(%r[sb]p\)", code, re.MULTILINE))
    assert moves
    assert moves <= {"vmovaps", "vmovdqa", "vmovdqa64"}


@pytest.mark.parametrize("ask", ["first", "all"])
@pytest.mark.parametrize(("weights", "bits"), [("int4", 4), ("int8", 8)])
def test_lines_of_a_later_group_are_asked_for(weights: str, bits: int, ask: str) -> None:
    """A group of 64 columns is four lines a step and two of scales, or one line of each. A tile of four rows
    takes half of the columns at a time; one of one row takes all, and asks for all into the first cache.
    """
    kernel, level = kernel_of("linear", weights, 32, 64), isa.V4_VNNI
    schedule: Schedule = {**space(kernel, level).default, "nr": 64, "mr": 4, "sums": 8, "ask": ask}
    low, *_, tall, _ = quantized.tiles(kernel, schedule, level, "f")
    code, other = (compiled({"f": each}, level).inspect_source("asm") for each in (low, tall))
    lines, cache = (4 * bits + 2, 0) if ask == "all" else (2, 1)
    own = 1 - cache  # each asks for its own place on the stack too, into the first cache
    assert code.count(f"prefetcht{cache}") == lines + own
    assert other.count("prefetcht1") == (lines if ask == "all" else 2 * lines)


@pytest.mark.parametrize(
    ("kind", "weights"), [("linear", "int4"), ("linear", "int8"), ("grouped_combine", "int4")]
)
def test_each_line_of_the_next_block_is_asked_for_once(kind: str, weights: str) -> None:
    """Codes and scales, 8 groups ahead; of experts that are mixed, the last block is asked for twice."""
    kernel, panels, groups, ahead = kernel_of(kind, weights, 384, 128), 2, 12, 8
    schedule: Schedule = {
        **space(kernel, isa.V4_VNNI).default,
        "nr": 64,
        "sums": 12,
        "ask": "all",
        "ahead": ahead,
    }
    low = quantized.tiles(kernel, schedule, isa.V4_VNNI, "f")[0]
    blocks = [[(at // groups, at % groups) for at in range(start, start + ahead)] for start in (0, 8, 16)]
    for number, block in enumerate(blocks):
        start = ahead * (number + 1 if kind == "linear" else min(number + 1, 2))
        for memory, size in (("codes", 256 * int(weights[3:])), ("scales", 128)):
            asked = sorted(byte for p, g in block for byte in lines_asked(low, panels, p, g)[memory])
            assert asked == list(range(start * size, (start + ahead) * size, 64))


def lines_asked(function: Any, panels: int, p: int, g: int) -> dict[str, list[int]]:
    """The bytes that a tile asks for in group g of panel p, from the beginnings of its codes and scales."""
    known: dict[Any, Any] = {function.params[-1]: panels}
    found: dict[str, list[int]] = {"codes": [], "scales": []}
    words = SimpleNamespace(
        **{"Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": operator.floordiv},
        **{"min": min, "bitwise_and": operator.and_},
    )

    def value(expression: Any) -> int:
        return int(eval(str(tvm.tirx.stmt_functor.substitute(expression, known)), {"T": words}))

    def visit(node: Any) -> None:
        if isinstance(node, tvm.tirx.For):
            known[node.loop_var] = {"p": p, "g": g}.get(node.loop_var.name, node.loop_var)
        elif isinstance(node, tvm.tirx.Bind) and node.var.dtype == "int32":
            known[node.var] = value(node.value)
        elif isinstance(node, tvm.tirx.Call) and "llvm.prefetch" in str(node):
            line = next(each.args[0] for each in node.args if isinstance(each, tvm.tirx.Call))
            size = {"int32": 4, "float16": 2}[line.buffer.dtype]
            found["codes" if size == 4 else "scales"].append(size * value(line.indices[0]))

    tvm.tirx.stmt_functor.pre_order_visit(function.body, lambda node: visit(node) or True)
    return found


def test_the_device_offers_the_most_capable_level() -> None:
    assert [level.dot for level in isa.ISAS] == ["tdpbsud", "vpdpbusd", "vpmaddubsw", "vpmaddubsw"]
    assert Device(isa.host().name).isa == next(level.name for level in isa.ISAS if isa.supports(level))
