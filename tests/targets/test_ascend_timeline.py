"""The simulated timeline: its arithmetic, and how near it comes to what others published.

Nothing of it was measured. The comparisons with published times have wide bounds: they say that the model is
plausible, not that it is right; the published kernels are other code, and three constants come from them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moec.targets.ascend import fitting, sensitivity, soc, space, timeline
from moec.targets.ascend.hivm import blocks, interpret, l2, sampled
from moec.targets.ascend.hivm.calls import Asked, Call
from moec.targets.ascend.hivm.constants import GUESSED, Constants
from moec.targets.ascend.hivm.costs import Rates
from moec.targets.ascend.hivm.memory import Hollow
from moec.targets.ascend.hivm.replay import replay
from moec.targets.ascend.hivm.sampled import Ran
from moec.targets.ascend.hivm.trace import Trace
from moec.targets.ascend.program import ONE, Step
from moec.targets.ascend.trial import sizes_of
from moec.targets.base import CannotBuild, Flip, Kernel
from moec.targets.cases_bf16 import Sample

from .ascend_models import kernel
from .hivm_text import DOUBLED, buffer, module

B2 = soc.named("910B2")
B3 = soc.SOCS[0]
MLA = replace(kernel("mla_decode heads=16 latent=128 rope=32 f32+bf16"), reals=(("scale", 0.125),))
RMS = kernel("rms_norm n=2048 width=2048 start=0 f32")
needs_toolchain = pytest.mark.usefixtures("ascend_toolchain", "home")
NOTHING = Step("by:hand", {}, {}, (ONE, ONE, ONE))


def default(one: Kernel, tokens: int = 1) -> dict[str, int | str]:
    """Its default schedule for so many tokens."""
    defaults = space.space(one, B3).defaults
    return dict(defaults[max(first for first in defaults if first <= tokens)])


def traced(text: str, *arguments: Hollow | int, name: str = "kernel") -> Trace:
    """What its one block does."""
    ready = blocks.program(text, name)
    return blocks.run(ready, (1, 1, 1), arguments, checked=False, moves=False).traces[0]


def test_times_add_up_along_the_chain_of_flags() -> None:
    """A copy, a sum of one repeat, a copy, each when the one before is done and its flag has come."""
    known = Constants(
        **{name: 0.0 for name in (*GUESSED, "burst_us", "copy_us", "mad_head_cycles")},
        gm_ub_b_us=256.0,
        ub_gm_b_us=128.0,
        vector={"vadd": (7.0, 11.0)},
    )
    known = replace(known, vector_scale=1.0, flag_us=0.5, copy_latency_us=0.25)
    array = Hollow("f32", (64,))
    trace = traced(module(*DOUBLED), array, array, 64)
    found = replay(trace, [known], [Rates(mhz=10.0)])
    sum_us, once_us = 0.7, 1.1
    assert found.us[0] == pytest.approx(1 + 0.25 + 0.5 + sum_us + once_us + 0.5 + 2 + 0.25)
    assert found.busy[0][:7].tolist() == pytest.approx([0, sum_us, 0, 0, 1, 2, 0])
    slower = replay(trace, [known, replace(known, flag_us=1.5)], [Rates(10.0), Rates(10.0)])
    assert slower.us.tolist() == pytest.approx([found.us[0], found.us[0] + 2]), (
        "sets of constants side by side"
    )
    shared = replay(trace, [known], [Rates(10.0, read_b_us=64.0)])
    assert shared.us[0] == pytest.approx(found.us[0] + 3), "no more than the core's share of the memory"


def copies(rows: int, row_bytes: int, loops: int, core: str) -> str:
    """Loads of so many rows that lie apart into UB, or fractals of L1 where the core is a cube."""
    columns, gm = row_bytes // 2, "#hivm.address_space<gm>"
    into_ub, fractals = (
        f"{rows}x{columns}xbf16, #hivm.address_space<ub>",
        f"{columns // 16}x{rows // 16}x16x16",
    )
    target = f"memref<{into_ub if core == 'AIV' else f'{fractals}xbf16, #hivm.address_space<cbuf>'}>"
    source = f"memref<{rows}x{columns}xbf16, strided<[{columns * 2}, 1]>, {gm}>"
    rows_apart = (
        "<{operandSegmentSizes = array<i32: 1, 0, 0, 0>, static_offsets = array<i64: 0>, static_sizes = "
        f"array<i64: {rows}, {columns}>, static_strides = array<i64: {columns * 2}, 1>}}>"
    )
    op = "load" if core == "AIV" else "nd2nz"
    numbers = (("%zero", 0), ("%one", 1), ("%many", loops))
    return module(
        buffer("%b", "%c0", target),
        f'%from = "memref.reinterpret_cast"(%x) {rows_apart} : (memref<?xbf16, {gm}>) -> {source}',
        *(f'{name} = "arith.constant"() <{{value = {n} : i32}}> : () -> i32' for name, n in numbers),
        '"scf.for"(%zero, %many, %one) ({',
        "^bb0(%i: i32):",
        f'"hivm.hir.{op}"(%from, %b) <{{operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0>}}> : '
        f"({source}, {target}) -> ()",
        '"scf.yield"() : () -> ()',
        "}) : (i32, i32, i32) -> ()",
        core=core,
    )


@pytest.mark.parametrize(
    ("rows", "row_bytes", "core", "published_us"),
    [
        (1, 128, "AIV", 564.8),
        (64, 128, "AIV", 233.5),
        (64, 2048, "AIV", 215.8),
        (64, 128, "AIC", 300.7),
        (64, 512, "AIC", 230.2),
    ],
)
def test_copies_beside_those_of_a_vendor_example(
    rows: int, row_bytes: int, core: str, published_us: float
) -> None:
    """302 MB by all cores of an A2 with 24 cubes, as asc-devkit's example data_copy gives it."""
    cores, part = (48, 16) if core == "AIV" else (24, 1)
    loops = 302_000_000 // cores // (rows * row_bytes) // part
    trace = traced(copies(rows, row_bytes, loops, core), Hollow("bf16", (1 << 20,)), Hollow("f32", (64,)), 1)
    outcome = blocks.Outcome(traces=dict.fromkeys(range(cores), trace))
    found = Ran(NOTHING, cores, ("AIV0",) if core == "AIV" else ("AIC",), outcome, {})
    (step,) = timeline.step_times(found, B2, [timeline.PUBLISHED])
    assert 0.8 < step.us * part / published_us < 1.25


@needs_toolchain
def test_a_product_beside_that_of_a_vendor_example() -> None:
    """8192 cubed in half precision, tiles of 128x256, 24 cores: 4082 us, in which cubes are busy 3082."""
    square = kernel("linear k=8192 n=8192 wide=0 bf16")
    schedule = {**default(square, 8192), "bm": 128, "bn": 256, "bk": 256}
    found = timeline.seconds(square, schedule, B2, Asked(8192))
    assert 0.7 < found.us / 4081.6 < 1.5
    assert 0.85 < found.cube * found.us / 3082.2 < 1.15


@needs_toolchain
@pytest.mark.parametrize(
    ("one", "options"),
    [
        (MLA, {"rows": 1, "batch": 2, "cached": 150}),
        (kernel("grouped_swiglu k=32 n=32 experts=10 share=4 int8row"), {"rows": 33}),
    ],
    ids=str,
)
def test_times_alone_need_no_numbers(one: Kernel, options: dict[str, int]) -> None:
    """The same events, whether floats are there or not: what is done is told by whole numbers."""
    example, schedule = Sample(one).example(**options), default(one)
    steps, sizes = space.steps(one, schedule, B3), sizes_of(one, example.operands)
    results = [np.zeros(each.shape, dtype) for each, dtype in zip(example.results, example.dtypes)]
    whole = interpret.run(steps, B3, example.operands, results, sizes, dict(one.reals))[1]
    given = [each if each.dtype == np.int64 else hollow(each) for each in example.operands]
    alone = sampled.ran(steps, B3, Call(given, [hollow(each) for each in results], sizes), dict(one.reals))
    for step, outcome in zip(alone, whole, strict=True):
        for block, trace in step.outcome.traces.items():
            assert trace.events == outcome.traces[block].events
            assert trace.works == outcome.traces[block].works
            assert trace.moved == outcome.traces[block].moved
    assert any(len(step.outcome.traces) > 1 for step in alone)


def test_only_what_is_known_is_moved_for_times_alone() -> None:
    """A sum of what has no contents is no number, and is not stored; of what has some it is."""
    ready, x = blocks.program(module(*DOUBLED), "kernel"), np.arange(64, dtype=np.float32)
    for given, wanted in ((Hollow("f32", (64,)), np.full(64, -1)), (x, 2 * x)):
        y = np.full(64, -1, np.float32)
        outcome = blocks.run(ready, (1, 1, 1), [given, y, 64], checked=False, moves=False)
        np.testing.assert_array_equal(y, wanted)
        assert outcome.moved["UB->GM"] == 256


def hollow(array: np.ndarray[Any, Any]) -> Hollow:
    """Its type and shape."""
    return Hollow(blocks.TYPES[str(array.dtype)], array.shape)


@needs_toolchain
def test_blocks_that_were_not_run_are_like_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """50 rows on 40 cores: ten blocks have two, and the others one."""
    (some,) = timeline.seconds(RMS, default(RMS), B3, Asked(50)).steps
    monkeypatch.setattr(sampled, "MOST_BLOCKS", 1000)
    (every,) = timeline.seconds(RMS, default(RMS), B3, Asked(50)).steps
    assert some.us == pytest.approx(every.us, rel=0.05)
    assert some.moved["UB->GM"] == pytest.approx(every.moved["UB->GM"], rel=0.1)
    assert every.moved["UB->GM"] == 50 * 2048 * 2
    assert sampled.chosen(20)[:3] == [0, 19, 9]
    assert sorted(sampled.chosen(4)) == [0, 1, 2, 3]
    assert sampled.chosen(1) == [0]


@needs_toolchain
def test_no_kernel_is_faster_than_its_memory() -> None:
    found = timeline.seconds(RMS, default(RMS, 4096), B3, Asked(4096))
    assert 4096 * 2048 * 2 / (B3.read_gb_s * 1e3) <= found.steps[0].us
    assert 0 < found.bandwidth <= 1
    slow = replace(B3, read_gb_s=B3.read_gb_s / 100)
    assert timeline.seconds(RMS, default(RMS, 4096), slow, Asked(4096)).bandwidth > 0.9


def reading(places: Sequence[int], name: str = "x0") -> Ran:
    """A launch of one block that reads these megabytes of an array, one after the other."""
    trace = Trace()
    for place in places:
        trace.touched.append((name, place * l2.PAGE, (place + 1) * l2.PAGE))
        trace.read[name] += l2.PAGE
    outcome = blocks.Outcome(traces={0: trace})
    return Ran(NOTHING, 1, ("AIV0",), outcome, {name: len(set(places)) * l2.PAGE})


@pytest.mark.parametrize(
    ("again", "holds", "wanted"),
    [
        (range(100), 200, 100),
        (range(100), 60, 0),  # each goes just before it is wanted
        (range(99, -1, -1), 60, 60),
        (range(99, 49, -1), 60, 50),
        (range(100, 200), 200, 0),
    ],
    ids=str,
)
def test_l2_has_what_was_touched_last(again: range, holds: int, wanted: int) -> None:
    found = l2.found([reading(range(100)), reading(again)], holds * l2.PAGE)
    assert found[0] == 0
    assert found[1] / l2.PAGE == pytest.approx(wanted, abs=2)


def test_what_is_touched_in_between_displaces_what_was_there() -> None:
    launches = [reading(range(40)), reading(range(30), "s1"), reading(range(39, -1, -1))]
    assert l2.found(launches, 60 * l2.PAGE)[2] / l2.PAGE == pytest.approx(30, abs=2)
    assert l2.found(launches, 25 * l2.PAGE)[2] == 0


def test_what_l2_has_is_not_asked_of_the_memory() -> None:
    """300 MB forwards, then backwards: of these 192 are still there, or half as many."""
    known = timeline.PUBLISHED
    launches = [reading(range(300)), reading(range(299, -1, -1))]
    whole, half = timeline.timed(launches, B3, [known, known.changed("l2_bytes", 0.5)])
    assert whole.steps[0].us == pytest.approx(300 * l2.PAGE / (B3.read_gb_s * 1e3))
    shares = [each.steps[1].us / each.steps[0].us for each in (whole, half)]
    assert shares == pytest.approx([108 / 300, 204 / 300], abs=0.01)


def test_a_launch_touches_what_it_moves_and_nothing_where_that_is_empty() -> None:
    array, other = Hollow("bf16", (1 << 20,)), Hollow("f32", (64,))
    (name, low, high), *more = traced(copies(16, 128, 2, "AIC"), array, other, 1).touched
    assert (low, high) == (0, 15 * 256 + 128), "16 rows of 128 bytes, 256 apart"
    assert more == [(name, low, high)]
    assert traced(copies(0, 128, 2, "AIV"), array, other, 1).touched == []


@needs_toolchain
def test_constants_are_found_again_from_times_made_with_others() -> None:
    made_with = replace(timeline.PUBLISHED, copy_latency_us=0.8, cross_us=0.5, scalar_ub_us=0.05)
    records = []
    calls = [(MLA, Asked(1, 20, cached)) for cached in (100, 400)]
    for one, asked in [*calls, (RMS, Asked(40)), (RMS, Asked(400))]:
        found = timeline.sampled(one, default(one, asked.tokens), B3, asked)
        (times,) = timeline.timed(found, B3, [made_with])
        records.append(fitting.Record(found, B3, times.us))
    before = np.abs(fitting.errors(records, timeline.PUBLISHED, [])[0]).max()
    names = ("copy_latency_us", "cross_us", "scalar_ub_us")
    known = fitting.fit(records, names=names)
    after = np.abs(fitting.errors(records, known, [])[0]).max()
    assert before > 0.1
    assert after < 0.01
    assert [getattr(known, name) for name in names] == pytest.approx([0.8, 0.5, 0.05], rel=0.25)
    assert known.gm_l1_b_us == timeline.PUBLISHED.gm_l1_b_us
    with pytest.raises(ValueError, match="expected records"):
        fitting.fit([])


@needs_toolchain
def test_what_a_choice_stands_on() -> None:
    one = default(MLA)
    asked = Asked(1, 20, 300)
    found = sensitivity.sensitivity(
        MLA, [one, {**one, "block": 2 * int(one["block"])}], B3, asked, ("cross_us", "flag_us")
    )
    assert [(each.constant, each.factor) for each in found.variants] == [
        *(("cross_us", 0.5), ("cross_us", 2.0), ("flag_us", 0.5), ("flag_us", 2.0))
    ]
    assert found.variants[0].us < found.us < found.variants[1].us


def test_a_choice_hangs_on_a_guess_where_another_schedule_becomes_the_fastest() -> None:
    kept, other, hardly = (
        sensitivity.Variant("flag_us", 0.5, (1.0, 2.0, 0.5)),
        sensitivity.Variant("cross_us", 2.0, (4.0, 2.0, 0.5)),
        sensitivity.Variant("issue_us", 2.0, (2.01, 2.0, 2.0)),
    )
    schedules = ({"bm": 1}, {"bm": 2}, {"bm": 3})
    found = sensitivity.Sensitivity(RMS, B3, schedules, (1.0, 2.0, 0.9), (kept, other, hardly))
    assert found.against(0) == [Flip("cross_us", 2.0, {"bm": 2}, 1.0)], "the third is faster in any case"
    alone = replace(found, us=(1.0, 2.0, 1.5))
    assert [(each.constant, each.other) for each in alone.against(0)] == [
        ("flag_us", {"bm": 3}),
        ("cross_us", {"bm": 3}),
    ]


@needs_toolchain
def test_what_a_choice_hangs_on_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    one = default(MLA)
    schedules = [one, {**one, "block": 2 * int(one["block"])}]
    found = sensitivity.flips(MLA, "m=1 decode", schedules, B3)
    assert all(each.constant in GUESSED and each.faster > 0.01 for each in found)
    monkeypatch.delattr(sensitivity, "sensitivity")
    assert sensitivity.flips(MLA, "m=1 decode", schedules, B3) == found
    with pytest.raises(CannotBuild, match="is not timed at m=5 any more"):
        sensitivity.flips(MLA, "m=5", schedules, B3)


@needs_toolchain
def test_the_command_says_that_it_simulates() -> None:
    words = "rms_norm n=2048 width=2048 start=0 eps=1e-6 m=64".split()
    command = [sys.executable, "-m", "tests.targets.ascend_timeline", *words]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("simulated, not measured: rms_norm")
    assert "rows:rms_norm" in said
