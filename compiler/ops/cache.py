"""The key and value cache: L rows, of which the first S are filled before a step and the first S+T after it.

The attention mask [B, S+T] (1 = a real token) tells how many rows are filled; input ids [B, T] tell T.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..ir import Array, Dim, Op, Type, TypeMismatch, Value, plain
from .elementwise import ADD, CAST, LESS_EQUAL, LOGICAL_AND, MAXIMUM, MUL, SUB
from .reduce import CUMSUM, MAX
from .rules import check_dtype, check_rank, check_same_dtype, check_shape
from .shape import CONCAT, EXPAND, IOTA, RESHAPE, SLICE
from .sources import scalar


def _check_mask(mask: Type, batch: Dim) -> None:
    check_dtype("the attention mask", mask, ("i64",))
    check_rank("the attention mask", mask, 2)
    check_shape("the attention mask", mask, (batch, mask.shape[1]))


def _check_fits(size: Dim, room: Dim, what: str) -> None:
    if isinstance(size, int) and isinstance(room, int) and size > room:
        raise TypeMismatch(f"{size} {what} do not fit into {room}")


def _append_type(cache: Type, rows: Type, mask: Type) -> tuple[Type, ...]:
    check_same_dtype(cache, rows)
    check_rank("the cache", cache, 4)
    check_rank("rows", rows, 4)
    batch, heads, room, width = cache.shape
    _check_mask(mask, batch)
    check_shape("rows", rows, (batch, heads, rows.shape[2], width))
    _check_fits(mask.shape[1], room, "rows")
    _check_fits(rows.shape[2], mask.shape[1], "new rows")
    return (cache,)


def _filled_type(cache: Type, mask: Type) -> tuple[Type, ...]:
    check_rank("the cache", cache, 4)
    batch, heads, room, width = cache.shape
    _check_mask(mask, batch)
    _check_fits(mask.shape[1], room, "rows")
    return (Type(cache.dtype, (batch, heads, mask.shape[1], width)),)


def _check_tokens(mask: Type, ids: Type) -> None:
    check_dtype("the input ids", ids, ("i64",))
    check_rank("the input ids", ids, 2)
    _check_mask(mask, ids.shape[0])
    _check_fits(ids.shape[1], mask.shape[1], "new tokens")


def _causal_mask_type(mask: Type, ids: Type) -> tuple[Type, ...]:
    _check_tokens(mask, ids)
    return (Type("bool", (ids.shape[0], 1, ids.shape[1], mask.shape[1])),)


def _positions_type(mask: Type, ids: Type) -> tuple[Type, ...]:
    _check_tokens(mask, ids)
    return (ids,)


def _span_type(mask: Type) -> tuple[Type, ...]:
    check_rank("the attention mask", mask, 2)
    _check_mask(mask, mask.shape[0])
    return (Type("i64", (mask.shape[0], 2)),)


def _append(cache: Array, rows: Array, mask: Array) -> Array:
    stop = mask.shape[1]
    if stop > cache.shape[2]:
        raise ValueError(f"{stop} rows do not fit into a cache of {cache.shape[2]}; make a larger one")
    result = cache.copy()
    result[:, :, stop - rows.shape[2] : stop] = rows
    return result


def _filled(cache: Array, mask: Array) -> Array:
    return cache[:, :, : mask.shape[1]]


def _causal_mask(mask: Array, ids: Array) -> Array:
    keys = np.arange(mask.shape[1])
    queries = keys[mask.shape[1] - ids.shape[1] :]
    return np.asarray((keys <= queries[:, None]) & (mask != 0)[:, None, None, :])


def _positions(mask: Array, ids: Array) -> Array:
    places = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    return np.asarray(places[:, mask.shape[1] - ids.shape[1] :])


def _span(mask: Array) -> Array:
    width, real = mask.shape[1], mask != 0
    first = np.where(real.any(axis=1), real.argmax(axis=1), width)
    end = np.max(np.where(real, np.arange(1, width + 1), 0), initial=0)
    return np.stack([first, np.full_like(first, end)], axis=1).astype(np.int64)


def _expand_append(cache: Value, rows: Value, mask: Value) -> Sequence[Value]:
    stop, room = mask.shape[1], cache.shape[2]
    before = SLICE(cache, axis=2, start=0, stop=plain(stop - rows.shape[2]))
    return (CONCAT(before, rows, SLICE(cache, axis=2, start=stop, stop=room), axis=2),)


def _expand_filled(cache: Value, mask: Value) -> Sequence[Value]:
    return (SLICE(cache, axis=2, start=0, stop=mask.shape[1]),)


def _expand_causal_mask(mask: Value, ids: Value) -> Sequence[Value]:
    (batch, total), new = mask.shape, ids.shape[1]
    keys = IOTA(size=total, dtype="i64")
    queries = RESHAPE(SLICE(keys, axis=0, start=plain(total - new), stop=total), shape=(1, 1, new, 1))
    earlier = LESS_EQUAL(RESHAPE(keys, shape=(1, 1, 1, total)), queries)
    return (LOGICAL_AND(earlier, RESHAPE(CAST(mask, dtype="bool"), shape=(batch, 1, 1, total))),)


def _expand_positions(mask: Value, ids: Value) -> Sequence[Value]:
    total = mask.shape[1]
    places = MAXIMUM(SUB(CUMSUM(mask, axis=1), scalar(1, "i64")), scalar(0, "i64"))
    return (SLICE(places, axis=1, start=plain(total - ids.shape[1]), stop=total),)


def _expand_span(mask: Value) -> Sequence[Value]:
    (batch, _), one = mask.shape, scalar(1, "i64")
    real = CAST(CAST(mask, dtype="bool"), dtype="i64")
    ends = ADD(IOTA(size=mask.shape[1], dtype="i64"), one)
    width = MAX(ends, axes=(0,), keepdims=True)
    right = MAX(MUL(real, SUB(ADD(width, one), ends)), axes=(1,), keepdims=True)  # from the first real on
    end = MAX(MUL(real, ends), axes=(0, 1), keepdims=True)
    return (CONCAT(SUB(width, right), EXPAND(end, shape=(batch, 1)), axis=1),)


# append(cache [B,h,L,d], rows [B,h,T,d], mask): the cache with the rows at S..S+T.
APPEND = Op("append", _append_type, _append, _expand_append)
# filled(cache [B,h,L,d], mask) [B,h,S+T,d]: the rows that hold something.
FILLED = Op("filled", _filled_type, _filled, _expand_filled)
# causal_mask(mask, ids) [B,1,T,S+T]: new token t sees key s where s <= S+t and the key is a real token.
CAUSAL_MASK = Op("causal_mask", _causal_mask_type, _causal_mask, _expand_causal_mask)
# positions(mask, ids) [B,T]: how many real tokens precede each new one.
POSITIONS = Op("positions", _positions_type, _positions, _expand_positions)
# span(mask) [B,2]: the columns first..end that hold real tokens, if those have no gaps. End is the same for
# all sequences: padding is on the left. A sequence without any has the mask's width as its first.
SPAN = Op("span", _span_type, _span, _expand_span)
