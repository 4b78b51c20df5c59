"""A cache in pages: pools [P, h, R, d] of P pages with R rows each, which all sequences share.

Row r of sequence b lies in pool[pages[b, r // R], :, r % R]; pages [B, L/R] are numbers from 0 on, below P.
All else is as in cache.py. Pages that hold nothing but padding may be one page, whatever is in it, of all
sequences; any other is of one. In a page with a token, rows before its first token are numbers, not NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..ir import Array, Op, Type, TypeMismatch, Value, plain
from .cache import _check_fits, _check_mask
from .elementwise import ADD, LESS, MUL, WHERE
from .index import SCATTER_ROWS, TAKE
from .rules import check_dtype, check_rank, check_same_dtype, check_shape
from .shape import IOTA, RESHAPE, SLICE, TRANSPOSE
from .sources import scalar

NOWHERE = 1 << 40  # no pool has so many pages: standard operators count negative numbers from behind


def _gather_pages_type(pool: Type, pages: Type) -> tuple[Type, ...]:
    check_rank("the pool", pool, 4)
    check_dtype("the table of pages", pages, ("i64",))
    check_rank("the table of pages", pages, 2)
    _, heads, rows, width = pool.shape
    if not isinstance(rows, int):
        raise TypeMismatch(f"the pool {pool} has pages of {rows} rows; their number must be known")
    return (Type(pool.dtype, (pages.shape[0], heads, plain(pages.shape[1] * rows), width)),)


def _append_pages_type(pool: Type, rows: Type, mask: Type, pages: Type) -> tuple[Type, ...]:
    check_same_dtype(pool, rows)
    ((batch, heads, room, width),) = (each.shape for each in _gather_pages_type(pool, pages))
    check_rank("rows", rows, 4)
    _check_mask(mask, batch)
    check_shape("rows", rows, (batch, heads, rows.shape[2], width))
    _check_fits(mask.shape[1], room, "rows")
    _check_fits(rows.shape[2], mask.shape[1], "new rows")
    return (pool,)


def in_pages(cache: Array, pages: Array, pool: Array) -> Array:
    """The pool with the rows of a cache [B, h, L, d] in its pages, L a multiple of a page's rows."""
    batch, heads, _, width = cache.shape
    result = pool.copy()
    result[pages] = cache.reshape(batch, heads, pages.shape[1], pool.shape[2], width).swapaxes(1, 2)
    return result


def expect_pages(pages: Array, count: int) -> None:
    """Raises ValueError where a number is none of a pool's pages."""
    wrong = pages[(pages < 0) | (pages >= count)]
    if wrong.size:
        raise ValueError(f"there is no page {wrong.flat[0]}: the pool has {count}, from 0 to {count - 1}")


def _gather_pages(pool: Array, pages: Array) -> Array:
    expect_pages(pages, len(pool))
    _, heads, rows, width = pool.shape
    return np.asarray(pool[pages].swapaxes(1, 2).reshape(len(pages), heads, pages.shape[1] * rows, width))


def _append_pages(pool: Array, rows: Array, mask: Array, pages: Array) -> Array:
    expect_pages(pages, len(pool))
    stop, size = mask.shape[1], pool.shape[2]
    if stop > pages.shape[1] * size:
        raise ValueError(f"{stop} rows do not fit into {pages.shape[1]} pages of {size}; make more")
    result = pool.copy()
    for r in range(rows.shape[2]):
        at = stop - rows.shape[2] + r
        result[pages[:, at // size], :, at % size] = rows[:, :, r]
    return result


def _numbers(pages: Value) -> Value:
    """The table, in which what is negative is a page that no pool has."""
    return WHERE(LESS(pages, scalar(0, "i64")), scalar(NOWHERE, "i64"), pages)


def _expand_gather_pages(pool: Value, pages: Value) -> Sequence[Value]:
    (_, heads, rows, width), (batch, count) = pool.shape, pages.shape
    found = TAKE(pool, _numbers(pages), axis=0)
    by_head = found if heads == 1 else TRANSPOSE(found, perm=(0, 2, 1, 3, 4))
    return (RESHAPE(by_head, shape=(batch, heads, plain(count * rows), width)),)


def _expand_append_pages(pool: Value, rows: Value, mask: Value, pages: Value) -> Sequence[Value]:
    """As rows of one matrix [P*h*R, d]: row r of head i of a page p is (p*h + i)*R + r."""
    (count, heads, size, width), (batch, _, new, _) = pool.shape, rows.shape
    stop, room = mask.shape[1], plain(pages.shape[1] * size)
    first = MUL(_numbers(pages), scalar(int(heads) * int(size), "i64"))
    first = RESHAPE(first, shape=(*pages.shape, 1))
    every = RESHAPE(ADD(first, IOTA(size=size, dtype="i64")), shape=(batch, 1, room))
    written = SLICE(every, axis=2, start=plain(stop - new), stop=stop)
    head = RESHAPE(MUL(IOTA(size=heads, dtype="i64"), scalar(int(size), "i64")), shape=(1, heads, 1))
    flat = RESHAPE(pool, shape=(plain(count * heads * size), width))
    return (RESHAPE(SCATTER_ROWS(flat, ADD(written, head), rows), shape=pool.shape),)


# gather_pages(pool [P,h,R,d], pages [B,N]) [B,h,N*R,d]: the cache that the pages make up.
GATHER_PAGES = Op("gather_pages", _gather_pages_type, _gather_pages, _expand_gather_pages)
# append_pages(pool [P,h,R,d], rows [B,h,T,d], mask [B,S+T], pages [B,N]): the pool with the rows at S..S+T.
APPEND_PAGES = Op("append_pages", _append_pages_type, _append_pages, _expand_append_pages)
