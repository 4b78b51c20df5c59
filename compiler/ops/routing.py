"""Mixture-of-experts routing: which experts each token takes, and the matrix products of just those.

M tokens, E experts, k chosen by each, R = M*k rows, K and N widths of a product, I expert width, H hidden.
A slot is a token's choice, numbered m*k+j. Rows are slots in expert order: rows of expert e are
ends[e-1] .. ends[e], so group sizes are data and any of them may be empty. Tokens may lie in a tensor of any
rank, such as [B,T,H]: what counts is its last axis.

Experts that all tokens share are the last ones: a gate with shared=s gives each token s more slots, of the
experts E .. E+s-1 and weight 1, behind those it chose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir import Dim, Op, Type, TypeMismatch, Value, make, plain
from . import dense, elementwise, index, reduce, shape
from .sources import literal_of, scalar

_softmax = reduce.SOFTMAX.reference
_sigmoid, _silu = elementwise.SIGMOID.reference, elementwise.SILU.reference


def _tokens(x: Type) -> Dim:
    """How many rows a tensor of any rank has."""
    return plain(math.prod(x.shape[:-1]))


def _gate_type(
    logits: Type, bias: Type | None = None, *, scores: str, k: int, groups: int = 1, keep: int = 1,
    group_score: str = "max", normalise: bool, eps: float, scale: float, shared: int = 0,
) -> tuple[Type, Type]:  # fmt: skip
    if scores not in ("softmax", "sigmoid") or group_score not in ("max", "top2"):
        raise TypeMismatch(f"scores are softmax or sigmoid, groups max or top2; got {scores}, {group_score}")
    if logits.rank < 2 or not isinstance(logits.shape[-1], int):
        raise TypeMismatch("expected logits of [.. tokens, experts]")
    tokens, experts = _tokens(logits), logits.shape[-1]
    if experts % groups or not 1 <= keep <= groups or not 1 <= k <= keep * (experts // groups):
        raise TypeMismatch(f"{keep} of {groups} groups of {experts} experts do not leave {k} to choose from")
    if bias is not None and bias != Type(logits.dtype, (experts,)):
        raise TypeMismatch("expected one bias for each expert, in the dtype of the logits")
    if shared < 0:
        raise TypeMismatch(f"expected a number of shared experts, not {shared}")
    return Type("i64", (tokens, k + shared)), Type(logits.dtype, (tokens, k + shared))


def _gate(
    logits: Any, bias: Any = None, *, scores: str, k: int, groups: int = 1, keep: int = 1,
    group_score: str = "max", normalise: bool, eps: float, scale: float, shared: int = 0,
) -> tuple[Any, Any]:  # fmt: skip
    logits = logits.reshape(-1, logits.shape[-1])
    probabilities = _softmax(logits, axis=1) if scores == "softmax" else _sigmoid(logits)
    choice = probabilities if bias is None else probabilities + bias
    if groups > 1:
        grouped = choice.reshape(len(choice), groups, choice.shape[1] // groups)
        strongest = np.sort(grouped, axis=-1)[..., -(1 if group_score == "max" else 2) :]
        kept = np.zeros(grouped.shape[:2], dtype=bool)
        np.put_along_axis(kept, _largest(strongest.sum(axis=-1), keep), True, axis=1)
        choice = np.where(kept[..., None], grouped, -np.inf).reshape(choice.shape)
    ids = _largest(choice, k)
    weights = np.take_along_axis(probabilities, ids, axis=1)
    if normalise:
        weights = weights / (weights.sum(axis=1, keepdims=True) + eps)
    ours = np.tile(np.arange(shared) + logits.shape[1], (len(ids), 1))
    ones = np.ones((len(ids), shared), weights.dtype)
    return np.hstack([ids, ours]), np.hstack([weights * scale, ones])


def _largest(x: Any, k: int) -> Any:
    """Where the k largest of each row are, largest first, the lower index first among equals."""
    return np.argsort(-x, axis=1, kind="stable")[:, :k].astype(np.int64)


def _gate_expanded(
    logits: Value, bias: Value | None = None, *, scores: str, k: int, groups: int = 1, keep: int = 1,
    group_score: str = "max", normalise: bool, eps: float, scale: float, shared: int = 0,
) -> Sequence[Value]:  # fmt: skip
    dtype, tokens, experts = logits.type.dtype, _tokens(logits.type), logits.shape[-1]
    logits = shape.RESHAPE(logits, shape=(tokens, experts))
    probabilities = reduce.SOFTMAX(logits, axis=1) if scores == "softmax" else elementwise.SIGMOID(logits)
    choice = probabilities if bias is None else elementwise.ADD(probabilities, bias)
    if groups > 1:
        choice = _masked(choice, groups, keep, group_score)
    ids = make(reduce.TOP_K, choice, k=k)[1]
    weights = index.GATHER_ALONG(probabilities, ids, axis=1)
    if normalise:
        total = reduce.SUM(weights, axes=(1,), keepdims=True)
        weights = elementwise.DIV(weights, elementwise.ADD(total, scalar(eps, dtype)) if eps else total)
    weights = weights if scale == 1 else elementwise.MUL(weights, scalar(scale, dtype))
    if not shared:
        return ids, weights
    ours = shape.EXPAND(literal_of(np.arange(experts, experts + shared)), shape=(tokens, shared))
    ones = shape.FULL(shape=(tokens, shared), value=1, dtype=dtype)
    return shape.CONCAT(ids, ours, axis=1), shape.CONCAT(weights, ones, axis=1)


def _masked(choice: Value, groups: int, keep: int, group_score: str) -> Value:
    """The choice scores [M,E], -inf outside the groups kept."""
    tokens, experts = choice.shape
    grouped = shape.RESHAPE(choice, shape=(tokens, groups, experts // groups))
    if group_score == "max":
        strength = reduce.MAX(grouped, axes=(2,), keepdims=False)
    else:
        strength = reduce.SUM(reduce.TOP_K(grouped, k=2), axes=(2,), keepdims=False)
    chosen = make(reduce.TOP_K, strength, k=keep)[1]
    none = shape.FULL(shape=(tokens, groups), value=0, dtype="i64")
    one = shape.FULL(shape=(tokens, keep), value=1, dtype="i64")
    kept = elementwise.GREATER(index.SCATTER_ALONG(none, chosen, one, axis=1), scalar(0, "i64"))
    kept = shape.EXPAND(shape.RESHAPE(kept, shape=(tokens, groups, 1)), shape=grouped.shape)
    masked = elementwise.WHERE(kept, grouped, scalar(float("-inf"), choice.type.dtype))
    return shape.RESHAPE(masked, shape=choice.shape)


def _permute_type(ids: Type, *, experts: int) -> tuple[Type, Type]:
    if ids.dtype != "i64" or ids.rank != 2:
        raise TypeMismatch("expected expert ids i64 [tokens, chosen]")
    return Type("i64", (ids.elements,)), Type("i64", (experts,))


def _permute(ids: Any, *, experts: int) -> tuple[Any, Any]:
    slots = ids.reshape(-1)
    ends = np.cumsum(index.BINCOUNT.reference(slots, bins=experts))
    return np.argsort(slots, kind="stable").astype(np.int64), ends.astype(np.int64)


def _permute_expanded(ids: Value, *, experts: int) -> Sequence[Value]:
    slots = shape.RESHAPE(ids, shape=(ids.type.elements,))
    order = make(reduce.SORT, slots)[1]
    return order, reduce.CUMSUM(index.BINCOUNT(slots, bins=experts), axis=0)


def _grouped_matmul_type(x: Type, order: Type, ends: Type, w: Type, *, share: int) -> tuple[Type]:
    if x.rank < 2 or w.rank != 3 or x.shape[-1] != w.shape[2] or x.dtype != w.dtype:
        raise TypeMismatch("expected rows [.. M, K] and weights [E, N, K] of one dtype")
    if order.rank != 1 or ends.shape != w.shape[:1]:
        raise TypeMismatch("expected an order of rows [R] and one end for each expert")
    if plain(_tokens(x) * max(share, 1)) != order.shape[0]:
        raise TypeMismatch(f"expected {share or 1} rows of the order for each row of x")
    return (Type(x.dtype, (order.shape[0], w.shape[1])),)


def _grouped_matmul(x: Any, order: Any, ends: Any, w: Any, *, share: int) -> Any:
    rows = x.reshape(-1, x.shape[-1])
    rows = rows[order // share] if share else rows
    out = np.zeros((len(order), w.shape[1]), dtype=x.dtype)
    start = 0
    for expert, end in enumerate(ends):
        if start < end:
            out[start:end] = rows[start:end] @ w[expert].T
        start = end
    return out


def _grouped_matmul_expanded(x: Value, order: Value, ends: Value, w: Value, *, share: int) -> Sequence[Value]:
    """Each row fetches its expert's matrix: only chosen experts are read."""
    count, (experts, width, depth) = order.shape[0], w.shape
    rows = shape.RESHAPE(x, shape=(_tokens(x.type), depth))
    rows = index.TAKE(rows, elementwise.FLOOR_DIVIDE(order, scalar(share, "i64")), axis=0) if share else rows
    number = shape.RESHAPE(shape.IOTA(size=count, dtype=ends.type.dtype), shape=(count, 1))
    passed = elementwise.LESS_EQUAL(shape.RESHAPE(ends, shape=(1, experts)), number)
    expert = reduce.SUM(elementwise.CAST(passed, dtype="i64"), axes=(1,), keepdims=False)
    product = dense.MATMUL(index.TAKE(w, expert, axis=0), shape.RESHAPE(rows, shape=(count, depth, 1)))
    return (shape.RESHAPE(product, shape=(count, width)),)


def _combine_type(y: Type, order: Type, weights: Type) -> tuple[Type]:
    if y.rank != 2 or weights.rank != 2 or y.dtype != weights.dtype:
        raise TypeMismatch("expected rows [R, H] and weights [M, k] of one dtype")
    if order.shape != y.shape[:1] or weights.elements != order.shape[0]:
        raise TypeMismatch("expected one row and one weight for each slot of the order")
    return (Type(y.dtype, (weights.shape[0], y.shape[1])),)


def _combine(y: Any, order: Any, weights: Any) -> Any:
    slots = y[np.argsort(order, kind="stable")].reshape(*weights.shape, y.shape[1])
    return (slots * weights[..., None]).sum(axis=1)


def _combine_expanded(y: Value, order: Value, weights: Value) -> Sequence[Value]:
    slots = index.TAKE(y, make(reduce.SORT, order)[1], axis=0)
    slots = shape.RESHAPE(slots, shape=(*weights.shape, y.shape[1]))
    weighted = elementwise.MUL(slots, shape.RESHAPE(weights, shape=(*weights.shape, 1)))
    return (reduce.SUM(weighted, axes=(1,), keepdims=False),)


def _swiglu_type(x: Type) -> tuple[Type]:
    if not x.shape or not isinstance(x.shape[-1], int) or x.shape[-1] % 2:
        raise TypeMismatch("expected a gate half and an up half along the last axis")
    return (Type(x.dtype, (*x.shape[:-1], x.shape[-1] // 2)),)


def _swiglu(x: Any) -> Any:
    gate, up = np.split(x, 2, axis=-1)
    return _silu(gate) * up


def _swiglu_expanded(x: Value) -> Sequence[Value]:
    last, half, width = x.type.rank - 1, x.shape[-1] // 2, x.shape[-1]
    gate, up = (shape.SLICE(x, axis=last, start=a, stop=b) for a, b in ((0, half), (half, width)))
    return (elementwise.MUL(elementwise.SILU(gate), up),)


TOP_K_GATE = Op("top_k_gate", _gate_type, _gate, _gate_expanded)
PERMUTE = Op("permute", _permute_type, _permute, _permute_expanded)
GROUPED_MATMUL = Op("grouped_matmul", _grouped_matmul_type, _grouped_matmul, _grouped_matmul_expanded)
COMBINE = Op("combine", _combine_type, _combine, _combine_expanded)
SWIGLU = Op("swiglu", _swiglu_type, _swiglu, _swiglu_expanded)
