"""Multi-head latent attention over a cache of latents (DeepSeek-V2, arXiv 2405.04434).

B batch, T new tokens, S cached tokens, Z = S+T, L rows of the cache, N heads, C latent, D unrotated and
R rotated part of a head, V values of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir import FLOATS, Array, Op, Type, TypeMismatch, Value, plain
from . import attention, cache, dense, norm, shape
from .rules import check_dtype, check_rank, check_same_dtype, check_shape


def _latent_type(q: Type, *rest: Type, heads: int, nope: int, value: int, scale: float,
                 pairs_in: str, pairs_out: str) -> tuple[Type, ...]:  # fmt: skip
    wanted = 4 if pairs_in == "none" else 6
    if len(rest) != wanted:
        raise TypeMismatch(f"pairs_in={pairs_in!r} goes with {1 + wanted} operands, not {1 + len(rest)}")
    *angles, latent, rotary_keys, mask, w = rest
    check_same_dtype(q, *angles, latent, rotary_keys, w)
    check_dtype("q", q, FLOATS)
    check_dtype("the attention mask", mask, ("i64",))
    check_rank("q", q, 3)
    check_rank("the latent cache", latent, 4)
    check_rank("the attention mask", mask, 2)
    batch, new, _ = q.shape
    rows, rotary = latent.shape[2], rotary_keys.shape[-1]
    check_shape("q", q, (batch, new, plain(heads * (nope + rotary))))
    for angle in angles:
        check_shape("cos or sin", angle, (batch, new, rotary // 2))
    check_shape("the latent cache", latent, (batch, 1, rows, latent.shape[3]))
    check_shape("the cache of rotated keys", rotary_keys, (batch, 1, rows, rotary))
    check_shape("the attention mask", mask, (batch, mask.shape[1]))
    check_shape("w_kvb", w, (heads * (nope + value), latent.shape[3]))
    return (Type(q.dtype, (batch, new, heads * value)),)


def _latent(q: Array, *rest: Array, heads: int, nope: int, value: int, scale: float,
            pairs_in: str, pairs_out: str) -> Array:  # fmt: skip
    """The materialised form: every cached latent becomes a key and a value for each head."""
    *angles, latent, rotary_keys, mask, w = rest
    batch, new, seen = *q.shape[:2], mask.shape[1]
    q = q.reshape(batch, new, heads, q.shape[2] // heads)
    turned = q[..., nope:]
    if angles:
        cos, sin = (angle[:, :, None] for angle in angles)
        turned = norm.ROTARY.reference(turned, cos, sin, pairs_in=pairs_in, pairs_out=pairs_out)
    kv = (latent[:, 0, :seen] @ w.T).reshape(batch, seen, heads, nope + value)
    scores = np.einsum("btnd,bznd->bntz", q[..., :nope], kv[..., :nope])
    scores = (scores + np.einsum("btnr,bzr->bntz", turned, rotary_keys[:, 0, :seen])) * scale
    result = np.einsum("bntz,bznv->btnv", _weights(scores, mask), kv[..., nope:])
    return np.asarray(result.reshape(batch, new, heads * value))


def _weights(scores: Array, mask: Array) -> Array:
    """Softmax of scores [B,N,T,Z] over the keys a token may see; one that sees none weighs all with 0."""
    new, seen = scores.shape[2:]
    causal = np.arange(seen) <= np.arange(seen - new, seen)[:, None]
    visible = causal & (mask[:, None, None, :] != 0)
    top = np.max(scores, axis=-1, keepdims=True, initial=-np.inf, where=visible)
    powers = np.where(visible, np.exp(np.where(visible, scores - top, 0)), 0)
    return np.asarray(powers / np.maximum(powers.sum(axis=-1, keepdims=True), np.finfo(powers.dtype).tiny))


def _expand_latent(q: Value, *rest: Value, heads: int, nope: int, value: int, scale: float,
                   **pairs: Any) -> Sequence[Value]:  # fmt: skip
    """Project the cache up, turn the queries, attend."""
    *angles, latent, rotary_keys, mask, w = rest
    (batch, new, _), rotary, seen = q.shape, rotary_keys.shape[3], mask.shape[1]
    q = _by_head(q, heads)
    if angles:
        cos, sin = (shape.RESHAPE(angle, shape=(batch, 1, new, rotary // 2)) for angle in angles)
        turned = norm.ROTARY(_columns(q, nope, nope + rotary), cos, sin, **pairs)
        q = shape.CONCAT(_columns(q, 0, nope), turned, axis=3)
    rows = shape.RESHAPE(cache.FILLED(latent, mask), shape=(batch, seen, latent.shape[3]))
    kv = _by_head(dense.LINEAR(rows, w), heads)
    shared = shape.EXPAND(cache.FILLED(rotary_keys, mask), shape=(batch, heads, seen, rotary))
    keys = shape.CONCAT(_columns(kv, 0, nope), shared, axis=3)
    visible = cache.CAUSAL_MASK(mask, shape.FULL(shape=(batch, new), value=0, dtype="i64"))
    result = attention.SDPA(q, keys, _columns(kv, nope, nope + value), visible, scale=scale)
    by_token = shape.TRANSPOSE(result, perm=(0, 2, 1, 3))
    return (shape.RESHAPE(by_token, shape=(batch, new, heads * value)),)


def _by_head(x: Value, heads: int) -> Value:
    """[B, T, N*d] as [B, N, T, d]."""
    batch, new, width = x.shape
    return shape.TRANSPOSE(shape.RESHAPE(x, shape=(batch, new, heads, width // heads)), perm=(0, 2, 1, 3))


def _columns(x: Value, start: int, stop: int) -> Value:
    return shape.SLICE(x, axis=x.type.rank - 1, start=start, stop=stop)


# latent_attention(q [B,T,N*(D+R)], cos [B,T,R/2], sin, latent [B,1,L,C], rotary_keys [B,1,L,R],
# mask [B,S+T] i64, w_kvb [N*(D+V), C]) -> [B,T,N*V]. The caches hold the new rows already; a head of q is its
# unrotated part, then the part that is rotated here; a head of w_kvb is its key rows, then its value rows.
# pairs_in="none": nothing is rotated and there are no cos and sin.
LATENT_ATTENTION = Op("latent_attention", _latent_type, _latent, _expand_latent)
