"""Rows as codes of 8 bits with scales: how a cache of latents takes half the bytes that it has in bf16.

A scale is the largest number of those that share it / the largest code, in f32; a scale of 0 goes with codes
of 0, and one that is not finite with any. Codes of "fp8" are e4m3 in bytes (u8), as in fp8.py, and none is a
negative zero: a number is off by at most 1/16 of itself, or by 2**-10 of the scale. Those of "int8" are whole
numbers from -127 to 127, the nearest, halves to even: off by half a scale.

A whole row shares a scale of fp8. One large number would leave the others of a row few codes of int8, so 32
columns share one; the last ones may be fewer. How far codes of 512 columns are off, root mean square, in
percent of that of the numbers:

    numbers of a row                             fp8   int8 by row   by 128    by 64    by 32
    normal                                       2.6           0.7      0.6      0.6      0.5
    6 columns 15 times, others up to 3 times     2.0           3.3      1.9      1.5      1.1
    one in 500 is 30 times as large              2.2           2.9      1.6      1.2      0.9
    bytes                                        516           516      528      544      576
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..ir import FLOATS, Array, Dim, Node, Op, Type, TypeMismatch, Value
from . import fp8
from .elementwise import ABS, CAST, DIV, MAXIMUM, MINIMUM, MUL, ROUND
from .index import TAKE
from .quantize import GROUP, ROW
from .reduce import MAX
from .rules import check_choice, check_dtype, check_shape
from .shape import CONCAT, FULL, RESHAPE
from .sources import literal_of, scalar


@dataclass(frozen=True, slots=True)
class Coding:
    """How rows are coded: the dtype of codes, the largest one, and how many numbers share a scale."""

    dtype: str
    largest: int
    group: int

    def size(self, columns: int) -> int:
        """Numbers that share a scale, in a row of so many."""
        return self.group or columns

    def scales(self, columns: int) -> int:
        """Scales of such a row."""
        return -(-columns // self.size(columns))


# By the name of the format, as caches in it are asked for.
CODINGS: Mapping[str, Coding] = {"fp8": Coding("u8", fp8.LARGEST, ROW), "int8": Coding("i8", 127, GROUP)}
FORMATS: Mapping[str, str] = {coding.dtype: name for name, coding in CODINGS.items()}  # by the codes' dtype


def format_of(node: Node) -> str:
    """The format that an encode_rows or decode_rows node is about."""
    codes = node.types[0] if node.op is ENCODE_ROWS else node.inputs[0].type
    return FORMATS[codes.dtype]


def _scales(what: str, rows: Type, coding: Coding) -> tuple[Dim, ...]:
    """The shape of the scales of such rows."""
    columns = rows.shape[-1] if rows.rank else 0
    if not isinstance(columns, int) or not columns:
        raise TypeMismatch(f"{what} is {rows}, but must have rows of a known size above 0")
    return (*rows.shape[:-1], coding.scales(columns))


def _encode_type(x: Type, *, format: str) -> tuple[Type, ...]:
    check_choice("format", format, tuple(CODINGS))
    check_dtype("x", x, ("f32",))
    coding = CODINGS[format]
    return Type(coding.dtype, x.shape), Type("f32", _scales("x", x, coding))


def _decode_type(codes: Type, scales: Type) -> tuple[Type, ...]:
    check_dtype("codes", codes, tuple(FORMATS))
    check_dtype("scales", scales, FLOATS)
    check_shape("scales", scales, _scales("codes", codes, CODINGS[FORMATS[codes.dtype]]))
    return (Type(scales.dtype, codes.shape),)


def _encode(x: Array, *, format: str) -> tuple[Array, Array]:
    coding, columns = CODINGS[format], x.shape[-1]
    starts = np.arange(0, columns, coding.size(columns))
    scales = np.maximum.reduceat(np.abs(x), starts, axis=-1) / np.asarray(coding.largest, x.dtype)
    wide = spread(scales, columns, coding)
    if coding.dtype == "i8":
        return whole(x, wide), scales
    codes = fp8.rounded(x, wide).view(np.uint8)
    codes[codes == 0x80] = 0
    return codes, scales


def whole(x: Array, scales: Array) -> Array:
    """The integers nearest to x / scales, as i8; 0 for what is no number."""
    with np.errstate(invalid="ignore"):
        quotients = np.rint(x / np.where(scales > 0, scales, np.asarray(1, x.dtype)))
    return np.asarray(np.nan_to_num(np.clip(quotients, -127, 127)).astype(np.int8))


def spread(scales: Array, columns: int, coding: Coding) -> Array:
    """What each number of a row has."""
    return np.asarray(scales[..., np.arange(columns) // coding.size(columns)])


def _decode(codes: Array, scales: Array) -> Array:
    coded = codes.dtype == np.uint8
    numbers = fp8.numbers(scales.dtype)[codes] if coded else codes.astype(scales.dtype)
    return np.asarray(numbers * spread(scales, codes.shape[-1], CODINGS["fp8" if coded else "int8"]))


def _expand_encode(x: Value, *, format: str) -> Sequence[Value]:
    coding = CODINGS[format]
    scales = DIV(_expand_largest(ABS(x), coding), scalar(coding.largest, "f32"))
    quotients = fp8.expand_quotient(x, _expand_spread(scales, x, coding))
    if coding.dtype == "u8":
        return fp8.expand_codes(quotients), scales
    least, most = (scalar(bound, "f32") for bound in (-coding.largest, coding.largest))
    return CAST(MINIMUM(MAXIMUM(ROUND(quotients), least), most), dtype="i8"), scales


def _expand_largest(x: Value, coding: Coding) -> Value:
    """The largest of those that share a scale; none is negative."""
    last, columns = x.type.rank - 1, int(x.shape[-1])
    size, count = coding.size(columns), coding.scales(columns)
    if more := size * count - columns:
        x = CONCAT(x, FULL(value=0.0, dtype="f32", shape=(*x.shape[:-1], more)), axis=last)
    return MAX(RESHAPE(x, shape=(*x.shape[:-1], count, size)), axes=(last + 1,), keepdims=False)


def _expand_spread(scales: Value, x: Value, coding: Coding) -> Value:
    """What each number of x has; broadcast where it is one for a row."""
    columns = int(x.shape[-1])
    if scales.shape[-1] == 1:
        return scales
    return TAKE(scales, literal_of(np.arange(columns) // coding.size(columns)), axis=scales.type.rank - 1)


def _expand_decode(codes: Value, scales: Value) -> Sequence[Value]:
    coding = CODINGS[FORMATS[codes.type.dtype]]
    if coding.dtype == "u8":
        numbers = TAKE(literal_of(fp8.numbers(np.float32)), CAST(codes, dtype="i32"), axis=0)
    else:
        numbers = CAST(codes, dtype="f32")
    return (MUL(numbers, _expand_spread(scales, codes, coding)),)


# encode_rows(x f32 [.., C]; format) -> codes [.., C], scales f32 [.., number of scales]
ENCODE_ROWS = Op("encode_rows", _encode_type, _encode, _expand_encode)
# decode_rows(codes, scales) -> [.., C] in the dtype of the scales; the dtype of codes says the format
DECODE_ROWS = Op("decode_rows", _decode_type, _decode, _expand_decode)
