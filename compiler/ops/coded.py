"""Rows as e4m3 codes with a scale each: how a cache of latents takes half the bytes that it has in bf16.

A scale is the row's largest number / 448, in f32; codes are bytes (u8), as in fp8.py, and none is a negative
zero. A scale of 0 goes with codes of 0. A number is off by at most 1/16 of itself, or by 2**-10 of the scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..ir import FLOATS, Array, Op, Type, TypeMismatch, Value
from . import fp8
from .elementwise import ABS, CAST, DIV, MUL
from .index import TAKE
from .reduce import MAX
from .rules import check_dtype, check_shape
from .sources import literal_of, scalar

LARGEST = fp8.LARGEST


def _encode_type(x: Type) -> tuple[Type, ...]:
    check_dtype("x", x, ("f32",))
    if not x.rank or not isinstance(x.shape[-1], int) or not x.shape[-1]:
        raise TypeMismatch(f"x is {x}, but must have rows of a known size above 0")
    return Type("u8", x.shape), Type("f32", (*x.shape[:-1], 1))


def _decode_type(codes: Type, scales: Type) -> tuple[Type, ...]:
    check_dtype("codes", codes, ("u8",))
    check_dtype("scales", scales, FLOATS)
    check_shape("scales", scales, (*codes.shape[:-1], 1))
    return (Type(scales.dtype, codes.shape),)


def _encode(x: Array) -> tuple[Array, Array]:
    scales = np.abs(x).max(axis=-1, keepdims=True) / np.asarray(LARGEST, x.dtype)
    codes = fp8.rounded(x, scales).view(np.uint8)
    codes[codes == 0x80] = 0
    return codes, scales


def _decode(codes: Array, scales: Array) -> Array:
    return np.asarray(fp8.numbers(scales.dtype)[codes] * scales)


def _expand_encode(x: Value) -> Sequence[Value]:
    scales = DIV(MAX(ABS(x), axes=(x.type.rank - 1,), keepdims=True), scalar(LARGEST, "f32"))
    return fp8.expand_codes(fp8.expand_quotient(x, scales)), scales


def _expand_decode(codes: Value, scales: Value) -> Sequence[Value]:
    numbers = literal_of(fp8.numbers(np.float32))
    return (MUL(TAKE(numbers, CAST(codes, dtype="i32"), axis=0), scales),)


# encode_rows(x f32 [.., C]) -> codes u8 [.., C], scales f32 [.., 1]
ENCODE_ROWS = Op("encode_rows", _encode_type, _encode, _expand_encode)
# decode_rows(codes, scales) -> [.., C] in the dtype of the scales
DECODE_ROWS = Op("decode_rows", _decode_type, _decode, _expand_decode)
