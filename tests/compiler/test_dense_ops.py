"""References of indexing, dense, attention, cache, layout and region ops, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from arrays import close, real, source, tensors, whole
from torch.nn import functional

from moec.compiler.interpret import interpret
from moec.compiler.ir import B, Graph, L, S, T, TypeMismatch, make
from moec.compiler.ops import attention, cache, dense, elementwise, index, layout, region

torch.set_num_threads(1)
Run = Callable[..., list[Any]]


def test_take(run: Run) -> None:
    x, indices = real(4, 5, 2), whole(5, 3, 2)
    close(run(index.TAKE, x, indices, axis=1)[0], torch.from_numpy(x)[:, torch.from_numpy(indices)])
    assert run(index.TAKE, x, whole(4, 0), axis=0)[0].shape == (0, 5, 2)
    with pytest.raises(IndexError):
        run(index.TAKE, x, np.array([9]), axis=0)
    with pytest.raises(TypeMismatch, match="the index is f32"):
        index.TAKE(source("x", "f32", 2), source("i", "f32", 2), axis=0)


@pytest.mark.parametrize("sizes", [(4, 3), (2, 3), (2, 5)])
def test_gather_along(run: Run, sizes: tuple[int, int]) -> None:
    x, indices = real(4, 5), whole(5, *sizes)
    close(run(index.GATHER_ALONG, x, indices, axis=1)[0], torch.gather(*tensors(x), 1, *tensors(indices)))
    with pytest.raises(TypeMismatch, match="larger than"):
        index.GATHER_ALONG(source("x", "f32", 4, 5), source("i", "i64", 5, 5), axis=1)


@pytest.mark.parametrize("sizes", [(4, 3), (2, 2)])
def test_scatter_along(run: Run, sizes: tuple[int, int]) -> None:
    x, source_ = real(4, 5), real(4, 3)
    indices = np.argsort(real(4, 5), axis=1)[: sizes[0], : sizes[1]]
    before = x.copy()
    expected = torch.scatter(torch.from_numpy(x), 1, *tensors(indices, source_))
    close(run(index.SCATTER_ALONG, x, indices, source_, axis=1)[0], expected)
    np.testing.assert_array_equal(x, before)


def test_scatter_rows(run: Run) -> None:
    x, indices, rows = real(6, 3), np.array([5, 0, 2]), real(3, 3)
    before = x.copy()
    close(
        run(index.SCATTER_ROWS, x, indices, rows)[0],
        torch.from_numpy(x).index_put((torch.from_numpy(indices),), *tensors(rows)),
    )
    np.testing.assert_array_equal(x, before)
    with pytest.raises(TypeMismatch, match="the source is"):
        index.SCATTER_ROWS(source("x", "f32", 6, 3), source("i", "i64", 3), source("s", "f32", 2, 3))


def test_bincount_counts_nothing_outside(run: Run) -> None:
    ids = whole(4, 3, 5)
    close(run(index.BINCOUNT, ids, bins=6)[0], torch.bincount(torch.from_numpy(ids).reshape(-1), minlength=6))
    assert run(index.BINCOUNT, np.array([-1, 0, 2, 3, 0]), bins=3)[0].tolist() == [2, 0, 1]
    assert run(index.BINCOUNT, whole(4, 0), bins=2)[0].tolist() == [0, 0]


def test_linear(run: Run) -> None:
    x, weight, bias = real(2, 3, 5), real(7, 5), real(7)
    close(run(dense.LINEAR, x, weight)[0], functional.linear(*tensors(x, weight)))
    close(run(dense.LINEAR, x, weight, bias)[0], functional.linear(*tensors(x, weight, bias)))
    assert run(dense.LINEAR, real(0, 5), weight)[0].shape == (0, 7)
    with pytest.raises(TypeMismatch, match="the last axis of x must be 5"):
        dense.LINEAR(source("x", "f32", B, 4), source("w", "f32", 7, 5))
    with pytest.raises(TypeMismatch, match="the bias is"):
        dense.LINEAR(source("x", "f32", B, 5), source("w", "f32", 7, 5), source("b", "f32", 5))


def test_matmul(run: Run) -> None:
    a, b = real(4, 1, 2, 3), real(5, 3, 7)
    close(run(dense.MATMUL, a, b)[0], torch.matmul(*tensors(a, b)))
    with pytest.raises(TypeMismatch, match="inner sizes S and T"):
        dense.MATMUL(source("a", "f32", 2, S), source("b", "f32", T, 2))
    with pytest.raises(TypeMismatch, match="at least 2 axes"):
        dense.MATMUL(source("a", "f32", 2), source("b", "f32", 2, 2))


@pytest.mark.parametrize("ends", [[2, 2, 5], [0, 5, 5], [1, 2, 4], [0, 0, 0]])
def test_grouped_mm(run: Run, ends: list[int]) -> None:
    x, weights = real(5, 4), real(3, 4, 2)
    expected, start = np.zeros((5, 2)), 0
    for group, end in enumerate(ends):
        for row in range(start, end):
            expected[row] = x[row].astype(float) @ weights[group]
        start = end
    result = run(dense.GROUPED_MM, x, weights, np.array(ends, np.int32))[0]
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    assert run(dense.GROUPED_MM, real(0, 4), weights, np.zeros(3, np.int64))[0].shape == (0, 2)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("mask_sizes", [None, (2, 1, 3, 5), (1, 1, 1, 5), (2, 6, 3, 5)])
def test_sdpa(run: Run, groups: int, mask_sizes: tuple[int, ...] | None) -> None:
    q, k, v = real(2, 6, 3, 4), real(2, groups, 5, 4), real(2, groups, 5, 7)
    masks = [] if mask_sizes is None else [whole(2, *mask_sizes).astype(bool)]
    for mask in masks:
        mask[..., 0] = True
    expected = functional.scaled_dot_product_attention(
        *tensors(q, k, v), *tensors(*masks), scale=0.3, enable_gqa=groups != 6
    )
    close(run(attention.SDPA, q, k, v, *masks, scale=0.3)[0], expected, 5e-6)


def test_sdpa_of_a_row_that_sees_nothing_is_zero(run: Run) -> None:
    q, k, v, mask = real(1, 2, 3, 4), real(1, 1, 5, 4), real(1, 1, 5, 4), np.ones((1, 1, 3, 5), bool)
    mask[0, 0, 1] = False
    result = run(attention.SDPA, q, k, v, mask, scale=1.0)[0]
    assert not result[0, :, 1].any()
    assert np.isfinite(result).all()
    assert result[0, :, 0].any()
    assert run(attention.SDPA, q, real(1, 1, 0, 4), real(1, 1, 0, 4), scale=1.0)[0].any() == np.False_
    assert run(attention.SDPA, real(0, 2, 3, 4), real(0, 1, 5, 4), real(0, 1, 5, 4), scale=1.0)[0].size == 0


def test_sdpa_is_stable(run: Run) -> None:
    q, k, v = real(1, 1, 3, 4) * 100, real(1, 1, 5, 4) * 100, real(1, 1, 5, 4)
    close(
        run(attention.SDPA, q, k, v, scale=1.0)[0],
        functional.scaled_dot_product_attention(*tensors(q, k, v), scale=1.0),
    )


def test_sdpa_refuses() -> None:
    q, k = source("q", "f32", B, 6, T, 4), source("k", "f32", B, 4, S, 4)
    with pytest.raises(TypeMismatch, match="6 query heads do not divide among 4 key heads"):
        attention.SDPA(q, k, k, scale=1.0)
    k = source("k", "f32", B, 2, S, 4)
    with pytest.raises(TypeMismatch, match=r"bool\[B, 1, T, T\]\): shapes .* do not broadcast: T is not S"):
        attention.SDPA(q, k, k, source("m", "bool", B, 1, T, T), scale=1.0)
    with pytest.raises(TypeMismatch, match="the mask is f32"):
        attention.SDPA(q, k, k, source("m", "f32", B, 1, T, S), scale=1.0)


PADDED = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
IDS = np.zeros((2, 3), np.int64)


def test_append_and_filled(run: Run, both: Run) -> None:
    past, rows = real(2, 3, 8, 4), real(2, 3, 3, 4)
    result = both(cache.APPEND, past, rows, PADDED)[0]
    close(result, torch.cat([torch.from_numpy(x) for x in (past[:, :, :2], rows, past[:, :, 5:])], 2))
    close(both(cache.FILLED, past, PADDED)[0], torch.from_numpy(past[:, :, :5]))
    assert both(cache.APPEND, past[:, :, :5], rows, PADDED)[0].shape == (2, 3, 5, 4)
    with pytest.raises(TypeMismatch, match="5 rows do not fit into 4"):
        run(cache.APPEND, past[:, :, :4], rows, PADDED)


def test_append_beyond_the_cache_at_run_time_is_an_error() -> None:
    past, rows, mask = (
        source("past", "f32", B, 1, L, 4),
        source("rows", "f32", B, 1, T, 4),
        source("mask", "i64", B, S + T),
    )
    feeds = {"past": real(1, 1, 4, 4), "rows": real(1, 1, 1, 4), "mask": np.ones((1, 5), np.int64)}
    with pytest.raises(ValueError, match="5 rows do not fit into a cache of 4"):
        interpret(Graph((past, rows, mask), (cache.APPEND(past, rows, mask),)), feeds, {})


def test_causal_mask(both: Run) -> None:
    result = both(cache.CAUSAL_MASK, PADDED, IDS)[0]
    expected = np.zeros((2, 1, 3, 5), bool)
    for b in range(2):
        for t in range(3):
            for s in range(5):
                expected[b, 0, t, s] = s <= 2 + t and PADDED[b, s] == 1
    np.testing.assert_array_equal(result, expected, strict=True)


def test_positions(both: Run) -> None:
    assert both(cache.POSITIONS, PADDED, IDS)[0].tolist() == [[0, 1, 2], [2, 3, 4]]
    assert both(cache.POSITIONS, PADDED, np.zeros((2, 5), np.int64))[0].tolist()[0] == [0, 0, 0, 1, 2]
    assert both(cache.POSITIONS, PADDED[:0], IDS[:0])[0].shape == (0, 3)


def test_cache_types_are_symbolic() -> None:
    past, rows = source("past", "f32", B, 1, L, 4), source("rows", "f32", B, 1, T, 4)
    mask, ids = source("mask", "i64", B, S + T), source("ids", "i64", B, T)
    for op, operands in ((cache.APPEND, (past, rows, mask)), (cache.FILLED, (past, mask)),
                         (cache.CAUSAL_MASK, (mask, ids)), (cache.POSITIONS, (mask, ids))):  # fmt: skip
        assert op.expand is not None
        assert op.expand(*operands)[0].type == op(*operands).type
    assert cache.FILLED(past, mask).shape == (B, 1, S + T, 4)
    assert cache.CAUSAL_MASK(mask, ids).shape == (B, 1, T, S + T)
    with pytest.raises(TypeMismatch, match="the attention mask is f32"):
        cache.POSITIONS(source("mask", "f32", B, S + T), ids)


@pytest.mark.parametrize(
    ("rows", "lanes", "halves"),
    [(8, 4, 1), (7, 4, 1), (1, 4, 1), (8, 4, 2), (10, 8, 2), (6, 16, 2), (5, 1, 1)],
)
@pytest.mark.parametrize("outer", [(), (3,), (2, 3)])
def test_pack_and_unpack(both: Run, outer: tuple[int, ...], rows: int, lanes: int, halves: int) -> None:
    w = real(*outer, rows, 5)
    packed = both(layout.PACK, w, lanes=lanes, halves=halves)[0]
    half, width, panels = rows // halves, lanes // halves, -(-rows // lanes)
    expected = np.zeros((*outer, panels, 5, lanes), np.float32)
    for h in range(halves):
        for row in range(half):
            expected[..., row // width, :, h * width + row % width] = w[..., h * half + row, :]
    np.testing.assert_array_equal(packed, expected, strict=True)
    back = both(layout.UNPACK, packed, rows=rows, halves=halves)[0]
    np.testing.assert_array_equal(back, w, strict=True)


def test_pack_refuses() -> None:
    w = source("w", "f32", 7, 5)
    with pytest.raises(TypeMismatch, match="rows is 7, but must be a positive multiple of halves = 2"):
        layout.PACK(w, lanes=4, halves=2)
    with pytest.raises(TypeMismatch, match="lanes is 3"):
        layout.PACK(source("w", "f32", 8, 5), lanes=3, halves=2)
    with pytest.raises(TypeMismatch, match="9 rows fill 3 panels of 4, not 2"):
        layout.UNPACK(layout.PACK(w, lanes=4), rows=9)


def body_of_two() -> Graph:
    a, b = source("a", "f32", B, 4), source("b", "f32", 4)
    return Graph((a, b), (elementwise.MUL(a, b), elementwise.NEG(a)))


def test_region() -> None:
    x, w = real(3, 4), real(4)
    inputs = (source("x", "f32", B, 4), source("w", "f32", 4))
    node = make(region.REGION, *inputs, kind="k", body=body_of_two())
    feeds = {"x": x, "w": w}
    results = list(interpret(Graph(inputs, node.values), feeds, {}).values())
    np.testing.assert_array_equal(results[0], x * w, strict=True)
    np.testing.assert_array_equal(results[1], -x, strict=True)
    assert region.REGION.expand is not None
    inlined = tuple(region.REGION.expand(*inputs, **node.attrs))
    assert inlined == (elementwise.MUL(*inputs), elementwise.NEG(inputs[0]))


def test_region_inlines_operands_that_its_inputs_are_named_like() -> None:
    body = body_of_two()
    a, b = body.inputs
    assert region.inline(body, (elementwise.NEG(a), b))[0] == elementwise.MUL(elementwise.NEG(a), b)


def test_region_refuses_other_operands() -> None:
    with pytest.raises(TypeMismatch, match=r"the body of k takes \(f32\[B, 4\], f32\[4\]\)"):
        region.REGION(source("x", "f32", B, 4), source("w", "f32", 5), kind="k", body=body_of_two())
