"""Normalisation and rotation: RMSNorm and rotary position embedding.

n the normed width, r the rotated width. Rotation turns r/2 pairs of numbers; the two of a pair are neighbours
("interleaved": x0 x1 | x2 x3 | ..) or lie half a vector apart ("halves": x0 x(r/2) | x1 x(r/2+1) | ..).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir import Op, Type, TypeMismatch, Value, plain
from . import elementwise, reduce, shape
from .sources import scalar

PAIRS = ("interleaved", "halves")


def _rms_norm_type(x: Type, w: Type, *, eps: float) -> tuple[Type]:
    if x.rank == 0 or w.shape != x.shape[-1:]:
        raise TypeMismatch("expected a weight as wide as the last axis of x")
    if w.dtype != x.dtype:
        raise TypeMismatch("expected x and its weight in one dtype")
    return (x,)


def _rms_norm(x: Any, w: Any, *, eps: float) -> Any:
    wide = x.astype(np.promote_types(x.dtype, np.float32))
    normed = wide / np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return normed.astype(x.dtype) * w


def _rms_norm_expanded(x: Value, w: Value, *, eps: float) -> Sequence[Value]:
    dtype = x.type.dtype if x.type.dtype in ("f32", "f64") else "f32"
    wide = _cast(x, dtype)
    mean = reduce.MEAN(elementwise.MUL(wide, wide), axes=(x.type.rank - 1,), keepdims=True)
    inverse = elementwise.RSQRT(elementwise.ADD(mean, scalar(eps, dtype)))
    return (elementwise.MUL(_cast(elementwise.MUL(wide, inverse), x.type.dtype), w),)


def _cast(x: Value, dtype: str) -> Value:
    return x if x.type.dtype == dtype else elementwise.CAST(x, dtype=dtype)


def _rotary_type(x: Type, cos: Type, sin: Type, *, pairs_in: str, pairs_out: str) -> tuple[Type]:
    if pairs_in not in PAIRS or pairs_out not in PAIRS:
        raise TypeMismatch(f"pairs are interleaved or halves, not {pairs_in!r} and {pairs_out!r}")
    if cos != sin or cos.dtype != x.dtype:
        raise TypeMismatch("expected cos and sin of one type, in the dtype of x")
    if not x.shape or not cos.shape or plain(2 * cos.shape[-1]) != x.shape[-1] or cos.rank > x.rank:
        raise TypeMismatch("expected cos and sin half as wide as the last axis of x")
    if any(c not in (1, d) for c, d in zip(cos.shape[-2::-1], x.shape[-2::-1])):
        raise TypeMismatch("expected cos and sin to broadcast to x without widening it")
    return (x,)


def _rotary(x: Any, cos: Any, sin: Any, *, pairs_in: str, pairs_out: str) -> Any:
    half = x.shape[-1] // 2
    interleaved = pairs_in == "interleaved"
    x1, x2 = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    turned = (x1 * cos - x2 * sin, x2 * cos + x1 * sin)
    if pairs_out == "interleaved":
        return np.stack(turned, axis=-1).reshape(x.shape)
    return np.concatenate(turned, axis=-1)


def _rotary_expanded(x: Value, cos: Value, sin: Value, *, pairs_in: str, pairs_out: str) -> Sequence[Value]:
    mul, last, width = elementwise.MUL, x.type.rank - 1, x.shape[-1]
    half = width // 2
    bounds = ((0, width, 2), (1, width, 2)) if pairs_in == "interleaved" else ((0, half, 1), (half, width, 1))
    x1, x2 = (shape.SLICE(x, axis=last, start=start, stop=stop, step=step) for start, stop, step in bounds)
    o1 = elementwise.SUB(mul(x1, cos), mul(x2, sin))
    o2 = elementwise.ADD(mul(x2, cos), mul(x1, sin))
    if pairs_out == "halves":
        return (shape.CONCAT(o1, o2, axis=last),)
    columns = [shape.RESHAPE(o, shape=(*o.shape, 1)) for o in (o1, o2)]
    return (shape.RESHAPE(shape.CONCAT(*columns, axis=last + 1), shape=x.shape),)


RMS_NORM = Op("rms_norm", _rms_norm_type, _rms_norm, _rms_norm_expanded)
ROTARY = Op("rotary", _rotary_type, _rotary, _rotary_expanded)
