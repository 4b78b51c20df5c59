"""Take away what changes nothing: moves that cancel, slices of what was joined, arithmetic on literals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np

from ..compiler.ir import DTYPES, Dim, Graph, Miss, Node, Op, Value, plain, renew
from ..compiler.ops import elementwise, shape
from ..compiler.ops.sources import array_of, literal_of
from .match import made_by, number, operands

# Literals of more elements are left as the expressions they are.
LARGEST = 4096

UNARY = (elementwise.NEG, elementwise.COS, elementwise.SIN, elementwise.EXP, elementwise.CAST)
INTEGRAL = (elementwise.FLOOR_DIVIDE, elementwise.MAXIMUM, elementwise.MINIMUM)
BINARY = (elementwise.ADD, elementwise.SUB, elementwise.MUL, elementwise.DIV, elementwise.POW)

# The right operand that leaves the left as it is; where operands may change places, also the other way round.
NEUTRAL: Mapping[Op, int] = dict(zip(BINARY, (0, 0, 1, 1, 1)))
COMMUTES = (elementwise.ADD, elementwise.MUL)

# Dtypes that hold every number of the dtype exactly.
HOLDS = {"bf16": ("f32", "f64"), "f16": ("f32", "f64"), "f32": ("f64",), "i32": ("i64",), "bool": ("i64",)}

Rule = Callable[[Node], Value | None]


def fold(graph: Graph, misses: list[Miss]) -> Graph:
    """The same numbers of the same types from fewer nodes.

    reshape(reshape(x)) -> reshape(x)        transpose(transpose(x)) -> x       slice(concat(a, b)) -> a
    slice(cos(concat(a, b))) -> cos(a)       slice(slice(x)) -> slice(x)        concat(slices of x) -> x
    reshape, slice, cast, expand, +0, *1 that change nothing -> x               2 + 3 -> 5
    """
    return graph.rewrite(lambda node, inputs: [simplest(value) for value in renew(node, inputs).values])


def simplest(value: Value) -> Value:
    """What is left of the value when no rule applies any more."""
    for rule in RULES.get(value.op.name, ()):
        if (simpler := rule(value.node)) is not None:
            return simplest(simpler)
    return value


def literal(node: Node) -> Value | None:
    """Arithmetic on literals, where its result has no rounding error that more precision would take away."""
    arrays = [array_of(value) for value in node.inputs]
    result = node.types[0]
    known = [array for array in arrays if array is not None]
    if len(known) < len(arrays) or any(not isinstance(size, int) for size in result.shape):
        return None
    if math.prod(int(size) for size in result.shape) > LARGEST:
        return None
    wide = [array.astype(np.float64) if array.dtype.kind not in "iub" else array for array in known]
    with np.errstate(all="ignore"):
        exact = np.asarray(node.op.reference(*wide, **node.attrs))
    rounded = exact.astype(DTYPES[result.dtype])
    return literal_of(rounded) if np.array_equal(rounded.astype(exact.dtype), exact) else None


def unchanged(node: Node) -> Value | None:
    """A reshape, expand, slice or cast to what the operand is already; a concat of one."""
    x = node.inputs[0]
    return x if x.type == node.types[0] and len(node.inputs) == 1 else None


def repeated(node: Node) -> Value | None:
    """reshape(reshape(x)) and expand(expand(x)): the last one says it all."""
    inner = operands(node.inputs[0], node.op)
    return node.op(*inner, origin=node.origin, **node.attrs) if inner else None


def recast(node: Node) -> Value | None:
    """A cast back to what the number was before it was cast to a wider dtype."""
    wider = node.inputs[0]
    x = operands(wider, elementwise.CAST)
    back = x and x[0].type == node.types[0] and wider.type.dtype in HOLDS.get(x[0].type.dtype, ())
    return x[0] if back else None


def transposed(node: Node) -> Value | None:
    """Two transposes are one; one that only moves axes of size 1 is a reshape."""
    x, perm = node.inputs[0], node.attrs["perm"]
    if inner := operands(x, shape.TRANSPOSE):
        both = tuple(x.node.attrs["perm"][axis] for axis in perm)
        return shape.TRANSPOSE(*inner, perm=both, origin=node.origin)
    wide = [axis for axis in perm if x.shape[axis] != 1]
    return shape.RESHAPE(x, shape=node.types[0].shape, origin=node.origin) if wide == sorted(wide) else None


def cut(x: Value, axis: int, start: Dim, stop: Dim, origin: str = "") -> Value:
    """x[start:stop] along the axis, as simple as it can be had."""
    return simplest(shape.SLICE(x, axis=axis, start=start, stop=stop, origin=origin))


def slice_of_slice(node: Node) -> Value | None:
    """One slice along the same axis."""
    x, axis, start, stop = dense_slice(node)
    if x is None or not made_by(x, shape.SLICE):
        return None
    base, inner_axis, offset, _ = dense_slice(x.node)
    if base is None or inner_axis != axis:
        return None
    return cut(base, axis, plain(start + offset), plain(stop + offset), node.origin)


def slice_of_concat(node: Node) -> Value | None:
    """The pieces that the slice covers whole, or a slice of the one piece it lies in."""
    x, axis, start, stop = dense_slice(node)
    if x is None or not made_by(x, shape.CONCAT) or x.node.attrs["axis"] != axis:
        return None
    pieces = x.node.inputs
    ends = [plain(end) for end in accumulate(piece.shape[axis] for piece in pieces)]
    starts = [0, *ends[:-1]]
    if start in starts and stop in ends[starts.index(start) :]:
        whole = pieces[starts.index(start) : ends.index(stop) + 1]
        return shape.CONCAT(*whole, axis=axis, origin=node.origin)
    if not all(isinstance(bound, int) for bound in (start, stop, *ends)):
        return None
    inside = ((piece, at) for piece, at, end in zip(pieces, starts, ends) if at <= start and stop <= end)
    return next((cut(piece, axis, start - at, stop - at, node.origin) for piece, at in inside), None)


def slice_of_elementwise(node: Node) -> Value | None:
    """slice(f(x, y)) -> f(slice(x), slice(y)), where slicing x and y takes something away."""
    x, axis, start, stop = dense_slice(node)
    if x is None or not made_by(x, *UNARY, *BINARY):
        return None
    inputs = [part_of(operand, axis - x.type.rank, start, stop) for operand in x.node.inputs]
    if any(made_by(new, shape.SLICE) and new != old for new, old in zip(inputs, x.node.inputs)):
        return None
    return simplest(x.op(*inputs, origin=x.node.origin, **x.node.attrs))


def part_of(operand: Value, axis: int, start: Dim, stop: Dim) -> Value:
    """What a broadcast operand contributes to a slice; the axis is counted from the end."""
    if operand.type.rank < -axis or operand.shape[axis] == 1:
        return operand
    return cut(operand, operand.type.rank + axis, start, stop)


def dense_slice(node: Node) -> tuple[Value | None, int, Dim, Dim]:
    """(x, axis, start, stop) of a slice without gaps; None for x where it has some."""
    attrs = node.attrs
    return node.inputs[0] if attrs["step"] == 1 else None, attrs["axis"], attrs["start"], attrs["stop"]


def joined_slices(node: Node) -> Value | None:
    """Neighbouring slices of one value put together again."""
    axis = node.attrs["axis"]
    if not all(made_by(piece, shape.SLICE) for piece in node.inputs):
        return None
    cuts = [dense_slice(piece.node) for piece in node.inputs]
    base = cuts[0][0]
    fits = all(a[3] == b[2] for a, b in pairwise(cuts))
    if base is None or not fits or any((x, at) != (base, axis) for x, at, _, _ in cuts):
        return None
    return cut(base, axis, cuts[0][2], cuts[-1][3], node.origin)


def neutral(node: Node) -> Value | None:
    """x + 0, x - 0, x * 1, x / 1, x ** 1."""
    sides = [(0, 1), (1, 0)] if node.op in COMMUTES else [(0, 1)]
    for kept, other in sides:
        x = node.inputs[kept]
        if x.type == node.types[0] and number(node.inputs[other]) == NEUTRAL[node.op]:
            return x
    return None


def broadcast_anyway(node: Node) -> Value | None:
    """f(expand(x), y) -> f(x, y), where y is as large as the result."""
    for i, operand in enumerate(node.inputs):
        small = operands(operand, shape.EXPAND)
        if small and node.inputs[1 - i].shape == node.types[0].shape:
            inputs = tuple(small[0] if j == i else value for j, value in enumerate(node.inputs))
            return renew(node, inputs)[0]
    return None


def counted(node: Node) -> Value | None:
    """causal_mask and positions read no ids, only how many there are."""
    mask, ids = node.inputs
    blank = shape.FULL(shape=ids.shape, value=0, dtype=ids.type.dtype)
    return None if ids == blank else node.op(mask, blank, origin=node.origin)


RULES: Mapping[str, Sequence[Rule]] = {
    **{op.name: (literal,) for op in (*UNARY, *INTEGRAL)},
    **{op.name: (literal, neutral, broadcast_anyway) for op in BINARY},
    "causal_mask": (counted,),
    "positions": (counted,),
    "cast": (unchanged, literal, recast),
    "reshape": (unchanged, literal, repeated),
    "expand": (unchanged, repeated),
    "transpose": (literal, transposed),
    "concat": (unchanged, literal, joined_slices),
    "slice": (unchanged, literal, slice_of_slice, slice_of_concat, slice_of_elementwise),
}
