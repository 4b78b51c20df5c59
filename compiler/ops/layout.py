"""Weights in the order in which kernels read them: panels of a few rows side by side.

pack(w [.., N, K]; lanes) -> [.., P, K, lanes]: panel p holds rows p*lanes..(p+1)*lanes, the numbers of one
column together; what a last, partial panel lacks is 0. With halves=2 the N rows are two matrices of N/2, one
after the other (gate, then up); panel p holds lanes/2 rows of the first, then the same rows of the second, so
that the kernel has both factors of one output at hand.

pack_codes packs codes of few bits (see quantize) likewise, as bytes: four neighbouring columns of a row lie
side by side, as instructions that add four products take them: [.., P, C, lanes, 4], C = K*bits/32. Bytes are
unsigned: a code of 8 bits plus 128, or two codes of 4 bits plus 8, the low one from the first half of a group
of 32, the high one from 16 columns further on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..ir import Array, Op, Type, TypeMismatch, Value
from .elementwise import ADD, CAST, FLOOR_DIVIDE, MUL, SUB
from .quantize import GROUP
from .rules import check_choice, check_dtype
from .shape import CONCAT, FULL, RESHAPE, SLICE, TRANSPOSE
from .sources import scalar

SIDE = 4  # columns of a row that lie side by side in packed codes
ZERO = {8: 128, 4: 8}  # bits -> what a code of 0 is as an unsigned number


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
    padded = w.reshape(*outer, halves, half, columns)
    if panels * width > half:
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


def _pack_codes_type(codes: Type, *, lanes: int, bits: int, halves: int = 1) -> tuple[Type, ...]:
    check_choice("bits", bits, tuple(ZERO))
    check_dtype("codes", codes, ("i8",))
    (packed,) = _pack_type(codes, lanes=lanes, halves=halves)
    *outer, columns, lanes_ = packed.shape
    if not isinstance(columns, int) or columns % GROUP:
        raise TypeMismatch(f"a row has {columns} codes, but must have a multiple of {GROUP}")
    return (Type("u8", (*outer, columns * bits // GROUP, lanes_, SIDE)),)


def _unpack_codes_type(packed: Type, *, rows: int, bits: int, halves: int = 1) -> tuple[Type, ...]:
    check_choice("bits", bits, tuple(ZERO))
    check_dtype("packed codes", packed, ("u8",))
    if packed.rank < 4 or packed.shape[-1] != SIDE or int(packed.shape[-3]) % bits:
        raise TypeMismatch(
            f"packed codes of {bits} bits are [.., panels, a multiple of {bits}, lanes, {SIDE}]"
        )
    *outer, chunks, lanes, _ = packed.shape
    return _unpack_type(Type("i8", (*outer, int(chunks) * GROUP // bits, lanes)), rows=rows, halves=halves)


def _pack_codes(codes: Array, *, lanes: int, bits: int, halves: int) -> Array:
    columns = _pack(codes, lanes=lanes, halves=halves)
    *outer, count, _ = columns.shape
    unsigned = columns.view(np.uint8) + np.uint8(ZERO[bits])
    if bits == 4:
        low, high = np.moveaxis(unsigned.reshape(*outer, -1, 2, GROUP // 2, lanes), -3, 0)
        unsigned = low | high << np.uint8(4)
    return np.swapaxes(unsigned.reshape(*outer, count * bits // GROUP, SIDE, lanes), -1, -2)


def _unpack_codes(packed: Array, *, rows: int, bits: int, halves: int) -> Array:
    *outer, chunks, lanes, _ = packed.shape
    unsigned = np.swapaxes(packed, -1, -2).reshape(*outer, chunks * SIDE, lanes)
    if bits == 4:
        pairs = unsigned.reshape(*outer, -1, GROUP // 2, lanes)
        unsigned = np.stack((pairs & np.uint8(15), pairs >> np.uint8(4)), axis=-3)
    columns = unsigned.reshape(*outer, chunks * GROUP // bits, lanes)
    return _unpack((columns - np.uint8(ZERO[bits])).view(np.int8), rows=rows, halves=halves)


def _expand_pack_codes(codes: Value, *, lanes: int, bits: int, halves: int) -> Sequence[Value]:
    columns = PACK(codes, lanes=lanes, halves=halves)
    *outer, count, _ = columns.shape
    n = len(outer)
    unsigned = ADD(CAST(columns, dtype="i32"), scalar(ZERO[bits], "i32"))
    if bits == 4:
        pairs = RESHAPE(unsigned, shape=(*outer, count // GROUP, 2, GROUP // 2, lanes))
        low, high = (SLICE(pairs, axis=n + 1, start=half, stop=half + 1) for half in (0, 1))
        unsigned = ADD(low, MUL(high, scalar(16, "i32")))
    chunks = RESHAPE(unsigned, shape=(*outer, count * bits // GROUP, SIDE, lanes))
    return (CAST(TRANSPOSE(chunks, perm=(*range(n + 1), n + 2, n + 1)), dtype="u8"),)


def _expand_unpack_codes(packed: Value, *, rows: int, bits: int, halves: int) -> Sequence[Value]:
    *outer, chunks, lanes, _ = packed.shape
    n, count = len(outer), int(chunks) * GROUP // bits
    unsigned = TRANSPOSE(CAST(packed, dtype="i32"), perm=(*range(n + 1), n + 2, n + 1))
    if bits == 4:
        pairs = RESHAPE(unsigned, shape=(*outer, count // GROUP, 1, GROUP // 2, lanes))
        high = FLOOR_DIVIDE(pairs, scalar(16, "i32"))
        unsigned = CONCAT(SUB(pairs, MUL(high, scalar(16, "i32"))), high, axis=n + 1)
    columns = SUB(RESHAPE(unsigned, shape=(*outer, count, lanes)), scalar(ZERO[bits], "i32"))
    return (UNPACK(CAST(columns, dtype="i8"), rows=rows, halves=halves),)


def _rows_of_a_panel(w: Type, *, lanes: int, halves: int, **attrs: object) -> int:
    """The leading axis is that of one of many weights, or else that of panels."""
    return 1 if w.rank > 2 else lanes if halves == 1 else 0


PACK = Op("pack", _pack_type, _pack, _expand_pack, rowwise=_rows_of_a_panel)
# The exact inverse of pack for a weight of so many rows; the padding is dropped.
UNPACK = Op("unpack", _unpack_type, _unpack, _expand_unpack, rowwise=lambda packed, **attrs: packed.rank > 3)
PACK_CODES = Op("pack_codes", _pack_codes_type, _pack_codes, _expand_pack_codes, rowwise=_rows_of_a_panel)
UNPACK_CODES = Op(
    "unpack_codes",
    _unpack_codes_type,
    _unpack_codes,
    _expand_unpack_codes,
    rowwise=lambda packed, **attrs: packed.rank > 4,
)
