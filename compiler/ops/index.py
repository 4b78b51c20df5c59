"""Ops that read and write where other values say. An index outside its axis is an error, but for bincount."""

from __future__ import annotations

import numpy as np

from ..ir import Array, Op, Type, TypeMismatch
from .rules import INDICES, check_axis, check_dtype, check_rank, check_same_dtype, check_shape


def _take_type(x: Type, indices: Type, *, axis: int) -> tuple[Type, ...]:
    check_axis(x, axis)
    check_dtype("the index", indices, INDICES)
    return (Type(x.dtype, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])),)


def _check_within(what: str, inner: Type, outer: Type, free: int | None) -> None:
    """`inner` is no larger than `outer` in any axis but the free one."""
    check_rank(what, inner, outer.rank)
    for axis, (small, large) in enumerate(zip(inner.shape, outer.shape)):
        fits = small == large or (isinstance(small, int) and isinstance(large, int) and small <= large)
        if axis != free and not fits:
            raise TypeMismatch(f"{what} is {inner}, larger than {outer} in axis {axis}")


def _gather_along_type(x: Type, indices: Type, *, axis: int) -> tuple[Type, ...]:
    check_axis(x, axis)
    check_dtype("the index", indices, INDICES)
    _check_within("the index", indices, x, axis)
    return (Type(x.dtype, indices.shape),)


def _scatter_along_type(x: Type, indices: Type, source: Type, *, axis: int) -> tuple[Type, ...]:
    check_axis(x, axis)
    check_dtype("the index", indices, INDICES)
    check_same_dtype(x, source)
    _check_within("the index", indices, x, axis)
    _check_within("the index", indices, source, None)
    return (x,)


def _scatter_rows_type(x: Type, indices: Type, source: Type) -> tuple[Type, ...]:
    check_axis(x, 0)
    check_dtype("the index", indices, INDICES)
    check_same_dtype(x, source)
    check_shape("the source", source, (*indices.shape, *x.shape[1:]))
    return (x,)


def _bincount_type(ids: Type, *, bins: int) -> tuple[Type, ...]:
    check_dtype("ids", ids, INDICES)
    return (Type("i64", (bins,)),)


def _take(x: Array, indices: Array, *, axis: int) -> Array:
    return np.take(x, indices, axis=axis)


def _part(x: Array, shape: tuple[int, ...], free: int | None) -> Array:
    """The first elements of x in every axis but the free one, as a view."""
    return x[tuple(slice(None) if axis == free else slice(size) for axis, size in enumerate(shape))]


def _gather_along(x: Array, indices: Array, *, axis: int) -> Array:
    return np.take_along_axis(_part(x, indices.shape, axis), indices, axis=axis)


def _scatter_along(x: Array, indices: Array, source: Array, *, axis: int) -> Array:
    result = x.copy()
    written = _part(source, indices.shape, None)
    np.put_along_axis(_part(result, indices.shape, axis), indices, written, axis=axis)
    return result


def _scatter_rows(x: Array, indices: Array, source: Array) -> Array:
    result = x.copy()
    result[indices] = source
    return result


def _bincount(ids: Array, *, bins: int) -> Array:
    inside = ids[(ids >= 0) & (ids < bins)]  # as torch.histc: what is in no bin is not counted
    return np.bincount(inside, minlength=bins).astype(np.int64)


TAKE = Op("take", _take_type, _take)
GATHER_ALONG = Op("gather_along", _gather_along_type, _gather_along)
SCATTER_ALONG = Op("scatter_along", _scatter_along_type, _scatter_along)
SCATTER_ROWS = Op("scatter_rows", _scatter_rows_type, _scatter_rows)
BINCOUNT = Op("bincount", _bincount_type, _bincount)
