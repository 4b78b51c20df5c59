"""Ops that move elements without changing them, and those that make regular ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import sympy

from ..ir import DTYPES, Array, Dim, Op, Type, TypeMismatch, plain
from .rules import broadcast, check_axis, check_same_dtype, shown_shape, without


def _reshape_type(x: Type, *, shape: tuple[Dim, ...]) -> tuple[Type, ...]:
    result = Type(x.dtype, shape)
    if result.elements != x.elements:
        raise TypeMismatch(f"{x} has {x.elements} elements, but {result} has {result.elements}")
    return (result,)


def _transpose_type(x: Type, *, perm: tuple[int, ...]) -> tuple[Type, ...]:
    if sorted(perm) != list(range(x.rank)):
        raise TypeMismatch(f"perm {perm} is no order of the {x.rank} axes")
    return (Type(x.dtype, tuple(x.shape[axis] for axis in perm)),)


def _slice_type(x: Type, *, axis: int, start: Dim, stop: Dim, step: int = 1) -> tuple[Type, ...]:
    check_axis(x, axis)
    if not isinstance(step, int) or step < 1:
        raise TypeMismatch(f"step is {step}, but must be a positive int")
    for low, high in ((0, start), (start, stop), (stop, x.shape[axis])):
        if low != high and sympy.sympify(high - low).is_negative:
            raise TypeMismatch(f"{start}..{stop} does not lie within axis {axis}, 0..{x.shape[axis]}")
    size = plain(stop - start)
    if step != 1:
        size = plain(sympy.ceiling(sympy.sympify(size) / step))
    return (Type(x.dtype, (*x.shape[:axis], size, *x.shape[axis + 1 :])),)


def _concat_type(*xs: Type, axis: int) -> tuple[Type, ...]:
    if not xs:
        raise TypeMismatch("nothing to concatenate: at least one operand is needed")
    check_same_dtype(*xs)
    check_axis(xs[0], axis)
    if any(x.rank != xs[0].rank or without(x.shape, axis) != without(xs[0].shape, axis) for x in xs):
        raise TypeMismatch(f"the operands may differ in axis {axis} only")
    size = plain(sum(x.shape[axis] for x in xs))
    return (Type(xs[0].dtype, (*xs[0].shape[:axis], size, *xs[0].shape[axis + 1 :])),)


def _expand_type(x: Type, *, shape: tuple[Dim, ...]) -> tuple[Type, ...]:
    result = Type(x.dtype, shape)
    if broadcast(x.shape, result.shape) != result.shape:
        raise TypeMismatch(f"{x} does not broadcast to {shown_shape(result.shape)}")
    return (result,)


def _iota_type(*, size: Dim, dtype: str) -> tuple[Type, ...]:
    return (Type(dtype, (size,)),)


def _full_type(*, shape: tuple[Dim, ...], value: float | int | bool, dtype: str) -> tuple[Type, ...]:
    return (Type(dtype, shape),)


def _reshape(x: Array, *, shape: tuple[int, ...]) -> Array:
    return x.reshape(shape)


def _transpose(x: Array, *, perm: tuple[int, ...]) -> Array:
    return x.transpose(perm)


def _slice(x: Array, *, axis: int, start: int, stop: int, step: int) -> Array:
    if not 0 <= start <= stop <= x.shape[axis]:
        raise ValueError(f"{start}..{stop} does not lie within axis {axis}, 0..{x.shape[axis]}")
    rows: list[Any] = [slice(None)] * axis
    return np.asarray(x[(*rows, slice(start, stop, step))])


def _concat(*xs: Array, axis: int) -> Array:
    return np.concatenate(xs, axis=axis)


def _expand(x: Array, *, shape: tuple[int, ...]) -> Array:
    return np.broadcast_to(x, shape)


def _iota(*, size: int, dtype: str) -> Array:
    return np.arange(size).astype(DTYPES[dtype])


def _full(*, shape: tuple[int, ...], value: float | int | bool, dtype: str) -> Array:
    return np.full(shape, value, DTYPES[dtype])


def _reshape_rowwise(x: Type, *, shape: tuple[Dim, ...]) -> bool:
    return x.rank > 0 and len(shape) > 0 and shape[0] == x.shape[0]


def _transpose_rowwise(x: Type, *, perm: tuple[int, ...]) -> bool:
    return x.rank > 0 and perm[0] == 0


RESHAPE = Op("reshape", _reshape_type, _reshape, rowwise=_reshape_rowwise)
TRANSPOSE = Op("transpose", _transpose_type, _transpose, rowwise=_transpose_rowwise)
SLICE = Op("slice", _slice_type, _slice, rowwise=lambda x, *, axis, start, stop, step: axis > 0)
CONCAT = Op("concat", _concat_type, _concat, rowwise=lambda *xs, axis: axis > 0)
EXPAND = Op("expand", _expand_type, _expand)
IOTA = Op("iota", _iota_type, _iota)
FULL = Op("full", _full_type, _full)
