"""The table from ATen calls to our ops: products, attention, indexing, the cache, and complex numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import aten_make, aten_math, aten_reduce, aten_shape
from .aten_make import filled
from .aten_math import Handler, Operand, Put, Unsupported, as_dtype, axis_of
from .aten_shape import concat, cut, expand, reshape, unsqueeze
from .ir import TypeMismatch, Value, plain
from .ops import attention, cache, dense, elementwise, index, shape
from .ops.rules import INTEGERS


@dataclass(frozen=True, slots=True)
class Complex:
    """A complex tensor while it is converted; the graph has real ones only."""

    real: Value
    imaginary: Value


def _matmul(put: Put, a: Value, b: Value) -> Value:
    left = reshape(put, a, (1, *a.shape)) if a.type.rank == 1 else a
    right = reshape(put, b, (*b.shape, 1)) if b.type.rank == 1 else b
    result = put(dense.MATMUL, left, right)
    kept = [*result.shape]
    if a.type.rank == 1:
        del kept[-2]
    if b.type.rank == 1:
        del kept[-1]
    return reshape(put, result, kept)


def _addmm(put: Put, bias: Value, a: Value, b: Value, beta: float = 1, alpha: float = 1) -> Value:
    if (beta, alpha) != (1, 1):
        raise Unsupported(f"addmm with beta {beta} and alpha {alpha}; only 1 and 1 are known")
    return put(elementwise.ADD, put(dense.MATMUL, a, b), bias)


def _linear(put: Put, x: Value, weight: Value, bias: Value | None = None) -> Value:
    return put(dense.LINEAR, x, weight, *([] if bias is None else [bias]))


def _grouped_mm(
    put: Put, x: Value, weight: Value, offs: Value | None = None, bias: Any = None, *_: Any
) -> Value:
    if offs is None or bias is not None or x.type.rank != 2:
        raise Unsupported(
            "a grouped matmul other than rows in expert order with their ends (offs) and no bias"
        )
    return put(dense.GROUPED_MM, x, weight, offs)


def _sdpa(
    put: Put,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    if mask is not None and mask.type.dtype != "bool":
        raise Unsupported("attention with a mask that is added to the scores; give it a boolean mask")
    if dropout:
        raise Unsupported("attention with dropout; call .eval() on the module first")
    if is_causal:
        mask = _lower_triangle(put, q, k)
    if mask is not None:
        mask = reshape(put, mask, (1,) * (4 - mask.type.rank) + mask.shape)
    width = q.shape[-1]
    factor = float(width) ** -0.5 if scale is None else float(scale)
    operands = (q, _heads(k), _heads(v)) + (() if mask is None else (mask,))
    return put(attention.SDPA, *operands, scale=factor)


def _heads(x: Value) -> Value:
    """Keys or values before they were repeated for the query heads of their group: sdpa groups by itself."""
    spread = x.node.inputs[0] if x.op is shape.RESHAPE else None
    if spread is None or spread.op is not shape.EXPAND:
        return x
    single = spread.node.inputs[0]
    own = single.node.inputs[0] if single.op is shape.RESHAPE else None
    if own is None or single.type.rank != 5 or own.type.rank != 4:
        return x
    batch, heads, *rest = own.shape
    repeated = single.shape == (batch, heads, 1, *rest) and x.shape[2:] == tuple(rest)
    return own if repeated and spread.shape[:2] == (batch, heads) else x


def _lower_triangle(put: Put, q: Value, k: Value) -> Value:
    row = reshape(put, put(shape.IOTA, size=q.shape[2], dtype="i64"), (1, 1, q.shape[2], 1))
    return put(elementwise.LESS_EQUAL, put(shape.IOTA, size=k.shape[2], dtype="i64"), row)


def _only_index(indices: Sequence[Value | None]) -> tuple[int, Value]:
    given = [(axis, value) for axis, value in enumerate(indices) if value is not None]
    if len(given) != 1:
        raise Unsupported(f"indexing with {len(given)} tensors at once; index one axis at a time")
    if given[0][1].type.dtype == "bool":
        raise Unsupported("indexing with a boolean mask, whose result has no known size; use torch.where")
    return given[0]


def _index(put: Put, x: Value, indices: Sequence[Value | None]) -> Value:
    axis, places = _only_index(indices)
    return put(index.TAKE, x, places, axis=axis)


def _index_put(
    put: Put, x: Value, indices: Sequence[Value | None], source: Value, accumulate: bool = False
) -> Value:
    axis, places = _only_index(indices)
    if axis or accumulate:
        raise Unsupported("a write by index other than of whole rows (axis 0) without accumulation")
    rows = as_dtype(put, expand(put, source, (*places.shape, *x.shape[1:])), x.type.dtype)
    return put(index.SCATTER_ROWS, x, places, rows)


def _scatter(put: Put, x: Value, axis: int, places: Value, source: Operand) -> Value:
    values = source if isinstance(source, Value) else filled(put, places.shape, source, x.type.dtype)
    return put(index.SCATTER_ALONG, x, places, values, axis=axis_of(x, axis))


def _histogram(put: Put, x: Value, bins: int = 100, low: float = 0, high: float = 0) -> Value:
    ids = x.node.inputs[0] if x.op is elementwise.CAST else x
    if (low, high) != (0, bins - 1) or ids.type.dtype not in INTEGERS:
        raise Unsupported(
            f"a histogram other than of whole numbers with a bin each (bins {bins}, from {low} to {high})"
        )
    return as_dtype(put, put(index.BINCOUNT, ids, bins=bins), x.type.dtype)


def _polar(put: Put, length: Value, angle: Value) -> Complex:
    parts = (put(elementwise.COS, angle), put(elementwise.SIN, angle))
    if length.op is shape.FULL and length.node.attrs["value"] == 1:
        return Complex(*parts)
    return Complex(*(put(elementwise.MUL, length, part) for part in parts))


def _view_as_complex(put: Put, x: Value) -> Complex:
    """Pairs lie in the last axis; where that was just folded out of a longer one, they alternate there."""
    inner = x.node.inputs[0] if x.op is shape.RESHAPE else x
    axis, size = inner.type.rank - 1, inner.shape[-1]
    if inner is not x and (*inner.shape[:-1], plain(size // 2), 2) == x.shape:
        return Complex(cut(put, inner, axis, 0, size, 2), cut(put, inner, axis, 1, size, 2))
    return Complex(aten_shape.select(put, x, -1, 0), aten_shape.select(put, x, -1, 1))


def _view_as_real(put: Put, z: Complex) -> Value:
    return concat(put, [unsqueeze(put, z.real, -1), unsqueeze(put, z.imaginary, -1)], -1)


def _complex_mul(put: Put, a: Complex | Operand, b: Complex | Operand) -> Complex:
    def product(x: Value, y: Value) -> Value:
        return put(elementwise.MUL, x, y)

    if isinstance(a, Complex) and isinstance(b, Complex):
        real = put(elementwise.SUB, product(a.real, b.real), product(a.imaginary, b.imaginary))
        return Complex(real, put(elementwise.ADD, product(a.imaginary, b.real), product(a.real, b.imaginary)))
    z, factor = (a, b) if isinstance(a, Complex) else (b, a)
    if not isinstance(z, Complex) or isinstance(factor, Complex | complex):
        raise Unsupported("a product with a complex number")
    multiply = TABLE["aten.mul.Tensor"]
    return Complex(multiply(put, z.real, factor), multiply(put, z.imaginary, factor))


def _complex_to(put: Put, z: Complex, *_: Any, **__: Any) -> Complex:
    return z


# Calls on complex tensors that are more than the same call on both parts.
COMPLEX: Mapping[str, Handler] = {
    "aten.view_as_real.default": _view_as_real,
    "aten.mul.Tensor": _complex_mul,
    **dict.fromkeys((f"aten.to.{overload}" for overload in ("dtype", "device", "dtype_layout")), _complex_to),
    "aten._to_copy.default": _complex_to,
}
# Calls that move elements or add them up, whatever their kind.
PARTWISE = tuple("view reshape unsqueeze transpose permute expand slice select clone alias add sub".split())

TABLE: Mapping[str, Handler] = {
    **aten_math.TABLE,
    **aten_shape.TABLE,
    **aten_reduce.TABLE,
    **aten_make.TABLE,
    "aten.linear.default": _linear,
    **dict.fromkeys(("aten.matmul.default", "aten.mm.default", "aten.bmm.default"), _matmul),
    "aten.addmm.default": _addmm,
    "aten._grouped_mm.default": _grouped_mm,
    "transformers.grouped_mm_fallback.default": _grouped_mm,
    "aten.scaled_dot_product_attention.default": _sdpa,
    "aten.embedding.default": lambda put, weight, ids, *_: put(index.TAKE, weight, ids, axis=0),
    "aten.index_select.default": lambda put, x, axis, places: put(
        index.TAKE, x, places, axis=axis_of(x, axis)
    ),
    "aten.index.Tensor": _index,
    "aten.index_put.default": _index_put,
    "aten.gather.default": lambda put, x, axis, places: put(
        index.GATHER_ALONG, x, places, axis=axis_of(x, axis)
    ),
    **dict.fromkeys(("aten.scatter.value", "aten.scatter.src"), _scatter),
    "aten.histc.default": _histogram,
    "aten.polar.default": _polar,
    "aten.view_as_complex.default": _view_as_complex,
    "moec.append.default": lambda put, *xs: put(cache.APPEND, *xs),
    "moec.filled.default": lambda put, *xs: put(cache.FILLED, *xs),
    "moec.causal_mask.default": lambda put, *xs: put(cache.CAUSAL_MASK, *xs),
    "moec.positions.default": lambda put, *xs: put(cache.POSITIONS, *xs),
}


def call(put: Put, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a call to an ATen op is: a Value, a tuple of them, or a Complex.

    Raises Unsupported where it has no spelling in our ops.
    """
    if any(isinstance(arg, Complex) for arg in args):
        return _complex_call(put, name, args, kwargs)
    if name not in TABLE:
        raise Unsupported("no op of ours does this")
    try:
        return TABLE[name](put, *args, **kwargs)
    except TypeMismatch:
        raise
    except TypeError as error:
        raise Unsupported(f"it is not known with these arguments ({error})") from None


def _complex_call(put: Put, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if name in COMPLEX:
        return COMPLEX[name](put, *args, **kwargs)
    if name.split(".")[1] not in PARTWISE:
        raise Unsupported("on complex numbers it is not known; use real arithmetic")
    real = [arg.real if isinstance(arg, Complex) else arg for arg in args]
    imaginary = [arg.imaginary if isinstance(arg, Complex) else arg for arg in args]
    return Complex(TABLE[name](put, *real, **kwargs), TABLE[name](put, *imaginary, **kwargs))
