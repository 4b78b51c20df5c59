"""Ops that treat every element alike; several operands broadcast as in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..ir import DTYPES, FLOATS, Array, Op, Type
from .rules import NUMBERS, broadcast, check_choice, check_dtype, check_same_dtype

Infer = Callable[..., tuple[Type, ...]]


def _unary_of(allowed: tuple[str, ...]) -> Infer:
    def infer(x: Type) -> tuple[Type, ...]:
        check_dtype("the operand", x, allowed)
        return (x,)

    return infer


def _binary_of(allowed: tuple[str, ...], result: str = "") -> Infer:
    def infer(a: Type, b: Type) -> tuple[Type, ...]:
        check_same_dtype(a, b)
        check_dtype("the left operand", a, allowed)
        return (Type(result or a.dtype, broadcast(a.shape, b.shape)),)

    return infer


def _where_type(condition: Type, a: Type, b: Type) -> tuple[Type, ...]:
    check_dtype("the condition", condition, ("bool",))
    check_same_dtype(a, b)
    return (Type(a.dtype, broadcast(condition.shape, a.shape, b.shape)),)


def _cast_type(x: Type, *, dtype: str) -> tuple[Type, ...]:
    return (Type(dtype, x.shape),)


def _gelu_type(x: Type, *, approximate: str = "none") -> tuple[Type, ...]:
    check_dtype("the operand", x, FLOATS)
    check_choice("approximate", approximate, ("none", "tanh"))
    return (x,)


def _rsqrt(x: Array) -> Array:
    return np.asarray(1 / np.sqrt(x))


def _sigmoid(x: Array) -> Array:
    decay = np.exp(-np.abs(x))  # at most 1, so nothing overflows
    return np.asarray(np.where(x >= 0, 1, decay) / (1 + decay))


def _silu(x: Array) -> Array:
    return np.asarray(x * _sigmoid(x))


def _softplus(x: Array) -> Array:
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


def _gelu(x: Array, *, approximate: str) -> Array:
    if approximate == "tanh":
        return np.asarray(x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    erf = np.frompyfunc(math.erf, 1, 1)(x / math.sqrt(2))
    return np.asarray(x / 2 * (1 + np.asarray(erf).astype(x.dtype)))


def _cast(x: Array, *, dtype: str) -> Array:
    return x.astype(DTYPES[dtype], copy=False)


def _unary(name: str, reference: Callable[..., Array], allowed: tuple[str, ...] = FLOATS) -> Op:
    return Op(name, _unary_of(allowed), reference, rowwise=True)


def _binary(name: str, reference: Callable[..., Array], allowed: tuple[str, ...], result: str = "") -> Op:
    return Op(name, _binary_of(allowed, result), reference, rowwise=True)


ADD = _binary("add", np.add, NUMBERS)
SUB = _binary("sub", np.subtract, NUMBERS)
MUL = _binary("mul", np.multiply, NUMBERS)
DIV = _binary("div", np.true_divide, FLOATS)
FLOOR_DIVIDE = _binary("floor_divide", np.floor_divide, NUMBERS)
POW = _binary("pow", np.power, NUMBERS)
MAXIMUM = _binary("maximum", np.maximum, NUMBERS)
MINIMUM = _binary("minimum", np.minimum, NUMBERS)

NEG = _unary("neg", np.negative, NUMBERS)
ABS = _unary("abs", np.abs, NUMBERS)
ROUND = _unary("round", np.rint)  # halves to even
SQRT = _unary("sqrt", np.sqrt)
RSQRT = _unary("rsqrt", _rsqrt)
EXP = _unary("exp", np.exp)
LOG = _unary("log", np.log)
COS = _unary("cos", np.cos)
SIN = _unary("sin", np.sin)
TANH = _unary("tanh", np.tanh)
SIGMOID = _unary("sigmoid", _sigmoid)
SILU = _unary("silu", _silu)
SOFTPLUS = _unary("softplus", _softplus)
GELU = Op("gelu", _gelu_type, _gelu, rowwise=True)

EQUAL = _binary("equal", np.equal, (*NUMBERS, "bool"), "bool")
LESS = _binary("less", np.less, NUMBERS, "bool")
LESS_EQUAL = _binary("less_equal", np.less_equal, NUMBERS, "bool")
GREATER = _binary("greater", np.greater, NUMBERS, "bool")
GREATER_EQUAL = _binary("greater_equal", np.greater_equal, NUMBERS, "bool")
LOGICAL_AND = _binary("logical_and", np.logical_and, ("bool",))
LOGICAL_OR = _binary("logical_or", np.logical_or, ("bool",))
LOGICAL_NOT = _unary("logical_not", np.logical_not, ("bool",))

WHERE = Op("where", _where_type, np.where, rowwise=True)
CAST = Op("cast", _cast_type, _cast, rowwise=True)
