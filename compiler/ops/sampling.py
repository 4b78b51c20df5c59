"""How a text goes on: the next token, chosen from logits by a number that the caller drew.

    choose_token(logits f32 [B,..,V], temperature f32 [B], top_k i64 [B], top_p f32 [B], uniform f32 [B])
        -> token i64 [B], log_probability f32 [B]

Each text has one row of logits z. Token i weighs exp((z_i - max z) / temperature); the largest weigh 1.

1. top_k: a token stays if fewer than top_k tokens have larger logits; below 1, or above V, all stay.
2. top_p: of those, a token stays if what has larger logits weighs, together, less than top_p of all of them.
3. uniform, in [0, 1): the token is the first, by ids, up to which the weights of those that stay add up to
   more than uniform times their sum.

So temperature comes first, then top-k, then top-p, as in Hugging Face's and vLLM's samplers. The largest
logits always stay, and equal logits stay or go together: nothing hangs on an order among them. Tokens are
drawn in the order of ids because that needs none by chance: each weight stays where it is. A temperature that
is not above 0 is greedy: the lowest id of the largest logit. Arithmetic is in float64; a kernel may give the
neighbour where a sum lies within its rounding of a limit.

log_probability is that of the model's own softmax: of all tokens, at temperature 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..ir import FLOATS, Array, Dim, Op, Type, TypeMismatch, Value, make, plain
from .elementwise import (
    CAST,
    DIV,
    EQUAL,
    EXP,
    GREATER,
    GREATER_EQUAL,
    LESS,
    LESS_EQUAL,
    LOG,
    LOGICAL_OR,
    MAXIMUM,
    MINIMUM,
    MUL,
    NEG,
    SUB,
    WHERE,
)
from .index import GATHER_ALONG
from .reduce import CUMSUM, MAX, SORT, SUM
from .rules import check_dtype, check_same_dtype, check_shape
from .shape import CONCAT, FULL, RESHAPE, SLICE
from .sources import scalar

WISHES = {
    "temperature": "f32",
    "top_k": "i64",
    "top_p": "f32",
    "uniform": "f32",
}  # operands behind the logits


def _batch(logits: Type) -> Dim:
    return plain(math.prod(logits.shape[:-1]))


def _choose_type(
    logits: Type, temperature: Type, top_k: Type, top_p: Type, uniform: Type
) -> tuple[Type, Type]:
    check_dtype("logits", logits, FLOATS)
    check_same_dtype(logits, temperature, top_p, uniform)
    check_dtype("top_k", top_k, ("i64",))
    if logits.rank < 2 or not isinstance(logits.shape[-1], int) or logits.shape[-1] < 1:
        raise TypeMismatch("expected logits of [.. texts, vocabulary]")
    for name, wish in zip(WISHES, (temperature, top_k, top_p, uniform)):
        check_shape(name, wish, (_batch(logits),))
    return Type("i64", (_batch(logits),)), Type(logits.dtype, (_batch(logits),))


def _below(rows: Array, top: Array) -> Array:
    """How far logits are below the largest, which may be infinite: 0 at most."""
    return np.where(rows == top, 0.0, rows - top)


@np.errstate(all="ignore")  # differences of infinities are looked at by nobody
def _choose(
    logits: Array, temperature: Array, top_k: Array, top_p: Array, uniform: Array
) -> tuple[Array, Array]:
    rows = logits.reshape(-1, logits.shape[-1]).astype(np.float64)
    count, top = rows.shape[1], rows.max(axis=1, keepdims=True)
    heat, part, drawn = (wish.astype(np.float64)[:, None] for wish in (temperature, top_p, uniform))
    drawing, k = heat > 0, top_k[:, None]
    heat = np.where(drawing, heat, 1.0)
    falling = -np.sort(-rows, axis=1)
    kth = np.take_along_axis(falling, np.where((k < 1) | (k > count), count, k) - 1, axis=1)
    sums = np.cumsum(np.where(falling >= kth, np.exp(_below(falling, top) / heat), 0.0), axis=1)
    larger = np.hstack([np.zeros_like(top), sums[:, :-1]])
    kept = (larger < part * sums[:, -1:]).sum(axis=1, keepdims=True)
    least = np.maximum(kth, np.take_along_axis(falling, np.maximum(kept, 1) - 1, axis=1))
    staying = rows >= np.where(drawing, least, top)
    sums = np.cumsum(np.where(staying, np.exp(_below(rows, top) / heat), 0.0), axis=1)
    passed = (sums <= np.where(drawing, drawn, 0.0) * sums[:, -1:]).sum(axis=1, keepdims=True)
    token = np.minimum(passed, count - 1)
    likely = np.take_along_axis(_below(rows, top), token, axis=1)
    likely = likely - np.log(np.exp(_below(rows, top)).sum(axis=1, keepdims=True))
    return token[:, 0].astype(np.int64), likely[:, 0].astype(logits.dtype)


def _below_expanded(rows: Value, top: Value) -> Value:
    return WHERE(EQUAL(rows, top), scalar(0, "f64"), SUB(rows, top))


def _expand_choose(
    logits: Value, temperature: Value, top_k: Value, top_p: Value, uniform: Value
) -> Sequence[Value]:
    batch, count = _batch(logits.type), int(logits.shape[-1])
    zero, one = scalar(0, "f64"), scalar(1, "i64")
    flat = RESHAPE(logits, shape=(batch, count))
    rows = CAST(flat, dtype="f64")
    top = MAX(rows, axes=(1,), keepdims=True)
    heat, part, drawn = (_column(wish, batch) for wish in (temperature, top_p, uniform))
    drawing, k = GREATER(heat, zero), RESHAPE(top_k, shape=(batch, 1))
    heat = WHERE(drawing, heat, scalar(1, "f64"))
    falling = CAST(NEG(make(SORT, NEG(flat))[0]), dtype="f64")
    every = LOGICAL_OR(LESS(k, one), GREATER(k, scalar(count, "i64")))
    kth = GATHER_ALONG(falling, SUB(WHERE(every, scalar(count, "i64"), k), one), axis=1)
    weights = EXP(DIV(_below_expanded(falling, top), heat))
    sums = CUMSUM(WHERE(GREATER_EQUAL(falling, kth), weights, zero), axis=1)
    nothing = FULL(shape=(batch, 1), value=0.0, dtype="f64")
    larger = CONCAT(nothing, SLICE(sums, axis=1, start=0, stop=count - 1), axis=1)
    kept = _how_many(LESS(larger, MUL(part, _last(sums))))
    least = MAXIMUM(kth, GATHER_ALONG(falling, SUB(MAXIMUM(kept, one), one), axis=1))
    staying = GREATER_EQUAL(rows, WHERE(drawing, least, top))
    weights = EXP(DIV(_below_expanded(rows, top), heat))
    sums = CUMSUM(WHERE(staying, weights, zero), axis=1)
    passed = _how_many(LESS_EQUAL(sums, MUL(WHERE(drawing, drawn, zero), _last(sums))))
    token = MINIMUM(passed, scalar(count - 1, "i64"))
    below = _below_expanded(rows, top)
    likely = SUB(GATHER_ALONG(below, token, axis=1), LOG(SUM(EXP(below), axes=(1,), keepdims=True)))
    likely = CAST(RESHAPE(likely, shape=(batch,)), dtype=logits.type.dtype)
    return RESHAPE(token, shape=(batch,)), likely


def _column(x: Value, batch: Dim) -> Value:
    return CAST(RESHAPE(x, shape=(batch, 1)), dtype="f64")


def _last(x: Value) -> Value:
    return SLICE(x, axis=1, start=plain(x.shape[1] - 1), stop=x.shape[1])


def _how_many(x: Value) -> Value:
    """How many of each row are true, i64 [B, 1]."""
    return SUM(CAST(x, dtype="i64"), axes=(1,), keepdims=True)


CHOOSE_TOKEN = Op("choose_token", _choose_type, _choose, _expand_choose)
