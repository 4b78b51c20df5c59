"""How each primitive op is written in standard ONNX.

A spelling is `(scope, node, *names of the operands) -> name of the result`, or names where there are several.
Axes are written from the end, so one function serves operands of several ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .ir import FLOATS, Dim, Node
from .onnx_scope import Scope, onnx_dtype
from .ops import sources

Spelling = Callable[..., "str | Sequence[str]"]
TO_THE_END = np.iinfo(np.int64).max


def _direct(kind: str) -> Spelling:
    """An op that ONNX has under another name."""
    return lambda scope, node, *inputs: scope.op(kind, *inputs)


def _from_end(node: Node, axis: int) -> int:
    return axis - node.inputs[0].type.rank if axis >= 0 else axis


def _literal(scope: Scope, node: Node) -> str:
    return scope.constant(sources.array_of(node[0]), node.types[0].dtype)


# elementwise


def _floor_divide(scope: Scope, node: Node, a: str, b: str) -> str:
    """ONNX divides integers towards zero; what is left without the remainder divides exactly."""
    if node.types[0].dtype in FLOATS:
        return scope.op("Floor", scope.op("Div", a, b))
    return scope.op("Div", scope.op("Sub", a, scope.op("Mod", a, b)), b)


def _rsqrt(scope: Scope, node: Node, x: str) -> str:
    return scope.op("Reciprocal", scope.op("Sqrt", x))


def _silu(scope: Scope, node: Node, x: str) -> str:
    return scope.op("Mul", x, scope.op("Sigmoid", x))


def _gelu(scope: Scope, node: Node, x: str) -> str:
    return scope.op("Gelu", x, approximate=node.attrs["approximate"])


def _where(scope: Scope, node: Node, condition: str, a: str, b: str) -> str:
    if node.types[0].dtype != "bool":
        return scope.op("Where", condition, a, b)
    otherwise = scope.op("And", scope.op("Not", condition), b)
    return scope.op("Or", scope.op("And", condition, a), otherwise)


def _cast(scope: Scope, node: Node, x: str) -> str:
    return scope.op("Cast", x, to=onnx_dtype(node.types[0].dtype))


# shape


def _reshape(scope: Scope, node: Node, x: str) -> str:
    """Sizes that stay where they are become 0, one unknown size becomes -1, others are computed."""
    old, new = node.inputs[0].shape, node.types[0].shape
    kept = [i < len(old) and not isinstance(dim, int) and old[i] == dim for i, dim in enumerate(new)]
    dims: list[Dim] = [0 if keep else dim for keep, dim in zip(kept, new)]
    unknown = [i for i, dim in enumerate(dims) if not isinstance(dim, int)]
    if len(unknown) == 1:
        dims[unknown[0]] = -1
    if any(dim == 0 and not keep for dim, keep in zip(new, kept)):
        return scope.op("Reshape", x, scope.shape(new), allowzero=1)
    return scope.op("Reshape", x, scope.shape(dims))


def _transpose(scope: Scope, node: Node, x: str) -> str:
    return scope.op("Transpose", x, perm=list(node.attrs["perm"]))


def _slice(scope: Scope, node: Node, x: str) -> str:
    axis = _from_end(node, int(node.attrs["axis"]))
    start, stop, step = node.attrs["start"], node.attrs["stop"], node.attrs.get("step", 1)
    if stop == node.inputs[0].shape[axis]:
        stop = TO_THE_END
    first, last, stride = (scope.shape([size]) for size in (start, stop, step))
    return scope.op("Slice", x, first, last, scope.constant([axis]), stride)


def _concat(scope: Scope, node: Node, *parts: str) -> str:
    return scope.op("Concat", *parts, axis=_from_end(node, int(node.attrs["axis"])))


def _expand(scope: Scope, node: Node, x: str) -> str:
    """A size the operand already has is left to broadcasting."""
    old, new = node.inputs[0].shape, node.types[0].shape
    lead = len(new) - len(old)
    dims = [1 if i >= lead and old[i - lead] == dim else dim for i, dim in enumerate(new)]
    return scope.op("Expand", x, scope.shape(dims))


def _iota(scope: Scope, node: Node) -> str:
    size = scope.op("Squeeze", scope.shape([node.attrs["size"]]))
    steps = scope.op("Range", scope.constant(0), size, scope.constant(1))
    return scope.op("Cast", steps, to=onnx_dtype(node.types[0].dtype))


def _full(scope: Scope, node: Node) -> str:
    value = scope.constant(node.attrs["value"], node.types[0].dtype)
    return scope.op("Expand", value, scope.shape(node.types[0].shape))


# reduce


def _reduce(kind: str) -> Spelling:
    def spell(scope: Scope, node: Node, x: str) -> str:
        axes = scope.constant([_from_end(node, axis) for axis in node.attrs["axes"]])
        return scope.op(kind, x, axes, keepdims=int(node.attrs["keepdims"]))

    return spell


def _cumsum(scope: Scope, node: Node, x: str) -> str:
    return scope.op("CumSum", x, scope.constant(_from_end(node, int(node.attrs["axis"]))))


def _softmax(scope: Scope, node: Node, x: str) -> str:
    return scope.op("Softmax", x, axis=_from_end(node, int(node.attrs["axis"])))


def _top_k(scope: Scope, node: Node, x: str) -> list[str]:
    return scope.ops("TopK", x, scope.shape([node.attrs["k"]]), count=2, axis=-1, largest=1, sorted=1)


def _sort(scope: Scope, node: Node, x: str) -> list[str]:
    """onnxruntime breaks ties by the lower index both ways, so the smallest n of n are a stable sort."""
    size = scope.op("Shape", x, start=-1)
    return scope.ops("TopK", x, size, count=2, axis=-1, largest=0, sorted=1)


# index


def _take(scope: Scope, node: Node, x: str, index: str) -> str:
    return scope.op("Gather", x, index, axis=_from_end(node, int(node.attrs["axis"])))


def _gather_along(scope: Scope, node: Node, x: str, index: str) -> str:
    return scope.op("GatherElements", x, index, axis=_from_end(node, int(node.attrs["axis"])))


def _scatter_along(scope: Scope, node: Node, x: str, index: str, source: str) -> str:
    return scope.op("ScatterElements", x, index, source, axis=_from_end(node, int(node.attrs["axis"])))


def _scatter_rows(scope: Scope, node: Node, x: str, index: str, source: str) -> str:
    return scope.op("ScatterND", x, scope.op("Unsqueeze", index, scope.constant([-1])), source)


def _bincount(scope: Scope, node: Node, ids: str) -> str:
    flat = scope.op("Reshape", ids, scope.constant([-1, 1]))
    bins = scope.constant(np.arange(int(node.attrs["bins"])), node.inputs[0].type.dtype)
    hits = scope.op("Cast", scope.op("Equal", flat, bins), to=onnx_dtype("i64"))
    return scope.op("ReduceSum", hits, scope.constant([0]), keepdims=0)


# dense


def _linear(scope: Scope, node: Node, x: str, weight: str, bias: str = "") -> str:
    product = scope.op("MatMul", x, scope.op("Transpose", weight, perm=[1, 0]))
    return scope.op("Add", product, bias) if bias else product


def _sdpa(scope: Scope, node: Node, q: str, k: str, v: str, mask: str = "") -> str:
    """Query heads that share a key head become one more axis, so keys and values are never repeated."""
    heads, groups = node.inputs[0].shape[1], node.inputs[1].shape[1]
    dtype, axis = node.types[0].dtype, scope.constant([2])
    grouped = scope.constant([0, groups, int(heads) // int(groups), -1, node.inputs[0].shape[3]])
    scaled = scope.op("Mul", scope.op("Reshape", q, grouped), scope.constant(node.attrs["scale"], dtype))
    keys = scope.op("Transpose", scope.op("Unsqueeze", k, axis), perm=[0, 1, 2, 4, 3])
    scores = scope.op("MatMul", scaled, keys)
    if mask:
        seen = scope.op("Unsqueeze", mask, axis)
        hidden = scope.op("Where", seen, scores, scope.constant(-np.inf, dtype))
        # A row that sees nothing is NaN after the softmax, and 0 by definition.
        weights = scope.op("Where", seen, scope.op("Softmax", hidden, axis=-1), scope.constant(0, dtype))
    else:
        weights = scope.op("Softmax", scores, axis=-1)
    mixed = scope.op("MatMul", weights, scope.op("Unsqueeze", v, axis))
    return scope.op("Reshape", mixed, scope.constant([0, heads, -1, node.types[0].shape[3]]))


SPELLINGS: Mapping[str, Spelling] = {
    "literal": _literal,
    **{
        name: _direct(kind)
        for name, kind in {
            "add": "Add",
            "sub": "Sub",
            "mul": "Mul",
            "div": "Div",
            "pow": "Pow",
            "maximum": "Max",
            "minimum": "Min",
            "neg": "Neg",
            "abs": "Abs",
            "round": "Round",
            "sqrt": "Sqrt",
            "exp": "Exp",
            "log": "Log",
            "cos": "Cos",
            "sin": "Sin",
            "tanh": "Tanh",
            "sigmoid": "Sigmoid",
            "softplus": "Softplus",
            "equal": "Equal",
            "less": "Less",
            "less_equal": "LessOrEqual",
            "greater": "Greater",
            "greater_equal": "GreaterOrEqual",
            "logical_and": "And",
            "logical_or": "Or",
            "logical_not": "Not",
            "matmul": "MatMul",
        }.items()
    },
    "floor_divide": _floor_divide,
    "rsqrt": _rsqrt,
    "silu": _silu,
    "gelu": _gelu,
    "where": _where,
    "cast": _cast,
    "reshape": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "concat": _concat,
    "expand": _expand,
    "iota": _iota,
    "full": _full,
    "sum": _reduce("ReduceSum"),
    "mean": _reduce("ReduceMean"),
    "max": _reduce("ReduceMax"),
    "cumsum": _cumsum,
    "softmax": _softmax,
    "top_k": _top_k,
    "sort": _sort,
    "take": _take,
    "gather_along": _gather_along,
    "scatter_along": _scatter_along,
    "scatter_rows": _scatter_rows,
    "bincount": _bincount,
    "linear": _linear,
    "sdpa": _sdpa,
}
