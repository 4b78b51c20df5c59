"""What ATen's ops that make tensors out of nothing are in our ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy

from .aten_math import Handler, Operand, Put, Unsupported, as_dtype, dtype_of
from .aten_shape import expand, reshape
from .ir import FLOATS, Dim, Value, plain
from .ops import elementwise, shape
from .ops.sources import scalar


def filled(put: Put, sizes: Sequence[Dim], value: Operand, name: str) -> Value:
    """A tensor of one value, in one of our dtypes."""
    if isinstance(value, Value):
        return expand(put, as_dtype(put, value, name), sizes)
    number = bool(value) if name == "bool" else float(value) if name in FLOATS else int(value)
    return put(shape.FULL, shape=tuple(plain(size) for size in sizes), value=number, dtype=name)


def _filled_with(value: Operand) -> Handler:
    return lambda put, sizes, dtype=None, **_: filled(put, sizes, value, dtype_of(dtype or "torch.float32"))


def _full(put: Put, sizes: Sequence[Dim], value: Operand, dtype: Any = None, **_: Any) -> Value:
    whole = (
        "torch.bool"
        if isinstance(value, bool)
        else "torch.int64"
        if isinstance(value, int)
        else "torch.float32"
    )
    return filled(put, sizes, value, dtype_of(dtype or whole))


def _new_full(put: Put, x: Value, sizes: Sequence[Dim], value: Operand, dtype: Any = None, **_: Any) -> Value:
    return filled(put, sizes, value, dtype_of(dtype) if dtype else x.type.dtype)


def _full_like(put: Put, x: Value, value: Operand, dtype: Any = None, **_: Any) -> Value:
    return _new_full(put, x, x.shape, value, dtype)


def _like(value: Operand) -> Handler:
    return lambda put, x, **options: _full_like(put, x, value, **options)


def _new(value: Operand) -> Handler:
    return lambda put, x, sizes, **options: _new_full(put, x, sizes, value, **options)


def _arange(put: Put, start: Dim, stop: Dim, step: Dim = 1, dtype: Any = None, **_: Any) -> Value:
    if any(isinstance(place, float) for place in (start, stop, step)):
        raise Unsupported("arange over fractions; only whole numbers are known")
    name = dtype_of(dtype or "torch.int64")
    count = plain(sympy.ceiling(sympy.sympify(stop - start) / step))
    places = put(shape.IOTA, size=count, dtype=name)
    places = places if step == 1 else put(elementwise.MUL, places, scalar(int(step), name))
    return places if start == 0 else put(elementwise.ADD, places, _offset(put, start, name))


def _offset(put: Put, start: Dim, name: str) -> Value:
    if isinstance(start, int):
        return scalar(start, name)
    raise Unsupported(f"arange that starts at the size {start}; slice a longer one instead")


def _triangle(lower: bool) -> Handler:
    def handle(put: Put, x: Value, diagonal: int = 0) -> Value:
        rows, columns = x.shape[-2:]
        row = reshape(put, put(shape.IOTA, size=rows, dtype="i64"), (rows, 1))
        column = put(shape.IOTA, size=columns, dtype="i64")
        shifted = put(elementwise.ADD, row, scalar(diagonal, "i64"))
        keep = put(elementwise.LESS_EQUAL if lower else elementwise.GREATER_EQUAL, column, shifted)
        return put(elementwise.WHERE, keep, x, scalar(0, x.type.dtype))

    return handle


# What is never written before it is read may hold anything; we say 0.
_VALUES = {"zeros": 0, "ones": 1, "empty": 0}

TABLE: Mapping[str, Handler] = {
    "aten.fill.Scalar": _full_like,
    "aten.fill.Tensor": _full_like,
    "aten.zero.default": _like(0),
    "aten.zeros.default": _filled_with(0),
    "aten.ones.default": _filled_with(1),
    "aten.empty.memory_format": _filled_with(0),
    "aten.full.default": _full,
    "aten.full_like.default": _full_like,
    "aten.new_full.default": _new_full,
    **{f"aten.{name}_like.default": _like(value) for name, value in _VALUES.items()},
    **{f"aten.new_{name}.default": _new(value) for name, value in _VALUES.items()},
    "aten.arange.default": lambda put, stop, **kwargs: _arange(put, 0, stop, **kwargs),
    "aten.arange.start": _arange,
    "aten.arange.start_step": _arange,
    "aten.tril.default": _triangle(lower=True),
    "aten.triu.default": _triangle(lower=False),
}
