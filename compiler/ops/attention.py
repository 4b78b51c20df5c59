"""Scaled dot-product attention.

B batch, N query heads, G key heads, T queries, Z keys, D key width, V value width.
"""

from __future__ import annotations

import numpy as np

from ..ir import FLOATS, Array, Op, Type, TypeMismatch
from .rules import broadcast, check_dtype, check_rank, check_same_dtype, check_shape


def _sdpa_type(q: Type, k: Type, v: Type, mask: Type | None = None, *, scale: float) -> tuple[Type, ...]:
    check_same_dtype(q, k, v)
    check_dtype("q", q, FLOATS)
    for what, operand in (("q", q), ("k", k), ("v", v)):
        check_rank(what, operand, 4)
    batch, heads, queries, width = q.shape
    groups, keys = k.shape[1:3]
    check_shape("k", k, (batch, groups, keys, width))
    check_shape("v", v, (batch, groups, keys, v.shape[3]))
    if not isinstance(heads, int) or not isinstance(groups, int) or groups < 1 or heads % groups:
        raise TypeMismatch(f"{heads} query heads do not divide among {groups} key heads")
    if mask:
        _check_mask(mask, Type("bool", (batch, heads, queries, keys)))
    return (Type(q.dtype, (batch, heads, queries, v.shape[3])),)


def _check_mask(mask: Type, scores: Type) -> None:
    check_dtype("the mask", mask, ("bool",))
    if broadcast(mask.shape, scores.shape) != scores.shape:
        raise TypeMismatch(f"the mask {mask} does not broadcast to the scores {scores}")


def _sdpa(q: Array, k: Array, v: Array, mask: Array | None = None, *, scale: float) -> Array:
    batch, heads, queries, width = q.shape
    groups, keys = k.shape[1:3]
    grouped = q.reshape(batch, groups, heads // groups, queries, width)
    scores = (grouped @ k[:, :, None].swapaxes(-1, -2) * scale).reshape(batch, heads, queries, keys)
    weights = _masked_softmax(scores if mask is None else np.where(mask, scores, -np.inf).astype(q.dtype))
    result = weights.reshape(batch, groups, heads // groups, queries, keys) @ v[:, :, None]
    return np.asarray(result.reshape(batch, heads, queries, v.shape[3]))


def _masked_softmax(scores: Array) -> Array:
    """Softmax over the last axis; a row of nothing but -inf gives 0, not nan."""
    largest = np.max(scores, axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isneginf(largest), 0, largest))
    total = np.sum(weights, axis=-1, keepdims=True)
    return np.asarray(weights / np.where(total == 0, 1, total))


# mask is true where a query may look. A query that may look nowhere gives 0.
SDPA = Op("sdpa", _sdpa_type, _sdpa)
