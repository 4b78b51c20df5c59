"""What CUDA kernels are tried on: right operands for each kind, and references that agree with the ops."""

from __future__ import annotations

import numpy as np
import pytest
from layers import apart, decoder

from moec.compiler.interpret import interpret
from moec.compiler.ir import DTYPES
from moec.compiler.ops.region import REGION
from moec.compiler.pipeline import run
from moec.passes.caches import NarrowCaches
from moec.passes.coded import CodeLatents
from moec.passes.head import choosing
from moec.passes.precision import ALL_BF16, Precision
from moec.targets.base import Kernel
from moec.targets.bf16 import DIMS, END_DIMS, FORMATS, kernel_of, passes
from moec.targets.cases_bf16 import CACHED, Sample
from moec.targets.lookups import ENDS

GRAPHS = [
    run(graph, (NarrowCaches(), *more, *passes(*ENDS), Precision(ALL_BF16, FORMATS, "bf16")))[0]
    for graph, *more in (
        *((decoder(2),), (decoder(2, latent=False),), (apart(),), (choosing(decoder()),)),
        (decoder(2), CodeLatents("fp8")),
    )
]
REGIONS = {kernel_of(node): node for graph in GRAPHS for node in graph if node.op is REGION}
SETTING = {"batch": 2, "cached": 9, "padding": 3}


def setting(kind: str) -> dict[str, int]:
    return SETTING if kind in CACHED else {}


def test_every_kind_is_met() -> None:
    assert {kernel.kind for kernel in REGIONS} == {*DIMS, *END_DIMS}


@pytest.mark.parametrize("kernel", REGIONS, ids=str)
def test_operands_and_results_are_of_the_regions_types(kernel: Kernel) -> None:
    body = REGIONS[kernel].attrs["body"]
    example = Sample(kernel).example(3, **setting(kernel.kind))
    assert [each.dtype for each in example.operands] == [DTYPES[x.type.dtype] for x in body.inputs]
    assert list(example.dtypes) == [DTYPES[y.type.dtype] for y in body.outputs]
    assert not any(np.isnan(each).any() for each in example.results)
    for result, operand in example.in_place.items():
        assert example.results[result].shape == example.operands[operand].shape


@pytest.mark.parametrize("kernel", [each for each in REGIONS if each.kind in CACHED], ids=str)
def test_the_reference_is_what_the_region_says(kernel: Kernel) -> None:
    body, example = REGIONS[kernel].attrs["body"], Sample(kernel).example(3, **SETTING)
    feeds = {f"x{i}": each if each.dtype.kind in "iu" else each.astype(np.float64)
             for i, each in enumerate(example.operands)}  # fmt: skip
    for mine, its in zip(example.results, interpret(body, feeds, {}, double=True).values()):
        np.testing.assert_allclose(mine, its, rtol=4e-3, atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in CACHED if kind in DIMS])
def test_a_wider_mask_changes_no_result(kind: str) -> None:
    kernel = next(each for each in REGIONS if each.kind == kind)
    narrow, wide = (Sample(kernel).example(1, wider=wider, **SETTING) for wider in (0, 5))
    for mine, its in zip(narrow.results, wide.results):
        rows = tuple(slice(size) for size in mine.shape)
        np.testing.assert_array_equal(mine, its[rows])
    masks = [
        max(each.operands, key=lambda x: (x.dtype.kind == "i", x.size)).shape[1] for each in (narrow, wide)
    ]
    assert masks == [10, 15]


def test_errors_are_told() -> None:
    kernel = next(each for each in REGIONS if each.kind == "linear" and not dict(each.dims)["wide"])
    example = Sample(kernel).example(2)
    (right,) = example.results
    assert example.wrong([right.astype(DTYPES["bf16"])]) is None
    assert "y0 is off by inf" in str(example.wrong([np.full_like(right, np.nan)]))
    assert "expected at most 4.0e-03" in str(example.wrong([right + 0.01 * np.abs(right).max()]))
    with pytest.raises(ValueError, match="reads no mask, so there is no cached"):
        Sample(kernel).example(2, cached=3)
