"""What ATen's arithmetic and comparisons are in our ops.

A table's entry takes (put, *args, **kwargs): what makes nodes, then the call's arguments, tensors as Values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from .ir import FLOATS, Node, Op, Value, make
from .ops import elementwise
from .ops.rules import INTEGERS
from .ops.sources import scalar

Number: TypeAlias = float | int | bool
Operand: TypeAlias = Value | Number

TORCH_DTYPES: Mapping[str, str] = {
    "torch.float64": "f64",
    "torch.float32": "f32",
    "torch.float16": "f16",
    "torch.bfloat16": "bf16",
    "torch.int64": "i64",
    "torch.int32": "i32",
    "torch.int8": "i8",
    "torch.uint8": "u8",
    "torch.bool": "bool",
}
# From weak to strong: the operand of the stronger kind decides the dtype, as torch promotes.
_STRENGTH = ("bool", "u8", "i8", "i32", "i64", "f16", "bf16", "f32", "f64")


class Unsupported(ValueError):
    """A call that has no spelling in our ops; the message says why."""


class Put:
    """Makes nodes that come from one module path."""

    def __init__(self, origin: str) -> None:
        self.origin = origin

    def node(self, op: Op, *inputs: Value, **attrs: Any) -> Node:
        """The node, for ops with several results."""
        return make(op, *inputs, origin=self.origin, **attrs)

    def __call__(self, op: Op, *inputs: Value, **attrs: Any) -> Value:
        return self.node(op, *inputs, **attrs)[0]


Handler: TypeAlias = Callable[..., Any]


def dtype_of(dtype: Any) -> str:
    """Our name of a torch dtype. Raises Unsupported where the graph has none."""
    if str(dtype) not in TORCH_DTYPES:
        raise Unsupported(f"dtype {dtype} is not known; known: {', '.join(TORCH_DTYPES)}")
    return TORCH_DTYPES[str(dtype)]


def cast(put: Put, x: Value, dtype: Any) -> Value:
    """x in a torch dtype, or itself where it is of it already."""
    return as_dtype(put, x, dtype_of(dtype))


def as_dtype(put: Put, x: Value, name: str) -> Value:
    """x in one of our dtypes. Counts that only pass through floats on their way to integers stay integers."""
    if x.type.dtype == name:
        return x
    source = x.node.inputs[0] if x.op is elementwise.CAST else None
    if source and name in INTEGERS and source.type.dtype in INTEGERS and x.type.dtype in FLOATS:
        return as_dtype(put, source, name)
    return put(elementwise.CAST, x, dtype=name)


def promoted(put: Put, *operands: Operand) -> list[Value]:
    """The operands in the dtype torch would compute in; numbers become literals."""
    values = [operand for operand in operands if isinstance(operand, Value)]
    wide = [value for value in values if value.type.rank] or values
    name = max((value.type.dtype for value in wide), key=_STRENGTH.index)
    if name not in FLOATS:  # a number or a rank 0 tensor decides only where it is of a stronger kind
        others = [
            "f32" if isinstance(o, float) else "i64" for o in operands if not isinstance(o, Value | bool)
        ]
        others += [value.type.dtype for value in values]
        name = max([name, *(o for o in others if _kind(o) > _kind(name))], key=_STRENGTH.index)
    return [as_dtype(put, o, name) if isinstance(o, Value) else scalar(_number(o), name) for o in operands]


def _kind(dtype: str) -> int:
    return 2 if dtype in FLOATS else 1 if dtype in INTEGERS else 0


def _number(operand: Any) -> Number:
    if not isinstance(operand, float | int):
        raise Unsupported(f"the size {operand} is used as a number in a tensor")
    return operand


def axis_of(x: Value, axis: int) -> int:
    """The axis counted from the front."""
    return axis % max(1, x.type.rank)


def _unary(op: Op) -> Handler:
    def handle(put: Put, x: Value) -> Value:
        return put(
            op,
            x
            if x.type.dtype in FLOATS or op in (elementwise.NEG, elementwise.ABS)
            else as_dtype(put, x, "f32"),
        )

    return handle


def _binary(op: Op) -> Handler:
    return lambda put, a, b: put(op, *promoted(put, a, b))


def _scaled(op: Op) -> Handler:
    def handle(put: Put, a: Operand, b: Operand, alpha: Number = 1) -> Value:
        if alpha != 1:
            b = put(elementwise.MUL, *promoted(put, b, alpha)) if isinstance(b, Value) else b * alpha
        return put(op, *promoted(put, a, b))

    return handle


def _mul(put: Put, a: Operand, b: Operand) -> Value:
    for x, factor in ((a, b), (b, a)):
        if isinstance(x, Value) and isinstance(factor, float) and factor == 1 and x.type.dtype in FLOATS:
            return x
    return put(elementwise.MUL, *promoted(put, a, b))


def _div(put: Put, a: Operand, b: Operand, rounding_mode: str | None = None) -> Value:
    left, right = promoted(put, a, b)
    if rounding_mode == "floor":
        return put(elementwise.FLOOR_DIVIDE, left, right)
    if rounding_mode:
        raise Unsupported(f"rounding mode {rounding_mode!r}; only 'floor' is known")
    floats = [value if value.type.dtype in FLOATS else as_dtype(put, value, "f32") for value in (left, right)]
    return put(elementwise.DIV, *floats)


def _not_equal(put: Put, a: Operand, b: Operand) -> Value:
    return put(elementwise.LOGICAL_NOT, put(elementwise.EQUAL, *promoted(put, a, b)))


def _logical(op: Op) -> Handler:
    return lambda put, *xs: put(op, *(as_dtype(put, x, "bool") for x in xs))


def _bitwise(op: Op) -> Handler:
    def handle(put: Put, *xs: Value) -> Value:
        if any(not isinstance(x, Value) or x.type.dtype != "bool" for x in xs):
            raise Unsupported("bitwise logic on integers is not known, only on bool")
        return put(op, *xs)

    return handle


def _where(put: Put, condition: Value, a: Operand, b: Operand) -> Value:
    return put(elementwise.WHERE, condition, *promoted(put, a, b))


def _masked_fill(put: Put, x: Value, mask: Value, value: Operand) -> Value:
    filling = as_dtype(put, value, x.type.dtype) if isinstance(value, Value) else scalar(value, x.type.dtype)
    return put(elementwise.WHERE, mask, filling, x)


def _clamp(put: Put, x: Value, min: Operand | None = None, max: Operand | None = None) -> Value:
    if min is not None:
        x = put(elementwise.MAXIMUM, *promoted(put, x, min))
    return x if max is None else put(elementwise.MINIMUM, *promoted(put, x, max))


def _softplus(put: Put, x: Value, beta: Number = 1, threshold: Number = 20) -> Value:
    if beta != 1:
        raise Unsupported(f"softplus with beta {beta}; only 1 is known")
    return put(elementwise.SOFTPLUS, x)


def _gelu(put: Put, x: Value, approximate: str = "none") -> Value:
    return put(elementwise.GELU, x, approximate=approximate)


def _dropout(put: Put, x: Value, probability: float, train: bool) -> Value:
    if train and probability:
        raise Unsupported("dropout in training mode; call .eval() on the module first")
    return x


def overloads(handlers: Mapping[str, Handler], *overloads: str) -> dict[str, Handler]:
    return {
        f"aten.{name}.{overload}": handler for name, handler in handlers.items() for overload in overloads
    }


_FUNCTIONS = ("neg", "abs", "sqrt", "rsqrt", "exp", "log", "cos", "sin", "tanh", "sigmoid", "silu")
_COMPARISONS = {
    "eq": elementwise.EQUAL,
    "lt": elementwise.LESS,
    "le": elementwise.LESS_EQUAL,
    "gt": elementwise.GREATER,
    "ge": elementwise.GREATER_EQUAL,
}
_LOGIC = {"and": elementwise.LOGICAL_AND, "or": elementwise.LOGICAL_OR, "not": elementwise.LOGICAL_NOT}

TABLE: Mapping[str, Handler] = {
    **overloads({name: _unary(getattr(elementwise, name.upper())) for name in _FUNCTIONS}, "default"),
    **overloads({name: _binary(op) for name, op in _COMPARISONS.items()}, "Tensor", "Scalar"),
    **overloads({f"logical_{name}": _logical(op) for name, op in _LOGIC.items()}, "default"),
    **overloads({f"bitwise_{name}": _bitwise(op) for name, op in _LOGIC.items()}, "default", "Tensor"),
    **overloads({f"__{name}__": _bitwise(op) for name, op in _LOGIC.items()}, "Tensor"),
    **overloads({"add": _scaled(elementwise.ADD), "sub": _scaled(elementwise.SUB)}, "Tensor", "Scalar"),
    **overloads({"mul": _mul, "ne": _not_equal}, "Tensor", "Scalar"),
    **overloads({"div": _div}, "Tensor", "Scalar", "Tensor_mode", "Scalar_mode"),
    **overloads(
        {"rsub": lambda put, a, b, alpha=1: _scaled(elementwise.SUB)(put, b, a, alpha)}, "Tensor", "Scalar"
    ),
    **overloads({"pow": _binary(elementwise.POW)}, "Tensor_Tensor", "Tensor_Scalar", "Scalar"),
    **overloads({"floor_divide": _binary(elementwise.FLOOR_DIVIDE)}, "default", "Scalar"),
    **overloads(
        {"maximum": _binary(elementwise.MAXIMUM), "minimum": _binary(elementwise.MINIMUM)}, "default"
    ),
    **overloads({"relu": lambda put, x: _clamp(put, x, 0)}, "default"),
    **overloads({"square": lambda put, x: put(elementwise.MUL, x, x)}, "default"),
    **overloads({"reciprocal": lambda put, x: _div(put, 1.0, x)}, "default"),
    **overloads({"softplus": _softplus, "gelu": _gelu, "dropout": _dropout}, "default"),
    **overloads({"clamp": _clamp}, "default", "Tensor"),
    **overloads(
        {"clamp_min": _clamp, "clamp_max": lambda put, x, m: _clamp(put, x, None, m)}, "default", "Tensor"
    ),
    **overloads({"where": _where}, "self", "ScalarSelf", "ScalarOther", "Scalar"),
    **overloads({"masked_fill": _masked_fill}, "Scalar", "Tensor"),
}
