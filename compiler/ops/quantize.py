"""Numbers in few bits: groups of 32 along the last axis share a scale, or a whole row does.

A weight w [.., N, K] is codes i8 [.., N, K] times scales f16 [.., N, K/32]: whole numbers in -127..127 for
8 bits, in -8..7 for 4. round_trip(x) is what is left of activations that a kernel rounds to 8 bits. With
group=ROW there is one scale a row, of a weight's output channel or a token: K/32 is 1 and K any number. With
group=TILE codes u8 are e4m3 and scales f32 [.., N/128, K/128], the last ones of fewer numbers: see fp8.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..ir import FLOATS, Array, Node, Op, Type, TypeMismatch, Value
from . import fp8
from .elementwise import ABS, CAST, DIV, GREATER_EQUAL, MAXIMUM, MINIMUM, MUL, NEG, ROUND, WHERE
from .fp8 import TILE
from .reduce import MAX, SUM
from .rules import check_choice, check_dtype, check_shape
from .shape import RESHAPE
from .sources import scalar

GROUP = 32
ROW = 0  # as a group: the whole row
BLOCK = 1 << 16  # numbers done at once, about, so that what is made of them on the way stays in the cache
RANGES = {8: (-127, 127), 4: (-8, 7)}  # bits -> the smallest and the largest code
# A weight's format -> the attributes of the ops that make it and read it.
FORMATS: Mapping[str, Mapping[str, int]] = {
    "int4": {"bits": 4, "group": GROUP},
    "int8": {"bits": 8, "group": GROUP},
    "int8row": {"bits": 8, "group": ROW},
    "fp8": {"bits": 8, "group": TILE},
}
# Columns that rows of a weight are whole multiples of, where that is not the group: 16 bytes of codes.
WHOLE: Mapping[int, int] = {TILE: 16, ROW: 1}


def format_of(node: Node) -> str:
    """The format that a quantize or dequantize node is about."""
    return next(name for name, attrs in FORMATS.items() if attrs == dict(node.attrs))


def whole(format: str) -> int:
    """What the columns of a weight must be a multiple of to have that format."""
    group = FORMATS[format]["group"]
    return WHOLE.get(group, group)


def _size(x: Type, group: int) -> int:
    """Numbers in a group of x, the last one perhaps of fewer."""
    check_choice("group", group, (GROUP, ROW, TILE))
    columns, multiple = x.shape[-1] if x.rank else 0, WHOLE.get(group, group)
    if not isinstance(columns, int) or not columns or columns % multiple:
        number = f"a multiple of {multiple}" if group else "a known size above 0"
        raise TypeMismatch(f"the last axis is {columns}, but must be {number}")
    return group or columns


def _groups(x: Type, group: int) -> int:
    """Groups in a row of x."""
    size = _size(x, group)
    return -(-int(x.shape[-1]) // size)


def _stored(w: Type, group: int) -> tuple[Type, Type]:
    """Codes and scales of a weight."""
    if group != TILE:
        return Type("i8", w.shape), Type("f16", (*w.shape[:-1], _groups(w, group)))
    columns, rows = _groups(w, group), w.shape[-2] if w.rank > 1 else 0
    if not isinstance(rows, int) or not rows:
        raise TypeMismatch(f"the weight is {w}, but must have rows, and their number be known")
    return Type("u8", w.shape), Type("f32", (*w.shape[:-2], fp8.tiles(rows), columns))


def _quantize_type(w: Type, *, bits: int, group: int = GROUP) -> tuple[Type, ...]:
    check_choice("bits", bits, tuple(RANGES))
    check_dtype("the weight", w, ("f32",))
    return _stored(w, group)


def _dequantize_type(codes: Type, scales: Type, *, bits: int, group: int = GROUP) -> tuple[Type, ...]:
    check_choice("bits", bits, tuple(RANGES))
    expected = _stored(codes, group)
    for what, given, type_ in zip(("codes", "scales"), (codes, scales), expected):
        check_dtype(what, given, (type_.dtype,))
        check_shape(what, given, type_.shape)
    return (Type("f32", codes.shape),)


def _round_trip_type(x: Type, *, group: int = GROUP) -> tuple[Type, ...]:
    check_dtype("x", x, FLOATS)
    _groups(x, group)
    return (x,)


def _quantize(w: Array, *, bits: int, group: int = GROUP) -> tuple[Array, Array]:
    """Always computed from f32, so that double precision elsewhere does not change a weight's codes."""
    if group == TILE:
        bytes_, factors = fp8.quantize(w)
        return bytes_, factors.astype(w.dtype, copy=False)
    size = group or w.shape[-1]
    groups = np.ascontiguousarray(w, np.float32).reshape(-1, size)
    codes, scales = np.empty(groups.shape, np.int8), np.empty(len(groups), np.float16)
    step = max(1, BLOCK // size)
    for start in range(0, len(groups), step):
        part = slice(start, start + step)
        scales[part] = _encode(groups[part], codes[part], bits)
    wide = np.float16 if w.dtype == np.float32 else w.dtype
    shape = (*w.shape[:-1], w.shape[-1] // size)
    return codes.reshape(w.shape), scales.reshape(shape).astype(wide, copy=False)


def _encode(w: Array, codes: Array, bits: int) -> Array:
    """Write the codes of groups w [g, numbers]; gives their scales f16 [g].

    4 bits: the number furthest from 0 becomes -8 first, whatever its sign. Then, twice, a scale becomes that
    with which the codes are closest to w (least squares), and the codes those that this scale gives.
    """
    if bits == 8:
        scales: Array = (np.abs(w).max(axis=1) / np.float32(127)).astype(np.float16)
        codes[...] = _codes(w, scales, bits)
        return scales
    high, low = w.max(axis=1), w.min(axis=1)
    scales = (np.where(high >= -low, high, low) / np.float32(-8)).astype(np.float16)
    for _ in range(2):
        chosen = _codes(w, scales, bits)
        match, square = (_products(other, chosen) for other in (w, chosen))
        scales = (match / np.maximum(square, 1)).astype(np.float16)
    codes[...] = _codes(w, scales, bits)
    return scales


def _products(x: Array, y: Array) -> Array:
    """Of each row the sum of products, added up in f64: in f32 the order, which is not ours, would show."""
    sums: Array = np.einsum("gk,gk->g", x, y, dtype=np.float64)
    return sums.astype(np.float32)


def _codes(w: Array, scales: Array, bits: int) -> Array:
    """The nearest codes, as floats; those of a scale of 0 are 0."""
    wide = scales.astype(np.float32)
    safe = np.where(wide == 0, np.float32(1), wide)
    chosen: Array = w / safe[:, None]
    chosen[wide == 0] = 0
    np.rint(chosen, out=chosen)
    np.clip(chosen, *RANGES[bits], out=chosen)
    return chosen


def _dequantize(codes: Array, scales: Array, *, bits: int, group: int = GROUP) -> Array:
    if group == TILE:
        return fp8.dequantize(codes, scales)
    dtype = np.float32 if scales.dtype == np.float16 else scales.dtype
    grouped = codes.reshape(*scales.shape, group or codes.shape[-1]).astype(dtype)
    grouped *= scales[..., None].astype(dtype)
    return grouped.reshape(codes.shape)


def _round_trip(x: Array, *, group: int = GROUP) -> Array:
    if group == TILE:
        return fp8.round_trip(x)
    size = group or x.shape[-1]
    groups = x.reshape(*x.shape[:-1], x.shape[-1] // size, size)
    scales = np.abs(groups).max(axis=-1, keepdims=True) / np.asarray(127, x.dtype)
    safe = np.where(scales > 0, scales, np.asarray(1, x.dtype))
    return np.asarray(np.rint(groups / safe) * scales).reshape(x.shape)


def _grouped(x: Value, group: int) -> Value:
    return RESHAPE(x, shape=(*x.shape[:-1], _groups(x.type, group), _size(x.type, group)))


def _expand_quantize(w: Value, *, bits: int, group: int) -> Sequence[Value]:
    if group == TILE:
        return fp8.expand_quantize(w)
    groups, last = _grouped(w, group), w.type.rank
    high = MAX(groups, axes=(last,), keepdims=True)
    low = NEG(MAX(NEG(groups), axes=(last,), keepdims=True))
    largest = WHERE(GREATER_EQUAL(high, NEG(low)), high, low)
    if bits == 8:
        scales = CAST(DIV(ABS(largest), scalar(127, "f32")), dtype="f16")
    else:
        scales = CAST(DIV(largest, scalar(-8, "f32")), dtype="f16")
        for _ in range(2):
            codes = _expand_codes(groups, scales, bits)
            match, square = (_expand_products(other, codes) for other in (groups, codes))
            scales = CAST(DIV(match, MAXIMUM(square, scalar(1, "f32"))), dtype="f16")
    codes = CAST(_expand_codes(groups, scales, bits), dtype="i8")
    return RESHAPE(codes, shape=w.shape), RESHAPE(scales, shape=scales.shape[:-1])


def _expand_products(x: Value, y: Value) -> Value:
    products = MUL(CAST(x, dtype="f64"), CAST(y, dtype="f64"))
    return CAST(SUM(products, axes=(products.type.rank - 1,), keepdims=True), dtype="f32")


def _expand_codes(groups: Value, scales: Value, bits: int) -> Value:
    low, high = (scalar(bound, "f32") for bound in RANGES[bits])
    return MINIMUM(MAXIMUM(ROUND(_quotient(groups, CAST(scales, dtype="f32"))), low), high)


def _quotient(groups: Value, scales: Value) -> Value:
    """groups / scales, 0 where a scale is 0."""
    size = ABS(scales)
    zero, one = (scalar(number, scales.type.dtype) for number in (0, 1))
    some = GREATER_EQUAL(zero, size)
    return WHERE(some, zero, DIV(groups, WHERE(some, one, scales)))


def _expand_dequantize(codes: Value, scales: Value, *, bits: int, group: int) -> Sequence[Value]:
    if group == TILE:
        return fp8.expand_dequantize(codes, scales)
    wide = RESHAPE(CAST(scales, dtype="f32"), shape=(*scales.shape, 1))
    return (RESHAPE(MUL(CAST(_grouped(codes, group), dtype="f32"), wide), shape=codes.shape),)


def _expand_round_trip(x: Value, *, group: int) -> Sequence[Value]:
    if group == TILE:
        return fp8.expand_round_trip(x)
    groups = _grouped(x, group)
    largest = MAX(ABS(groups), axes=(x.type.rank,), keepdims=True)
    scales = DIV(largest, scalar(127, x.type.dtype))
    return (RESHAPE(MUL(ROUND(_quotient(groups, scales)), scales), shape=x.shape),)


def _rowwise(w: Type, *_: Type, group: int, **attrs: int) -> bool:
    """Whether slices along axis 0 can be done apart: tiles hold several rows."""
    return w.rank > (2 if group == TILE else 1)


# quantize(w f32 [.., N, K]; bits, group) -> codes i8 [.., N, K], scales f16 [.., N, K/32]
QUANTIZE = Op("quantize", _quantize_type, _quantize, _expand_quantize, rowwise=_rowwise)
# dequantize(codes, scales; bits, group) -> f32 [.., N, K]; bits say what range the codes have
DEQUANTIZE = Op("dequantize", _dequantize_type, _dequantize, _expand_dequantize, rowwise=_rowwise)
# round_trip(x [.., K]; group): each group to 8 bits and back, scale = largest / 127, halves to even
ROUND_TRIP = Op("round_trip", _round_trip_type, _round_trip, _expand_round_trip)
