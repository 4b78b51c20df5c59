"""What ATen's arithmetic, comparisons and reductions are in our ops. Each entry takes (put, *args, **kwargs) of the call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from .ir import FLOATS, Node, Op, Value, make
from .ops import elementwise, reduce, shape
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
    """Makes nodes that came from one module path."""

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
        others = ["f32" if isinstance(o, float) else "i64" for o in operands if not isinstance(o, Value | bool)]
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


def axes_of(x: Value, axes: int | Sequence[int] | None) -> tuple[int, ...]:
    """Axes counted from the front, in order; None or none given means all."""
    listed = [axes] if isinstance(axes, int) else list(axes or range(x.type.rank))
    return tuple(sorted(axis_of(x, axis) for axis in listed))


def _unary(op: Op) -> Handler:
    def handle(put: Put, x: Value) -> Value:
        return put(op, x if x.type.dtype in FLOATS or op in (elementwise.NEG, elementwise.ABS) else as_dtype(put, x, "f32"))

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


def _reduce(op: Op) -> Handler:
    def handle(put: Put, x: Value, axes: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
        x = x if dtype is None else cast(put, x, dtype)
        if x.type.dtype == "bool":
            x = as_dtype(put, x, "i64")
        return put(op, x, axes=axes_of(x, axes), keepdims=keepdim)

    return handle


def _reduce_all(op: Op) -> Handler:
    return lambda put, x, dtype=None: _reduce(op)(put, x, None, False, dtype)


def _max_along(put: Put, x: Value, axis: int, keepdim: bool = False) -> tuple[Value, Value]:
    largest = put(reduce.MAX, x, axes=axes_of(x, axis), keepdims=keepdim)
    return largest, _argmax(put, x, axis, keepdim)


def _argmax(put: Put, x: Value, axis: int | None = None, keepdim: bool = False) -> Value:
    if axis is None:
        raise Unsupported("argmax over all axes; give it an axis")
    _, places = _top_k(put, x, 1, axis)
    kept = tuple(1 if i == axis_of(x, axis) else size for i, size in enumerate(x.shape))
    dropped = tuple(size for i, size in enumerate(x.shape) if i != axis_of(x, axis))
    return put(shape.RESHAPE, places, shape=kept if keepdim else dropped)


def swapped_last(put: Put, x: Value, axis: int) -> Value:
    """x with an axis exchanged for the last; the same again undoes it."""
    perm = list(range(x.type.rank))
    perm[axis], perm[-1] = perm[-1], perm[axis]
    return x if axis == x.type.rank - 1 else put(shape.TRANSPOSE, x, perm=tuple(perm))


def _ordered(put: Put, op: Op, x: Value, axis: int, negate: bool, **attrs: Any) -> tuple[Value, Value]:
    """Values and places along an axis, of an op that orders the last."""
    axis = axis_of(x, axis)
    turned = swapped_last(put, x, axis)
    node = put.node(op, put(elementwise.NEG, turned) if negate else turned, **attrs)
    values = put(elementwise.NEG, node[0]) if negate else node[0]
    return swapped_last(put, values, axis), swapped_last(put, node[1], axis)


def _top_k(
    put: Put, x: Value, k: int, axis: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Value, Value]:
    return _ordered(put, reduce.TOP_K, x, axis, not largest, k=k)


def _sort(put: Put, x: Value, axis: int = -1, descending: bool = False) -> tuple[Value, Value]:
    return _ordered(put, reduce.SORT, x, axis, descending)


def _sort_stable(put: Put, x: Value, *, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    return _sort(put, x, dim, descending)


def _cumsum(put: Put, x: Value, axis: int, dtype: Any = None) -> Value:
    if dtype is not None:
        x = cast(put, x, dtype)
    elif x.type.dtype not in FLOATS:
        x = as_dtype(put, x, "i64")
    return put(reduce.CUMSUM, x, axis=axis_of(x, axis))


def _softmax(put: Put, x: Value, axis: int, dtype: Any = None) -> Value:
    x = x if dtype is None or isinstance(dtype, bool) else cast(put, x, dtype)
    return put(reduce.SOFTMAX, x, axis=axis_of(x, axis))


def _layer_norm(
    put: Put, x: Value, sizes: Sequence[int], weight: Value | None = None, bias: Value | None = None, eps: float = 1e-5, *_: Any
) -> Value:
    axes = tuple(range(x.type.rank - len(sizes), x.type.rank))
    centred = put(elementwise.SUB, x, put(reduce.MEAN, x, axes=axes, keepdims=True))
    return _affine(put, _unit(put, centred, axes, eps), weight, bias)


def _rms_norm(put: Put, x: Value, sizes: Sequence[int], weight: Value | None = None, eps: float | None = None) -> Value:
    axes = tuple(range(x.type.rank - len(sizes), x.type.rank))
    return _affine(put, _unit(put, x, axes, 2.0**-23 if eps is None else eps), weight, None)


def _unit(put: Put, x: Value, axes: tuple[int, ...], eps: float) -> Value:
    """x over the root of its mean square."""
    mean = put(reduce.MEAN, put(elementwise.MUL, x, x), axes=axes, keepdims=True)
    return put(elementwise.MUL, x, put(elementwise.RSQRT, put(elementwise.ADD, mean, scalar(eps, x.type.dtype))))


def _affine(put: Put, x: Value, weight: Value | None, bias: Value | None) -> Value:
    x = x if weight is None else put(elementwise.MUL, x, weight)
    return x if bias is None else put(elementwise.ADD, x, bias)


def _overloads(handlers: Mapping[str, Handler], *overloads: str) -> dict[str, Handler]:
    return {f"aten.{name}.{overload}": handler for name, handler in handlers.items() for overload in overloads}


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
    **_overloads({name: _unary(getattr(elementwise, name.upper())) for name in _FUNCTIONS}, "default"),
    **_overloads({name: _binary(op) for name, op in _COMPARISONS.items()}, "Tensor", "Scalar"),
    **_overloads({f"logical_{name}": _logical(op) for name, op in _LOGIC.items()}, "default"),
    **_overloads({f"bitwise_{name}": _bitwise(op) for name, op in _LOGIC.items()}, "default", "Tensor"),
    **_overloads({f"__{name}__": _bitwise(op) for name, op in _LOGIC.items()}, "Tensor"),
    **_overloads({"add": _scaled(elementwise.ADD), "sub": _scaled(elementwise.SUB)}, "Tensor", "Scalar"),
    **_overloads({"mul": _mul, "ne": _not_equal}, "Tensor", "Scalar"),
    **_overloads({"div": _div}, "Tensor", "Scalar", "Tensor_mode", "Scalar_mode"),
    **_overloads({"rsub": lambda put, a, b, alpha=1: _scaled(elementwise.SUB)(put, b, a, alpha)}, "Tensor", "Scalar"),
    **_overloads({"pow": _binary(elementwise.POW)}, "Tensor_Tensor", "Tensor_Scalar", "Scalar"),
    **_overloads({"floor_divide": _binary(elementwise.FLOOR_DIVIDE)}, "default", "Scalar"),
    **_overloads({"maximum": _binary(elementwise.MAXIMUM), "minimum": _binary(elementwise.MINIMUM)}, "default"),
    **_overloads({"relu": lambda put, x: _clamp(put, x, 0)}, "default"),
    **_overloads({"square": lambda put, x: put(elementwise.MUL, x, x)}, "default"),
    **_overloads({"reciprocal": lambda put, x: _div(put, 1.0, x)}, "default"),
    **_overloads({"softplus": _softplus, "gelu": _gelu, "dropout": _dropout}, "default"),
    **_overloads({"clamp": _clamp}, "default", "Tensor"),
    **_overloads({"clamp_min": _clamp, "clamp_max": lambda put, x, m: _clamp(put, x, None, m)}, "default", "Tensor"),
    **_overloads({"where": _where}, "self", "ScalarSelf", "ScalarOther", "Scalar"),
    **_overloads({"masked_fill": _masked_fill}, "Scalar", "Tensor"),
    **_overloads({"sum": _reduce(reduce.SUM)}, "dim_IntList"),
    **_overloads({"mean": _reduce(reduce.MEAN)}, "dim"),
    **_overloads({"sum": _reduce_all(reduce.SUM), "mean": _reduce_all(reduce.MEAN)}, "default"),
    **_overloads({"amax": _reduce(reduce.MAX), "max": _reduce_all(reduce.MAX), "argmax": _argmax}, "default"),
    **_overloads({"max": _max_along}, "dim"),
    **_overloads({"topk": _top_k, "sort": _sort, "cumsum": _cumsum, "_softmax": _softmax}, "default"),
    **_overloads({"sort": _sort_stable}, "stable"),
    **_overloads({"softmax": _softmax}, "int"),
    **_overloads({"layer_norm": _layer_norm, "rms_norm": _rms_norm}, "default"),
}
