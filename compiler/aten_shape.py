"""What ATen's ops on shapes, and those that make tensors, are in our ops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import sympy

from .aten_math import (
    TORCH_DTYPES,
    Handler,
    Put,
    Unsupported,
    as_dtype,
    axis_of,
    cast,
    promoted,
)
from .ir import Dim, Value, plain
from .ops import shape

END = 1 << 62  # torch writes 2^63 - 1 for "to the end"


def reshape(put: Put, x: Value, sizes: Sequence[Dim]) -> Value:
    """x in another shape, of which one size may be -1; itself where it has that shape."""
    known = [plain(size) for size in sizes]
    if -1 in known:
        known[known.index(-1)] = _rest(x.shape, [size for size in known if size != -1])
    return x if tuple(known) == x.shape else put(shape.RESHAPE, x, shape=tuple(known))


def _rest(all_sizes: Sequence[Dim], some: Sequence[Dim]) -> Dim:
    """The product of the sizes over that of some; equal ones cancel first, which keeps the algebra small."""
    above, below = Counter(all_sizes), Counter(some)
    top, bottom = (above - below).elements(), (below - above).elements()
    whole, part = (sympy.sympify(sympy.prod(list(sizes))) for sizes in (top, bottom))
    return plain(sympy.cancel(whole / part))


def transpose(put: Put, x: Value, perm: Sequence[int]) -> Value:
    """x with its axes in another order; itself where the order is the same."""
    order = tuple(axis_of(x, axis) for axis in perm)
    return x if order == tuple(range(x.type.rank)) else put(shape.TRANSPOSE, x, perm=order)


def expand(put: Put, x: Value, sizes: Sequence[Dim]) -> Value:
    """x repeated to a shape; -1 keeps a size."""
    own = (1,) * (len(sizes) - x.type.rank) + x.shape
    wanted = tuple(mine if plain(size) == -1 else plain(size) for mine, size in zip(own, sizes, strict=True))
    return x if wanted == x.shape else put(shape.EXPAND, x, shape=wanted)


def concat(put: Put, xs: Sequence[Value], axis: int = 0) -> Value:
    """The values one after the other along an axis."""
    axis = axis_of(xs[0], axis)
    return xs[0] if len(xs) == 1 else put(shape.CONCAT, *promoted(put, *xs), axis=axis)


def cut(put: Put, x: Value, axis: int, start: Dim, stop: Dim, step: int = 1) -> Value:
    """Places start..stop of an axis; looks through concatenations and filled tensors where the cut allows."""
    if (start, stop, step) == (0, x.shape[axis], 1):
        return x
    if (
        step == 1
        and x.op is shape.CONCAT
        and x.node.attrs["axis"] == axis
        and (parts := _parts(x, axis, start, stop))
    ):
        return concat(put, parts, axis)
    if x.op is shape.FULL and step == 1:
        sizes = (*x.shape[:axis], plain(stop - start), *x.shape[axis + 1 :])
        return put(shape.FULL, **{**x.node.attrs, "shape": sizes})
    return put(shape.SLICE, x, axis=axis, start=start, stop=stop, step=step)


def _parts(x: Value, axis: int, start: Dim, stop: Dim) -> list[Value]:
    """The operands of a concatenation that make up start..stop; none where the cut goes through one."""
    parts = x.node.inputs
    ends = [plain(end) for end in accumulate((part.shape[axis] for part in parts), initial=0)]
    return list(parts[ends.index(start) : ends.index(stop)]) if start in ends and stop in ends else []


def bounds(x: Value, axis: int, start: Dim | None, stop: Dim | None) -> tuple[Dim, Dim]:
    """A slice's ends as non-negative places within the axis, as Python reads them."""
    size = x.shape[axis]
    low, high = (_place(place, size) for place in (start or 0, END if stop is None else stop))
    return low, high


def _place(place: Dim, size: Dim) -> Dim:
    if isinstance(place, int):
        if place >= END:
            return size
        place = plain(place + size) if place < 0 else place
    if isinstance(place, int) and isinstance(size, int):
        return max(0, min(place, size))
    return place


def slice_(
    put: Put, x: Value, axis: int = 0, start: Dim | None = None, stop: Dim | None = None, step: int = 1
) -> Value:
    """x[..., start:stop:step, ...]."""
    axis = axis_of(x, axis)
    return cut(put, x, axis, *bounds(x, axis, start, stop), step)


def slice_scatter(
    put: Put,
    x: Value,
    source: Value,
    axis: int = 0,
    start: Dim | None = None,
    stop: Dim | None = None,
    step: int = 1,
) -> Value:
    """x with source in place of x[..., start:stop, ...]: a concatenation of what stays and what is new."""
    if step != 1:
        raise Unsupported(f"a write to every {step}th place; write whole ranges")
    axis = axis_of(x, axis)
    low, high = bounds(x, axis, start, stop)
    before, after = cut(put, x, axis, 0, low), cut(put, x, axis, high, x.shape[axis])
    middle = as_dtype(put, expand(put, source, cut(put, x, axis, low, high).shape), x.type.dtype)
    return concat(put, [part for part in (before, middle, after) if part.shape[axis] != 0], axis)


def select(put: Put, x: Value, axis: int, index: Dim) -> Value:
    """x[..., index, ...], without that axis."""
    axis = axis_of(x, axis)
    place = _place(index, x.shape[axis])
    row = cut(put, x, axis, place, plain(place + 1))
    return reshape(put, row, (*x.shape[:axis], *x.shape[axis + 1 :]))


def select_scatter(put: Put, x: Value, source: Value, axis: int, index: Dim) -> Value:
    """x with source in place of x[..., index, ...]."""
    axis = axis_of(x, axis)
    place = _place(index, x.shape[axis])
    return slice_scatter(put, x, unsqueeze(put, source, axis), axis, place, plain(place + 1))


def unsqueeze(put: Put, x: Value, axis: int) -> Value:
    axis = axis % (x.type.rank + 1)
    return reshape(put, x, (*x.shape[:axis], 1, *x.shape[axis:]))


def _squeeze(put: Put, x: Value, axes: int | Sequence[int] | None = None) -> Value:
    listed = range(x.type.rank) if axes is None else [axes] if isinstance(axes, int) else axes
    gone = [axis_of(x, axis) for axis in listed]
    return reshape(put, x, [size for axis, size in enumerate(x.shape) if axis not in gone or size != 1])


def _flatten(put: Put, x: Value, start: int = 0, end: int = -1) -> Value:
    low, high = axis_of(x, start), axis_of(x, end)
    middle = plain(sympy.prod(x.shape[low : high + 1]))
    return reshape(put, x, (*x.shape[:low], middle, *x.shape[high + 1 :]))


def _unflatten(put: Put, x: Value, axis: int, sizes: Sequence[Dim]) -> Value:
    axis = axis_of(x, axis)
    return reshape(put, x, (*x.shape[:axis], *sizes, *x.shape[axis + 1 :]))


def _swap(put: Put, x: Value, first: int = 0, second: int = 1) -> Value:
    perm = list(range(x.type.rank))
    first, second = axis_of(x, first), axis_of(x, second)
    if perm:
        perm[first], perm[second] = second, first
    return transpose(put, x, perm)


def _split(put: Put, x: Value, sizes: Sequence[Dim], axis: int = 0) -> tuple[Value, ...]:
    axis = axis_of(x, axis)
    ends = [plain(end) for end in accumulate(sizes, initial=0)]
    return tuple(cut(put, x, axis, low, high) for low, high in pairwise(ends))


def _split_every(put: Put, x: Value, size: int, axis: int = 0) -> tuple[Value, ...]:
    total = _fixed(x, axis)
    return _split(put, x, [min(size, total - start) for start in range(0, total, size)], axis)


def _chunk(put: Put, x: Value, count: int, axis: int = 0) -> tuple[Value, ...]:
    return _split_every(put, x, -(-_fixed(x, axis) // count), axis)


def _unbind(put: Put, x: Value, axis: int = 0) -> tuple[Value, ...]:
    return tuple(select(put, x, axis, index) for index in range(_fixed(x, axis)))


def _fixed(x: Value, axis: int) -> int:
    size = x.shape[axis_of(x, axis)]
    if not isinstance(size, int):
        raise Unsupported(f"an axis of {size} is split into equal parts; only fixed sizes can be")
    return size


def _stack(put: Put, xs: Sequence[Value], axis: int = 0) -> Value:
    return concat(put, [unsqueeze(put, x, axis) for x in xs], axis % (xs[0].type.rank + 1))


def _repeat(put: Put, x: Value, times: Sequence[Dim]) -> Value:
    own = (1,) * (len(times) - x.type.rank) + x.shape
    paired = [size for pair in zip(times, own) for size in pair]
    spread = reshape(put, x, [size for own_size in own for size in (1, own_size)])
    return reshape(put, expand(put, spread, paired), [plain(t * size) for t, size in zip(times, own)])


def _repeat_each(put: Put, x: Value, times: int, dim: int | None = None, **_: Any) -> Value:
    if dim is None:
        return _repeat_each(put, reshape(put, x, [-1]), times, 0)
    axis = axis_of(x, dim)
    before, after = x.shape[: axis + 1], x.shape[axis + 1 :]
    spread = expand(put, reshape(put, x, (*before, 1, *after)), (*before, times, *after))
    return reshape(put, spread, (*before[:-1], plain(before[-1] * times), *after))


def _to(put: Put, x: Value, *args: Any, dtype: Any = None, **_: Any) -> Value:
    """Any of the spellings of a conversion; devices, layouts and copies mean nothing here."""
    wanted = next((arg for arg in args if str(arg) in TORCH_DTYPES), dtype)
    return x if wanted is None else cast(put, x, wanted)


def _same_value(put: Put, x: Value, *_: Any, **__: Any) -> Value:
    return x


TABLE: Mapping[str, Handler] = {
    **dict.fromkeys(("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default"), reshape),
    **dict.fromkeys(
        (f"aten.{n}.default" for n in ("clone", "alias", "contiguous", "detach", "lift_fresh_copy")),
        _same_value,
    ),
    **dict.fromkeys((f"aten.to.{overload}" for overload in ("dtype", "device", "dtype_layout")), _to),
    **dict.fromkeys(("aten.transpose.int", "aten.t.default", "aten.numpy_T.default"), _swap),
    **dict.fromkeys(("aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims"), _squeeze),
    **dict.fromkeys(("aten.split_with_sizes.default", "aten.split.sizes"), _split),
    "aten._to_copy.default": _to,
    "aten.to.other": lambda put, x, other, *_: as_dtype(put, x, other.type.dtype),
    "aten.slice.Tensor": slice_,
    "aten.type_as.default": lambda put, x, other: as_dtype(put, x, other.type.dtype),
    "aten.narrow.default": lambda put, x, axis, start, length: slice_(
        put, x, axis, start, plain(start + length)
    ),
    "aten.permute.default": transpose,
    "aten.expand.default": lambda put, x, sizes, implicit=False: expand(put, x, sizes),
    "aten.expand_as.default": lambda put, x, other: expand(put, x, other.shape),
    "aten.copy.default": lambda put, x, source, *_: as_dtype(put, expand(put, source, x.shape), x.type.dtype),
    "aten.slice_scatter.default": slice_scatter,
    "aten.select.int": select,
    "aten.select_scatter.default": select_scatter,
    "aten.unsqueeze.default": unsqueeze,
    "aten.flatten.using_ints": _flatten,
    "aten.unflatten.int": _unflatten,
    "aten.split.Tensor": _split_every,
    "aten.chunk.default": _chunk,
    "aten.unbind.int": _unbind,
    "aten.cat.default": concat,
    "aten.stack.default": _stack,
    "aten.repeat.default": _repeat,
    "aten.repeat_interleave.self_int": _repeat_each,
}
