"""Finds the gated feed-forward of dense layers and shared experts.

H the width of x, I the width of the hidden layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from ..compiler.ir import Graph, Miss, Node, Value
from ..compiler.ops import dense, elementwise, shape
from ..compiler.ops.routing import SWIGLU
from .match import Near, fuse, last_slice, made_by, operands, orders

MAKES = (SWIGLU,)

Users = Mapping[Value, list[Node]]


def fuse_swiglu(graph: Graph, misses: list[Miss]) -> Graph:
    """Multiply by the gate and up weights at once, then gate with one op.

    silu(linear(x[..,H], Wg[I,H])) * linear(x, Wu[I,H])  ->  swiglu(linear(x, concat(Wg, Wu)))
    silu(h[..,:I]) * h[..,I:]                            ->  swiglu(h)
    """
    return fuse(graph, misses, (elementwise.MUL,), partial(_swiglu, graph.users()))


def gated(value: Value) -> tuple[Value, Value] | None:
    """(gate, up) where the value is silu(gate) * up."""
    for activated, up in orders(value, elementwise.MUL):
        if inside := operands(activated, elementwise.SILU):
            return inside[0], up
        for gate, opened in orders(activated, elementwise.MUL):
            if operands(opened, elementwise.SIGMOID) == (gate,):
                return gate, up
    return None


def halves_of(gate: Value, up: Value) -> Value | None:
    """The value whose first and second half along the last axis these are."""
    first, second = last_slice(gate), last_slice(up)
    if first is None or second is None or first[0] != second[0]:
        return None
    (source, *left), right = first, [*second[1:]]
    width = source.shape[-1]
    if not isinstance(width, int) or {(*left,), (*right,)} != {(0, width // 2, 1), (width // 2, width, 1)}:
        return None
    if left[0] != 0:
        raise Near("the second half is the gate, not the first")
    return source


def _swiglu(users: Users, node: Node) -> Mapping[Value, Value]:
    pair = gated(node[0])
    if pair is None:
        return {}
    merged = halves_of(*pair)
    if merged is None and all(made_by(half, dense.LINEAR) for half in pair):
        merged = _one_linear(users, *pair, node.origin)
    return {} if merged is None else {node[0]: SWIGLU(merged, origin=node.origin)}


def _one_linear(users: Users, gate: Value, up: Value, origin: str) -> Value:
    (x, *gate_weights), (other, *up_weights) = gate.node.inputs, up.node.inputs
    if x != other:
        raise Near("the gate and up projections read different tensors")
    if gate.type != up.type or len(gate_weights) != len(up_weights):
        raise Near(f"the gate projection {gate.node} and the up projection {up.node} are not alike")
    for name, half in (("gate", gate), ("up", up)):
        if sum(not made_by(user[0], elementwise.SIGMOID) for user in users.get(half, ())) > 1:
            raise Near(f"the {name} projection is used twice")
    weights = [shape.CONCAT(a, b, axis=0) for a, b in zip(gate_weights, up_weights)]
    return dense.LINEAR(x, *weights, origin=origin)
