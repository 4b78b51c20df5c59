"""Weights in the order in which kernels read them: panels of a few rows side by side.

pack(w [.., N, K]; lanes) -> [.., P, K, lanes]: panel p holds rows p*lanes..(p+1)*lanes, the numbers of one
column together; what a last, partial panel lacks is 0. With halves=2 the N rows are two matrices of N/2, one
after the other (gate, then up); panel p holds lanes/2 rows of the first, then the same rows of the second, so
that the kernel has both factors of one output at hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..ir import Array, Op, Type, TypeMismatch, Value
from .shape import CONCAT, FULL, RESHAPE, SLICE, TRANSPOSE


def _check_panels(rows: object, lanes: object, halves: int) -> None:
    for what, size in (("rows", rows), ("lanes", lanes)):
        if not isinstance(size, int) or size < 1 or size % halves:
            raise TypeMismatch(f"{what} is {size}, but must be a positive multiple of halves = {halves}")


def _panels(rows: int, lanes: int, halves: int) -> tuple[int, int, int]:
    """Rows of one half, panels, and rows of one half in a panel."""
    return rows // halves, -(-rows // lanes), lanes // halves


def _pack_type(w: Type, *, lanes: int, halves: int = 1) -> tuple[Type, ...]:
    if w.rank < 2:
        raise TypeMismatch("a weight to pack has rows and columns, so at least 2 axes")
    *outer, rows, columns = w.shape
    _check_panels(rows, lanes, halves)
    assert isinstance(rows, int)
    return (Type(w.dtype, (*outer, -(-rows // lanes), columns, lanes)),)


def _unpack_type(packed: Type, *, rows: int, halves: int = 1) -> tuple[Type, ...]:
    if packed.rank < 3:
        raise TypeMismatch("a packed weight has panels, columns and lanes, so at least 3 axes")
    *outer, panels, columns, lanes = packed.shape
    _check_panels(rows, lanes, halves)
    if panels != -(-rows // lanes):
        raise TypeMismatch(f"{rows} rows fill {-(-rows // lanes)} panels of {lanes}, not {panels}")
    return (Type(packed.dtype, (*outer, rows, columns)),)


def _pack(w: Array, *, lanes: int, halves: int) -> Array:
    *outer, rows, columns = w.shape
    half, panels, width = _panels(rows, lanes, halves)
    padded = np.zeros((*outer, halves, panels * width, columns), w.dtype)
    padded[..., :half, :] = w.reshape(*outer, halves, half, columns)
    tiles = padded.reshape(*outer, halves, panels, width, columns)
    return np.moveaxis(tiles, (-3, -1), (-4, -3)).reshape(*outer, panels, columns, lanes)


def _unpack(packed: Array, *, rows: int, halves: int) -> Array:
    *outer, panels, columns, lanes = packed.shape
    half, panels, width = _panels(rows, lanes, halves)
    tiles = packed.reshape(*outer, panels, columns, halves, width)
    padded = np.moveaxis(tiles, (-4, -3), (-3, -1)).reshape(*outer, halves, panels * width, columns)
    return padded[..., :half, :].reshape(*outer, rows, columns)


def _expand_pack(w: Value, *, lanes: int, halves: int) -> Sequence[Value]:
    *outer, rows, columns = w.shape
    assert isinstance(rows, int)
    half, panels, width = _panels(rows, lanes, halves)
    n = len(outer)
    padded = RESHAPE(w, shape=(*outer, halves, half, columns))
    if missing := panels * width - half:
        zeros = FULL(shape=(*outer, halves, missing, columns), value=0, dtype=w.type.dtype)
        padded = CONCAT(padded, zeros, axis=n + 1)
    tiles = RESHAPE(padded, shape=(*outer, halves, panels, width, columns))
    moved = TRANSPOSE(tiles, perm=(*range(n), n + 1, n + 3, n, n + 2))
    return (RESHAPE(moved, shape=(*outer, panels, columns, lanes)),)


def _expand_unpack(packed: Value, *, rows: int, halves: int) -> Sequence[Value]:
    *outer, _, columns, lanes = packed.shape
    assert isinstance(lanes, int)
    half, panels, width = _panels(rows, lanes, halves)
    n = len(outer)
    tiles = RESHAPE(packed, shape=(*outer, panels, columns, halves, width))
    moved = TRANSPOSE(tiles, perm=(*range(n), n + 2, n, n + 3, n + 1))
    padded = RESHAPE(moved, shape=(*outer, halves, panels * width, columns))
    if panels * width > half:
        padded = SLICE(padded, axis=n + 1, start=0, stop=half)
    return (RESHAPE(padded, shape=(*outer, rows, columns)),)


PACK = Op("pack", _pack_type, _pack, _expand_pack, rowwise=lambda w, **attrs: w.rank > 2)
# The exact inverse of pack for a weight of so many rows; the padding is dropped.
UNPACK = Op("unpack", _unpack_type, _unpack, _expand_unpack, rowwise=lambda packed, **attrs: packed.rank > 3)
