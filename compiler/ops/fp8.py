"""Numbers as e4m3 floats of 8 bits: weights in tiles of 128 x 128 and tokens in groups of 128 share a scale.

This is how DeepSeek stores weights. Tiles at the edges are ragged. A scale is largest / 448, so a checkpoint
whose tiles were scaled so gets its codes back, with scales that differ in the last bit at most. A tile that
e4m3 holds exactly under a power of two, as checkpoints with such scales have them, keeps its numbers.
Codes are bytes (u8): ONNX has few ops on floats of 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir import DTYPES, Array, Dim, Value
from .elementwise import (
    ABS,
    ADD,
    CAST,
    DIV,
    EQUAL,
    GREATER,
    GREATER_EQUAL,
    LESS,
    LOGICAL_AND,
    MUL,
    SUB,
    WHERE,
)
from .index import TAKE
from .reduce import MAX, SUM
from .shape import CONCAT, FULL, RESHAPE, SLICE
from .sources import literal_of, scalar

TILE = 128  # numbers that share a scale, along either axis
LARGEST = 448  # of e4m3
E4M3 = DTYPES["f8e4m3"]
FINE = np.uint32((1 << 20) - 1)  # bits of an f32 that no number of e4m3's precision has
SMALLEST = -126  # the exponent of f32's smallest normal number


def tiles(size: int) -> int:
    """Scales along an axis of so many numbers."""
    return -(-size // TILE)


def quantize(w: Array) -> tuple[Array, Array]:
    """w f32 [.., N, K] -> codes u8 alike, scales f32 [.., N/128, K/128]; no code is a negative zero."""
    w = np.ascontiguousarray(w, np.float32)
    scales = by_tile(np.maximum, np.abs(w)) / np.float32(LARGEST)
    codes = nearest(w, scales)
    coarse = by_tile(np.bitwise_or, w.view(np.uint32) & FINE) == 0
    if (coarse & (scales > 0)).any():
        powers = power_above(scales)
        others = nearest(w, powers)
        off = by_tile(np.maximum, (np.abs(dequantize(others, powers) - w) > 0).astype(np.uint8))
        exact = (off == 0) & (scales > 0)
        codes = np.where(spread(exact, w.shape), others, codes)
        scales = np.where(exact, powers, scales)
    return codes, scales


def by_tile(function: np.ufunc, x: Array) -> Array:
    """A reduction of each tile of the last two axes."""
    for axis in (-1, -2):
        x = function.reduceat(x, np.arange(0, x.shape[axis], TILE), axis=axis)
    return x


def spread(scales: Array, shape: Sequence[int]) -> Array:
    """What each tile has, at each of its numbers."""
    rows, columns = (np.arange(size) // TILE for size in shape[-2:])
    whole: Array = scales[..., rows, :][..., columns]
    return whole


def power_above(scales: Array) -> Array:
    """The least power of two that is not smaller, among normal numbers."""
    part, exponent = np.frexp(scales)
    powers: Array = np.ldexp(np.float32(1), np.maximum(exponent - (part == 0.5), SMALLEST))
    return powers.astype(np.float32, copy=False)


def nearest(w: Array, scales: Array) -> Array:
    """The codes nearest to w / scales; 0 where a scale is 0."""
    codes = rounded(w, spread(scales, w.shape)).view(np.uint8)
    codes[codes == 0x80] = 0
    return codes


def rounded(x: Array, scales: Array) -> Array:
    """x / scales in e4m3."""
    quotients: Array = x / np.where(scales > 0, scales, np.asarray(1, x.dtype))
    return quotients.astype(E4M3)


def dequantize(codes: Array, scales: Array) -> Array:
    """The numbers, in the dtype of the scales."""
    wide: Array = numbers(scales.dtype)[codes]
    by_column = scales[..., np.arange(codes.shape[-1]) // TILE]
    for i in range(scales.shape[-2]):
        wide[..., i * TILE : (i + 1) * TILE, :] *= by_column[..., i : i + 1, :]
    return wide


def numbers(dtype: Any = np.float32) -> Array:
    """What each of the 256 codes stands for."""
    found: Array = np.arange(256, dtype=np.uint8).view(E4M3).astype(dtype)
    return found


def round_trip(x: Array) -> Array:
    """x [.., K] with each group of 128 in e4m3 and back; its scale is largest / 448."""
    starts = np.arange(0, x.shape[-1], TILE)
    scales = np.maximum.reduceat(np.abs(x), starts, axis=-1) / np.asarray(LARGEST, x.dtype)
    wide = scales[..., np.arange(x.shape[-1]) // TILE]
    return np.asarray(rounded(x, wide).astype(x.dtype) * wide)


def expand_quantize(w: Value) -> Sequence[Value]:
    """The same in simpler ops."""
    scales = DIV(expand_largest(ABS(w)), scalar(LARGEST, "f32"))
    table = literal_of(np.ldexp(np.float32(1), np.arange(SMALLEST, 128)).astype(np.float32))
    column = RESHAPE(scales, shape=(*scales.shape, 1))
    above = WHERE(GREATER_EQUAL(table, column), DIV(scalar(1, "f32"), table), scalar(0, "f32"))
    powers = DIV(scalar(1, "f32"), MAX(above, axes=(scales.type.rank,), keepdims=False))
    off = expand_largest(ABS(SUB(expand_rounded(w, powers), w)))
    exact = LOGICAL_AND(EQUAL(off, scalar(0, "f32")), GREATER(scales, scalar(0, "f32")))
    chosen = WHERE(exact, powers, scales)
    return expand_codes(expand_quotient(w, expand_spread(chosen, w.shape))), chosen


def expand_rounded(w: Value, scales: Value) -> Value:
    """w in e4m3 under these scales, and back."""
    wide = expand_spread(scales, w.shape)
    return MUL(in_e4m3(expand_quotient(w, wide)), wide)


def in_e4m3(x: Value) -> Value:
    """x rounded to e4m3."""
    return CAST(CAST(x, dtype="f8e4m3"), dtype=x.type.dtype)


def expand_codes(x: Value) -> Value:
    """The code of each number in e4m3: how many positive ones are not larger, and 128 more where it is
    negative.
    """
    near = in_e4m3(x)
    table = literal_of(numbers()[1:127])
    size = RESHAPE(ABS(near), shape=(*x.shape, 1))
    count = SUM(CAST(GREATER_EQUAL(size, table), dtype="f32"), axes=(x.type.rank,), keepdims=False)
    sign = CAST(LESS(near, scalar(0, "f32")), dtype="f32")
    return CAST(ADD(count, MUL(sign, scalar(128, "f32"))), dtype="u8")


def expand_quotient(x: Value, scales: Value) -> Value:
    """x / scales, x where a scale is 0: it is 0 then."""
    zero, one = (scalar(number, x.type.dtype) for number in (0, 1))
    return DIV(x, WHERE(GREATER(scales, zero), scales, one))


def expand_largest(x: Value) -> Value:
    """The largest of each tile of x, which has no negative numbers."""
    *outer, rows, columns = x.shape
    whole = filled(filled(x, x.type.rank - 1), x.type.rank - 2)
    parts = RESHAPE(whole, shape=(*outer, tiles(int(rows)), TILE, tiles(int(columns)), TILE))
    return MAX(parts, axes=(x.type.rank - 1, x.type.rank + 1), keepdims=False)


def filled(x: Value, axis: int) -> Value:
    """x with zeros up to whole tiles along an axis."""
    more = -int(x.shape[axis]) % TILE
    if not more:
        return x
    zeros = FULL(value=0.0, dtype=x.type.dtype, shape=(*x.shape[:axis], more, *x.shape[axis + 1 :]))
    return CONCAT(x, zeros, axis=axis)


def expand_spread(scales: Value, shape: Sequence[Dim]) -> Value:
    """What each tile has, at each of its numbers."""
    rows, columns = (literal_of(np.arange(int(size)) // TILE) for size in shape[-2:])
    rank = scales.type.rank
    return TAKE(TAKE(scales, rows, axis=rank - 2), columns, axis=rank - 1)


def expand_dequantize(codes: Value, scales: Value) -> Sequence[Value]:
    """The same in simpler ops."""
    wide = TAKE(literal_of(numbers()), CAST(codes, dtype="i32"), axis=0)
    return (MUL(wide, expand_spread(scales, codes.shape)),)


def expand_round_trip(x: Value) -> Sequence[Value]:
    """The same in simpler ops."""
    last, columns = x.type.rank - 1, int(x.shape[-1])
    groups = RESHAPE(filled(x, last), shape=(*x.shape[:-1], tiles(columns), TILE))
    largest = MAX(ABS(groups), axes=(last + 1,), keepdims=True)
    scales = DIV(largest, scalar(LARGEST, x.type.dtype))
    back = RESHAPE(
        MUL(in_e4m3(expand_quotient(groups, scales)), scales), shape=(*x.shape[:-1], tiles(columns) * TILE)
    )
    return (SLICE(back, axis=last, start=0, stop=columns) if columns % TILE else back,)
