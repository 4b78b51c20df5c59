"""Where values come from: what the caller feeds, weights by name, small data written in the graph."""

from __future__ import annotations

import math

import numpy as np

from ..ir import DTYPES, Array, Dim, Op, Type, TypeMismatch, Value


def _source(*, name: str, dtype: str, shape: tuple[Dim, ...]) -> tuple[Type, ...]:
    if not name:
        raise TypeMismatch("a source needs a name")
    return (Type(dtype, shape),)


def _no_reference(*, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
    raise LookupError(f"{name} has no value of its own: it comes from the feeds or the weights")


def _literal_type(*, data: bytes, dtype: str, shape: tuple[int, ...]) -> tuple[Type, ...]:
    result = Type(dtype, shape)
    if not all(isinstance(size, int) for size in result.shape):
        raise TypeMismatch(f"a literal is data, so it has no symbolic size; got {result}")
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if len(data) != expected:
        raise TypeMismatch(f"{result} takes {expected} bytes, but the data has {len(data)}")
    return (result,)


def _literal(*, data: bytes, dtype: str, shape: tuple[int, ...]) -> Array:
    return np.frombuffer(data, DTYPES[dtype]).reshape(shape)


INPUT = Op("input", _source, _no_reference)
CONSTANT = Op("constant", _source, _no_reference)
LITERAL = Op("literal", _literal_type, _literal)


def scalar(value: float | int | bool, dtype: str) -> Value:
    """A number as a literal of rank 0, rounded to the dtype."""
    return literal_of(np.asarray(value).astype(DTYPES[dtype]))


def literal_of(array: Array) -> Value:
    """Small data as a literal of the array's dtype and shape.

    Raises TypeMismatch where the dtype is none of the graph's.
    """
    names = [name for name, dtype in DTYPES.items() if dtype == array.dtype]
    if not names:
        raise TypeMismatch(f"no literal can hold {array.dtype}; known dtypes: {', '.join(DTYPES)}")
    return LITERAL(data=array.tobytes(), dtype=names[0], shape=array.shape)


def array_of(value: Value) -> Array | None:
    """The data of a literal (read-only), or None where the value is computed otherwise."""
    return _literal(**value.node.attrs) if value.op is LITERAL else None
