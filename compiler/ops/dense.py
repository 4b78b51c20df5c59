"""Matrix products: one weight, numpy's matmul, and one weight for each group of rows."""

from __future__ import annotations

import numpy as np

from ..ir import FLOATS, Array, Op, Type, TypeMismatch
from .rules import INDICES, broadcast, check_dtype, check_rank, check_same_dtype, check_shape


def _linear_type(x: Type, weight: Type, bias: Type | None = None) -> tuple[Type, ...]:
    check_same_dtype(x, weight, *([bias] if bias else []))
    check_dtype("x", x, FLOATS)
    check_rank("the weight", weight, 2)
    rows, columns = weight.shape
    if x.rank == 0 or x.shape[-1] != columns:
        raise TypeMismatch(f"the last axis of x must be {columns}, as the weight {weight} has it")
    if bias:
        check_shape("the bias", bias, (rows,))
    return (Type(x.dtype, (*x.shape[:-1], rows)),)


def _matmul_type(a: Type, b: Type) -> tuple[Type, ...]:
    check_same_dtype(a, b)
    if min(a.rank, b.rank) < 2:
        raise TypeMismatch("both operands need at least 2 axes; reshape a vector first")
    if a.shape[-1] != b.shape[-2]:
        raise TypeMismatch(f"the inner sizes {a.shape[-1]} and {b.shape[-2]} differ")
    return (Type(a.dtype, (*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])),)


def _grouped_mm_type(x: Type, weights: Type, ends: Type) -> tuple[Type, ...]:
    check_same_dtype(x, weights)
    check_dtype("x", x, FLOATS)
    check_dtype("ends", ends, INDICES)
    check_rank("x", x, 2)
    check_rank("the weights", weights, 3)
    groups, inner, columns = weights.shape
    check_shape("x", x, (x.shape[0], inner))
    check_shape("ends", ends, (groups,))
    return (Type(x.dtype, (x.shape[0], columns)),)


def _linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    result = x @ weight.T
    return np.asarray(result if bias is None else result + bias)


def _matmul(a: Array, b: Array) -> Array:
    return np.asarray(a @ b)


def _grouped_mm(x: Array, weights: Array, ends: Array) -> Array:
    result = np.zeros((x.shape[0], weights.shape[2]), x.dtype)
    start = 0
    for weight, end in zip(weights, ends.tolist()):
        result[start:end] = x[start:end] @ weight
        start = end
    return result


LINEAR = Op("linear", _linear_type, _linear)
MATMUL = Op("matmul", _matmul_type, _matmul)
# Rows in order of their group; ends holds the row after each group's last. Rows after the last group give 0.
GROUPED_MM = Op("grouped_mm", _grouped_mm_type, _grouped_mm)
