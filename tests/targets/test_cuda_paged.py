"""Kernels over pages: what they are tried on, and that a step of them is one of kernels without pages."""

from __future__ import annotations

import numpy as np
import pytest
from layers import decoder

from moec.compiler.interpret import interpret
from moec.compiler.ir import DTYPES
from moec.compiler.ops.pages import GATHER_PAGES
from moec.compiler.ops.region import REGION
from moec.compiler.pipeline import run
from moec.passes.caches import NarrowCaches
from moec.passes.coded import CodeLatents
from moec.passes.pages import PageCaches
from moec.passes.precision import ALL_BF16, Precision
from moec.targets.base import Kernel
from moec.targets.bf16 import FORMATS, PASSES, kernel_of
from moec.targets.cases_bf16 import Sample, unread_in
from moec.targets.cases_paged import sample_of
from moec.targets.checks import checked
from moec.targets.cuda import sm
from moec.targets.cuda.calls import results_of
from moec.targets.cuda.space import space
from moec.targets.paged import PAGE, is_paged, left_over, unpaged

REST = (PageCaches(PAGE), *PASSES, Precision(ALL_BF16, FORMATS, "bf16"))
GRAPHS = [run(decoder(2), (NarrowCaches(), *coded, *REST))[0] for coded in ((), (CodeLatents("fp8"),))]
REGIONS = {kernel_of(node): node for graph in GRAPHS for node in graph if node.op is REGION}
PAGED = [kernel for kernel in REGIONS if is_paged(kernel)]
SETTINGS = (
    {"rows": 3, "batch": 2, "cached": 9, "padding": 3},
    {"rows": 2, "batch": 3, "cached": 200, "padding": 150},
)


def test_both_kinds_are_met() -> None:
    kinds = ("latent_write_paged", "latent_attention_paged")
    assert {(each.kind, each.cache) for each in PAGED} == {
        (kind, c) for kind in kinds for c in ("bf16", "fp8")
    }
    assert not any(left_over(graph) for graph in GRAPHS)


def finite(operand: np.ndarray) -> np.ndarray:
    """Without NaN, of codes too: the interpreter multiplies what is hidden by 0."""
    if operand.dtype == np.uint8:
        return np.where(operand == 0x7F, 0, operand).astype(np.uint8)
    return operand if operand.dtype.kind == "i" else np.nan_to_num(operand.astype(np.float64))


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: f"{setting['padding']} padding")
@pytest.mark.parametrize("kernel", PAGED, ids=str)
def test_the_reference_is_what_the_region_says(kernel: Kernel, setting: dict[str, int]) -> None:
    body, example = REGIONS[kernel].attrs["body"], sample_of(kernel).example(**setting)
    assert [each.dtype for each in example.operands] == [DTYPES[x.type.dtype] for x in body.inputs]
    assert list(example.dtypes) == [DTYPES[y.type.dtype] for y in body.outputs]
    feeds = {f"x{i}": finite(each) for i, each in enumerate(example.operands)}
    for mine, its in zip(example.results, interpret(body, feeds, {}, double=True).values()):
        assert not np.isnan(mine).any()
        np.testing.assert_allclose(mine, its, rtol=4e-3, atol=1e-6)


@pytest.mark.parametrize("kernel", PAGED, ids=str)
def test_it_is_the_example_without_pages(kernel: Kernel) -> None:
    setting = {**SETTINGS[1], "wider": 5}
    mine, its = sample_of(kernel).example(**setting), Sample(unpaged(kernel)).example(**setting)
    for own, other in zip(mine.results, its.results):
        if own.ndim == 4:  # a cache; columns before 150 are padding
            own, other = (
                each[:, :, 150:202] for each in (GATHER_PAGES.reference(own, mine.operands[-1]), other)
            )
        np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("kernel", PAGED, ids=str)
def test_padding_is_one_page_that_nobody_reads(kernel: Kernel) -> None:
    *operands, table = sample_of(kernel).example(**SETTINGS[1]).operands
    pools = [each for each in operands if each.ndim == 4]
    assert (table[1, :2] == len(pools[0]) - 1).all()
    assert len(np.unique(table)) == table.size - 1
    for pool in pools:
        np.testing.assert_array_equal(pool[-1].astype(np.float32), unread_in(unpaged(kernel), pool))


@pytest.mark.parametrize("kernel", PAGED, ids=str)
def test_whole_pages_of_padding_are_checked(kernel: Kernel) -> None:
    with_pages, without = (checked(each, {1: {}}) for each in (kernel, unpaged(kernel)))
    assert set(without) < set(with_pages)
    assert any(setting["padding"] >= 2 * PAGE for setting in with_pages.values())


@pytest.mark.parametrize("kernel", PAGED, ids=str)
def test_results_and_schedules_are_those_without_pages(kernel: Kernel) -> None:
    example = sample_of(kernel).example(**SETTINGS[0])
    shapes = [tuple(shape) for shape, _ in results_of(kernel, example.operands)]
    assert shapes == [each.shape for each in example.results]
    machine = sm.SMS[0]
    assert space(kernel, machine).defaults == space(unpaged(kernel), machine).defaults
