"""Finds RMSNorm and rotary position embedding in plain arithmetic.

B batch, T tokens, N heads, n the normed width, r the rotated width of a head, f = r/2 angles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..compiler.ir import Graph, Miss, Node, Value, make
from ..compiler.ops import elementwise, reduce, shape
from ..compiler.ops.norm import RMS_NORM, ROTARY
from .columns import columns, views
from .match import Near, fuse, last_slice, made_by, number, operands, orders, over_last, peel

MAKES = (RMS_NORM, ROTARY)

Halves = tuple[Value, Value]


def fuse_rms_norm(graph: Graph, misses: list[Miss]) -> Graph:
    """Make one op of a root-mean-square normalisation, its three factors in any order and with casts between.

    w[n] * (x[..,n] * rsqrt(mean(x^2, last) + eps))  ->  rms_norm(x, w; eps)
    """
    return fuse(graph, misses, (elementwise.MUL, elementwise.DIV), _rms_norm)


def _rms_norm(node: Node) -> Mapping[Value, Value]:
    for first, second, scale in _three_factors(node[0]):
        found = _inverse_rms(scale)
        if found is None:
            continue
        x, eps = found
        for same, weight in ((first, second), (second, first)):
            if peel(same, elementwise.CAST) == x:
                return {node[0]: _rms_norm_of(node, same, weight, eps)}
    return {}


def _rms_norm_of(node: Node, x: Value, weight: Value, eps: float) -> Value:
    dtype = node[0].type.dtype
    x, weight = (_in_dtype(value, dtype) for value in (x, weight))
    if weight.shape != x.shape[-1:]:
        raise Near(f"an RMS norm of {x.type} is scaled by {weight.type}, not by one weight for each column")
    return RMS_NORM(x, weight, eps=eps, origin=node.origin)


def _in_dtype(value: Value, dtype: str) -> Value:
    source = peel(value, elementwise.CAST)
    for candidate in (source, value):
        if candidate.type.dtype == dtype:
            return candidate
    raise Near(f"an RMS norm mixes {source.type.dtype} and {dtype}")


def _three_factors(value: Value) -> Iterator[tuple[Value, Value, Value]]:
    """A product's three factors, each of those that may be the inverse root once in the last place."""
    for a, b in _two_factors(value):
        for c, d in _two_factors(peel(b, elementwise.CAST)):
            yield a, c, d
            yield d, c, a


def _two_factors(value: Value) -> Iterator[Halves]:
    if quotient := operands(value, elementwise.DIV):
        x, root = quotient
        if made_by(root, elementwise.SQRT):
            inverse = elementwise.RSQRT(*root.node.inputs)
            yield x, inverse
            yield inverse, x
    yield from orders(value, elementwise.MUL)


def _inverse_rms(value: Value) -> tuple[Value, float] | None:
    """(x, eps) where the value is rsqrt(mean(x^2) + eps) along the last axis."""
    total = _under_root(peel(value, elementwise.CAST))
    if total is None:
        return None
    sums = [(mean, number(eps)) for mean, eps in orders(total, elementwise.ADD)] or [(total, 0.0)]
    for mean, eps in sums:
        squares = _averaged(peel(mean, elementwise.CAST, shape.RESHAPE))
        if squares is None or eps is None or (x := _squared(squares)) is None:
            continue
        if value.shape != (*x.shape[:-1], 1):
            raise Near(f"squares of {x.type} are averaged to {value.type}, not along the last axis alone")
        return peel(x, elementwise.CAST), eps
    return None


def _under_root(value: Value) -> Value | None:
    if inside := operands(value, elementwise.RSQRT):
        return inside[0]
    if (power := operands(value, elementwise.POW)) and number(power[1]) == -0.5:
        return power[0]
    return None


def _averaged(value: Value) -> Value | None:
    if inside := operands(value, reduce.MEAN):
        return inside[0]
    if quotient := operands(value, elementwise.DIV):
        total, count = quotient
        if (inside := operands(total, reduce.SUM)) and number(count) == inside[0].shape[-1]:
            return inside[0]
    return None


def _squared(value: Value) -> Value | None:
    if (power := operands(value, elementwise.POW)) and number(power[1]) == 2:
        return power[0]
    if (pair := operands(value, elementwise.MUL)) and pair[0] == pair[1]:
        return pair[0]
    return None


def fuse_rotary(graph: Graph, misses: list[Miss]) -> Graph:
    """Make one op of a rotation of pairs, however the pairs lie in x and in the result.

    concat(x1*c - x2*s, x2*c + x1*s), x1 and x2 every other column of x   pairs are neighbours, then in halves
    the same two as neighbours (what a complex product leaves)            neighbours, before and after
    x*[c|c] + concat(-x2, x1)*[s|s], x1 and x2 the halves of x            in halves, before and after

    each  ->  rotary(x[..,r], c[..,f], s[..,f]; pairs_in, pairs_out)
    """
    return fuse(graph, misses, (shape.CONCAT, shape.RESHAPE, elementwise.ADD), _rotary)


def _rotary(node: Node) -> Mapping[Value, Value]:
    turned = [(_whole(node[0]), "halves"), *((_apart(*parts), pairs) for parts, pairs in _joined(node[0]))]
    for found, pairs_out in turned:
        if found is None:
            continue
        x, pairs_in, cos, sin = found
        if x.type != node[0].type:
            raise Near(f"a rotation takes {x.type} and gives {node[0].type}")
        pairs = {"pairs_in": pairs_in, "pairs_out": pairs_out}
        return {node[0]: ROTARY(x, _narrow(cos), _narrow(sin), origin=node.origin, **pairs)}
    return {}


def _whole(value: Value) -> tuple[Value, str, Value, Value] | None:
    """x*cos + concat(-x2, x1)*sin, where x1 and x2 are the halves of x."""
    for plain, crossed in orders(value, elementwise.ADD):
        for turned, sin in orders(crossed, elementwise.MUL):
            parts = operands(turned, shape.CONCAT)
            if len(parts) != 2 or not made_by(parts[0], elementwise.NEG) or not over_last(turned.node):
                continue
            (second,), first = parts[0].node.inputs, parts[1]
            for x, cos in orders(plain, elementwise.MUL):
                if found := _pairs(first, second, x):
                    halves = _half(cos), _half(sin)
                    if halves[0] is None or halves[1] is None:
                        raise Near("a rotation's cos and sin are not two equal halves")
                    return *found, halves[0], halves[1]
    return None


def _joined(value: Value) -> Iterator[tuple[Halves, str]]:
    """The two halves, or the two members of every pair, that the value is put together from."""
    parts = operands(value, shape.CONCAT)
    if len(parts) == 2 and over_last(value.node):
        yield (parts[0], parts[1]), "halves"
    (stacked,) = operands(value, shape.RESHAPE) or (value,)
    columns = operands(stacked, shape.CONCAT)
    if len(columns) == 2 and stacked.shape == (*value.shape[:-1], value.shape[-1] // 2, 2):
        first, second = (peel(column, shape.RESHAPE) for column in columns)
        yield (first, second), "interleaved"


def _apart(first: Value, second: Value) -> tuple[Value, str, Value, Value] | None:
    """x1*cos - x2*sin and x2*cos + x1*sin; which factor is x shows in where x1 and x2 come from."""
    difference = operands(first, elementwise.SUB)
    if not difference or not made_by(second, elementwise.ADD):
        return None
    for x1, cos in orders(difference[0], elementwise.MUL):
        for x2, sin in orders(difference[1], elementwise.MUL):
            if not _is_sum_of(second, {x2, cos}, {x1, sin}):
                continue
            if found := _pairs(x1, x2):
                return *found, cos, sin
    return None


def _is_sum_of(value: Value, first: set[Value], second: set[Value]) -> bool:
    products = [set(operands(term, elementwise.MUL)) for term in value.node.inputs]
    return products in ([first, second], [second, first])


def _pairs(x1: Value, x2: Value, whole: Value | None = None) -> tuple[Value, str] | None:
    """(x, how its pairs lie) where x1 and x2 are the members of all pairs of x, and `whole` is x1 then x2."""
    found = None
    for x in views(x1):
        width = x.shape[-1]
        first, second = columns(x1, x), columns(x2, x)
        if not isinstance(width, int) or first is None or second is None:
            continue
        if whole is not None and not _equal(columns(whole, x), np.concatenate((first, second))):
            continue
        if _equal(first, np.arange(0, width, 2)) and _equal(second, np.arange(1, width, 2)):
            found = x, "interleaved"
        elif _equal(first, np.arange(width // 2)) and _equal(second, np.arange(width // 2, width)):
            found = x, "halves"
    return found


def _equal(a: Any, b: Any) -> bool:
    return a is not None and a.shape == b.shape and bool((a == b).all())


def _half(value: Value) -> Value | None:
    """The left half of columns whose right half repeats them, worked out from what was repeated."""
    node, operand = value.node, value.node.inputs[0] if value.node.inputs else value
    if made_by(value, shape.CONCAT):
        return operand if over_last(node) and node.inputs == (operand, operand) else None
    if made_by(value, shape.RESHAPE, shape.EXPAND):
        half = _half(operand) if operand.shape[-1:] == value.shape[-1:] else None
        return half and node.op(half, shape=(*value.shape[:-1], half.shape[-1]), origin=node.origin)
    if made_by(value, elementwise.COS, elementwise.SIN, elementwise.CAST):
        half = _half(operand)
    elif made_by(value, elementwise.MUL) and number(node.inputs[1]) is not None:
        half = _half(operand)
    else:
        return None
    return half and make(node.op, half, *node.inputs[1:], origin=node.origin, **node.attrs)[0]


def _narrow(value: Value) -> Value:
    """The same numbers, without computing a repeated half to slice it off again."""
    inner = value.node.inputs[0] if made_by(value, shape.RESHAPE) else value
    cut = last_slice(inner)
    if cut is None or cut[1:] != (0, cut[0].shape[-1] // 2, 1) or (half := _half(cut[0])) is None:
        return value
    return half if inner is value else shape.RESHAPE(half, shape=value.shape)
