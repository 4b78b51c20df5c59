"""Products of int8 with int8 for Ascend, simulated here: codes, results, what is no number, schedules."""

from __future__ import annotations

import multiprocessing
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moec.compiler.ir import DTYPES
from moec.targets.ascend import lowering, simulate, soc, space, trial, vendor
from moec.targets.ascend.program import M, Pointer
from moec.targets.ascend.programs.quantized import to_codes
from moec.targets.base import Kernel
from moec.targets.cases_bf16 import Example, Sample
from moec.targets.cases_quantized import rounded

from . import ascend
from .ascend_models import kernel

B3 = soc.SOCS[0]
BF16 = DTYPES["bf16"]
WIDE = kernel("linear k=60 n=40 wide=1 int8row")  # its results are not rounded once more
# What is left where codes are equal: sums are exact and scales are f32.
CLOSE = 5e-7
KERNELS = [
    kernel(line)
    for line in (
        "linear k=160 n=77 wide=0 int8row",
        "linear k=7 n=1 wide=1 int8row",
        "linear_add k=1000 n=33 wide=0 int8row",
        "linear_swiglu k=333 n=154 wide=1 int8row",
        "grouped_swiglu k=96 n=70 experts=6 share=3 int8row",
        "grouped_combine k=77 n=37 experts=5 share=2 base=0 int8row",
        "grouped_combine k=128 n=70 experts=6 share=3 base=2 int8row",
    )
]
# Of DeepSeek-V3 on 8 devices.
SLICES = [
    kernel(line)
    for line in (
        "linear k=1536 n=3072 wide=0 int8row",
        "linear_add k=2304 n=7168 wide=0 int8row",
        "linear_swiglu k=7168 n=4608 wide=0 int8row",
        "grouped_swiglu k=7168 n=512 experts=257 share=9 int8row",
        "grouped_combine k=256 n=7168 experts=257 share=9 base=2 int8row",
    )
]
needs_toolchain = pytest.mark.usefixtures("ascend_toolchain", "home")


def tried(one: Kernel, example: Example, before: bool = False) -> list[Any]:
    """The results of a call by the kernel's default schedules."""
    return trial.run(one, space.space(one, B3).defaults, B3, example, before)


def with_x(x: Any) -> Example:
    """A call of WIDE on this x, and what must come out."""
    sample = Sample(WIDE)
    return replace(sample.example(len(x)), operands=sample.operands([x]), results=sample.wanted([x]))


@needs_toolchain
@pytest.mark.parametrize("one", KERNELS, ids=str)
def test_every_call_is_right(one: Kernel) -> None:
    assert ascend.wrong(one) == []


@needs_toolchain
@pytest.mark.parametrize("one", [KERNELS[3], KERNELS[6]], ids=str)
def test_nothing_in_front_of_an_array_is_touched(one: Kernel) -> None:
    example = Sample(one).example(33)
    child = multiprocessing.get_context("fork").Process(target=expect_right, args=(one, example))
    child.start()
    child.join()
    assert child.exitcode == 0, "1 is a wrong result, all else a fault"


def expect_right(one: Kernel, example: Example) -> None:
    """In a process of its own, with pages in front of arrays that nobody may touch."""
    sys.exit(int(example.wrong(tried(one, example, before=True)) is not None))


@needs_toolchain
def test_codes_are_the_reference_s() -> None:
    """So results differ by the rounding of f32 only."""
    for rows in (1, 40):
        example = Sample(WIDE).example(rows)
        assert max(example.errors(tried(WIDE, example))) < CLOSE


@needs_toolchain
@pytest.mark.parametrize("k", [5, 127, 192, 9000])  # one is folded, the last longer than is done at once
def test_rows_become_codes(k: int) -> None:
    x = np.random.default_rng(0).standard_normal((5, k)).astype(BF16)
    x[1], x[2] = 0, 0
    x[3, :5] = 127, 0.5, 1.5, -2.5, -127  # halves go to the even number
    x[3, 5:] = 0
    codes, scales = coded(x)
    assert codes[3, :5].tolist() == [127, 0, 2, -2, -127]
    assert not codes[1:3].any()
    assert (scales[1:3] < 1e-36).all()
    np.testing.assert_allclose(codes * scales.astype(np.float64), rounded(x, k), rtol=1e-6, atol=1e-30)


def coded(x: Any) -> tuple[Any, Any]:
    """Rows of x as codes and scales."""
    step = replace(to_codes(M, x.shape[1], B3, Pointer("y0", "i8"), Pointer("y1", "fp32")), scratch={})
    results = [np.full(x.shape, -128, np.int8), np.full((len(x), 1), np.nan, np.float32)]
    codes, scales = simulate.run([step], B3, [x], results, {"m": len(x)}, {})
    return codes, scales


@needs_toolchain
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_shows_in_its_row_only(bad: float) -> None:
    x = Sample(WIDE).feeds(3)[0]
    clean = tried(WIDE, with_x(x))[0]
    x[1, 50] = bad
    with np.errstate(invalid="ignore"):
        (y,) = tried(WIDE, with_x(x))
    assert not np.isfinite(y[1]).any()
    np.testing.assert_array_equal(y[::2], clean[::2])


@needs_toolchain
def test_rows_of_zeros_of_one_huge_value_and_of_tiny_numbers() -> None:
    x = Sample(WIDE).feeds(4)[0]
    x[0], x[1, 7], x[2] = 0, 1e30, x[2] * BF16.type(1e-30)
    example = with_x(x)
    (y,) = tried(WIDE, example)
    assert not y[0].any()
    for mine, its in zip(y[1:], example.results[0][1:]):
        np.testing.assert_allclose(mine, its, atol=CLOSE * np.abs(its).max())


@needs_toolchain
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_codes_do_not_saturate(sign: int) -> None:
    """Every product of its sign as large as it gets, in a row as long as the longest of a model."""
    one = kernel("linear k=18432 n=16 wide=1 int8row")
    example = Sample(one).example(2)
    x, codes, scales = example.operands
    x[...], codes[...], scales[...] = 1, sign * 127, 1
    (y,) = tried(one, example)
    np.testing.assert_allclose(y, sign * 18432 * 127, rtol=1e-6)


@needs_toolchain
@pytest.mark.parametrize("one", SLICES, ids=str)
def test_the_vendor_s_compiler_takes_every_default_schedule_as_it_is(one: Kernel) -> None:
    chip = soc.named("910_9392")
    for schedule in space.space(one, chip).defaults.values():
        for step in space.steps(one, schedule, chip):
            assert not vendor.planned(lowering.lowering()(step, chip), chip, step.compiler).notes


@needs_toolchain
def test_what_the_rules_refuse_the_vendor_s_compiler_refuses_or_changes() -> None:
    one = kernel("linear k=1024 n=512 wide=0 int8row")
    found = space.space(one, B3)
    deep = {"bm": 128, "bn": 256, "bk": 1024, "buffers": 2}
    high = {"bm": 128, "bn": 320, "bk": 128, "buffers": 2}
    assert "2 buffers of both sides are 786432 bytes; L1 has 524288" in str(found.objection(deep))
    assert found.objection({**deep, "buffers": 1}) is None
    assert any("sums are 163840 bytes; L0C has 131072" in str(rule(high)) for rule in found.rules)
    assert planned(one, deep).notes
    with pytest.raises(vendor.Rejected, match="cc overflow"):
        planned(one, high)


def planned(one: Kernel, schedule: Any) -> vendor.Plan:
    """The product's plan."""
    step = space.steps(one, schedule, B3)[-1]
    return vendor.planned(lowering.lowering()(step, B3), B3, step.compiler)


@pytest.mark.parametrize("one", [*KERNELS, *SLICES], ids=str)
def test_defaults_are_among_the_choices(one: Kernel) -> None:
    for chip in soc.SOCS:
        found = space.space(one, chip)
        assert found.objection_to(found.defaults) is None
