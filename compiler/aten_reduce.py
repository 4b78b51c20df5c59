"""What ATen's sums, orders and norms are in our ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .aten_math import Handler, Put, Unsupported, as_dtype, axis_of, cast, overloads
from .ir import FLOATS, Op, Value
from .ops import elementwise, reduce, shape
from .ops.sources import scalar


def _axes(x: Value, axes: int | Sequence[int] | None) -> tuple[int, ...]:
    """Axes counted from the front, in order; None or none given means all."""
    listed = [axes] if isinstance(axes, int) else list(axes or range(x.type.rank))
    return tuple(sorted(axis_of(x, axis) for axis in listed))


def _reduce(op: Op) -> Handler:
    def handle(put: Put, x: Value, axes: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
        x = x if dtype is None else cast(put, x, dtype)
        if x.type.dtype == "bool":
            x = as_dtype(put, x, "i64")
        return put(op, x, axes=_axes(x, axes), keepdims=keepdim)

    return handle


def _reduce_all(op: Op) -> Handler:
    return lambda put, x, dtype=None: _reduce(op)(put, x, None, False, dtype)


def _max_along(put: Put, x: Value, axis: int, keepdim: bool = False) -> tuple[Value, Value]:
    largest = put(reduce.MAX, x, axes=_axes(x, axis), keepdims=keepdim)
    return largest, _argmax(put, x, axis, keepdim)


def _argmax(put: Put, x: Value, axis: int | None = None, keepdim: bool = False) -> Value:
    if axis is None:
        raise Unsupported("argmax over all axes; give it an axis")
    _, places = _top_k(put, x, 1, axis)
    kept = tuple(1 if i == axis_of(x, axis) else size for i, size in enumerate(x.shape))
    dropped = tuple(size for i, size in enumerate(x.shape) if i != axis_of(x, axis))
    return put(shape.RESHAPE, places, shape=kept if keepdim else dropped)


def _swapped_last(put: Put, x: Value, axis: int) -> Value:
    """x with an axis exchanged for the last; the same again undoes it."""
    perm = list(range(x.type.rank))
    perm[axis], perm[-1] = perm[-1], perm[axis]
    return x if axis == x.type.rank - 1 else put(shape.TRANSPOSE, x, perm=tuple(perm))


def _ordered(put: Put, op: Op, x: Value, axis: int, negate: bool, **attrs: Any) -> tuple[Value, Value]:
    """Values and places along an axis, of an op that orders the last."""
    axis = axis_of(x, axis)
    turned = _swapped_last(put, x, axis)
    node = put.node(op, put(elementwise.NEG, turned) if negate else turned, **attrs)
    values = put(elementwise.NEG, node[0]) if negate else node[0]
    return _swapped_last(put, values, axis), _swapped_last(put, node[1], axis)


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
    put: Put,
    x: Value,
    sizes: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Value:
    axes = tuple(range(x.type.rank - len(sizes), x.type.rank))
    centred = put(elementwise.SUB, x, put(reduce.MEAN, x, axes=axes, keepdims=True))
    return _affine(put, _unit(put, centred, axes, eps), weight, bias)


def _rms_norm(
    put: Put, x: Value, sizes: Sequence[int], weight: Value | None = None, eps: float | None = None
) -> Value:
    axes = tuple(range(x.type.rank - len(sizes), x.type.rank))
    return _affine(put, _unit(put, x, axes, 2.0**-23 if eps is None else eps), weight, None)


def _unit(put: Put, x: Value, axes: tuple[int, ...], eps: float) -> Value:
    """x over the root of its mean square."""
    mean = put(reduce.MEAN, put(elementwise.MUL, x, x), axes=axes, keepdims=True)
    return put(
        elementwise.MUL, x, put(elementwise.RSQRT, put(elementwise.ADD, mean, scalar(eps, x.type.dtype)))
    )


def _affine(put: Put, x: Value, weight: Value | None, bias: Value | None) -> Value:
    x = x if weight is None else put(elementwise.MUL, x, weight)
    return x if bias is None else put(elementwise.ADD, x, bias)


TABLE: Mapping[str, Handler] = {
    **overloads({"sum": _reduce(reduce.SUM)}, "dim_IntList"),
    **overloads({"mean": _reduce(reduce.MEAN)}, "dim"),
    **overloads({"sum": _reduce_all(reduce.SUM), "mean": _reduce_all(reduce.MEAN)}, "default"),
    **overloads({"amax": _reduce(reduce.MAX), "max": _reduce_all(reduce.MAX), "argmax": _argmax}, "default"),
    **overloads({"max": _max_along}, "dim"),
    **overloads({"topk": _top_k, "sort": _sort, "cumsum": _cumsum, "_softmax": _softmax}, "default"),
    **overloads({"sort": _sort_stable}, "stable"),
    **overloads({"softmax": _softmax}, "int"),
    **overloads({"layer_norm": _layer_norm, "rms_norm": _rms_norm}, "default"),
}
