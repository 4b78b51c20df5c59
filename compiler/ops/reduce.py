"""Ops over the elements along an axis: sums, softmax, and orders."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..ir import FLOATS, Array, Op, Type, TypeMismatch
from .rules import NUMBERS, check_axis, check_dtype


def _reduce_of(allowed: tuple[str, ...]) -> Callable[..., tuple[Type, ...]]:
    def infer(x: Type, *, axes: tuple[int, ...], keepdims: bool) -> tuple[Type, ...]:
        check_dtype("the operand", x, allowed)
        for axis in axes:
            check_axis(x, axis)
        if list(axes) != sorted(set(axes)):
            raise TypeMismatch(f"axes {axes} must be ascending and each named once")
        kept = enumerate(x.shape)
        if keepdims:
            return (Type(x.dtype, tuple(1 if axis in axes else size for axis, size in kept)),)
        return (Type(x.dtype, tuple(size for axis, size in kept if axis not in axes)),)

    return infer


def _along_of(allowed: tuple[str, ...]) -> Callable[..., tuple[Type, ...]]:
    def infer(x: Type, *, axis: int) -> tuple[Type, ...]:
        check_dtype("the operand", x, allowed)
        check_axis(x, axis)
        return (x,)

    return infer


def _top_k_type(x: Type, *, k: int) -> tuple[Type, ...]:
    check_dtype("the operand", x, NUMBERS)
    check_axis(x, x.rank - 1)
    size = x.shape[-1]
    if not isinstance(k, int) or k < 0 or (isinstance(size, int) and k > size):
        raise TypeMismatch(f"k is {k}, but must be an int from 0 to {size}, the size of the last axis")
    shape = (*x.shape[:-1], k)
    return Type(x.dtype, shape), Type("i64", shape)


def _sort_type(x: Type) -> tuple[Type, ...]:
    check_dtype("the operand", x, NUMBERS)
    check_axis(x, x.rank - 1)
    return x, Type("i64", x.shape)


def _sum(x: Array, *, axes: tuple[int, ...], keepdims: bool) -> Array:
    return np.asarray(np.sum(x, axis=axes, keepdims=keepdims, dtype=x.dtype))


def _mean(x: Array, *, axes: tuple[int, ...], keepdims: bool) -> Array:
    return np.asarray(np.mean(x, axis=axes, keepdims=keepdims))


def _max(x: Array, *, axes: tuple[int, ...], keepdims: bool) -> Array:
    return np.asarray(np.max(x, axis=axes, keepdims=keepdims))


def _cumsum(x: Array, *, axis: int) -> Array:
    return np.cumsum(x, axis=axis, dtype=x.dtype)


def _softmax(x: Array, *, axis: int) -> Array:
    weights = np.exp(x - np.max(x, axis=axis, keepdims=True, initial=-np.inf))
    return np.asarray(weights / np.sum(weights, axis=axis, keepdims=True))


def _top_k(x: Array, *, k: int) -> tuple[Array, Array]:
    # A stable ascending sort of the reversed row, read backwards, has equal elements in their first order.
    last = x.shape[-1] - 1
    order = last - np.argsort(x[..., ::-1], axis=-1, kind="stable")[..., ::-1][..., :k]
    return np.take_along_axis(x, order, axis=-1), order.astype(np.int64)


def _sort(x: Array) -> tuple[Array, Array]:
    order = np.argsort(x, axis=-1, kind="stable")
    return np.take_along_axis(x, order, axis=-1), order.astype(np.int64)


SUM = Op("sum", _reduce_of(NUMBERS), _sum)
MEAN = Op("mean", _reduce_of(FLOATS), _mean)
MAX = Op("max", _reduce_of(NUMBERS), _max)
CUMSUM = Op("cumsum", _along_of(NUMBERS), _cumsum)
SOFTMAX = Op("softmax", _along_of(FLOATS), _softmax)
TOP_K = Op("top_k", _top_k_type, _top_k)
SORT = Op("sort", _sort_type, _sort)
