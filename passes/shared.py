"""Puts the experts that all tokens share among those that a gate chooses from.

M tokens, E experts, k chosen by each token, s shared by all, R = M*k rows, H hidden, I expert width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from ..compiler.ir import Graph, Miss, Node, Value, make
from ..compiler.ops.dense import LINEAR
from ..compiler.ops.elementwise import ADD
from ..compiler.ops.routing import COMBINE, GROUPED_MATMUL, PERMUTE, SWIGLU, TOP_K_GATE
from ..compiler.ops.shape import CONCAT, RESHAPE, TRANSPOSE
from .fold import simplest
from .layout import is_weight
from .match import Near, fuse, made_by, need, operands, orders, peel

# Of the weights: the shared experts' behind the others'.
MAKES = (CONCAT,)

Users = Mapping[Value, list[Node]]


@dataclass(frozen=True, slots=True)
class _Routed:
    """combine(grouped_matmul(swiglu(grouped_matmul(x, gate_up)), down), w), all in the order of a gate."""

    x: Value
    gate: Node
    gate_up: Value
    down: Value

    @property
    def width(self) -> int:
        return int(self.down.shape[2])


@dataclass(frozen=True, slots=True)
class _Shared:
    """linear(swiglu(linear(x, gate_up)), down)."""

    x: Value
    gate_up: Value
    down: Value

    @property
    def width(self) -> int:
        return int(self.down.shape[1])


def join_shared(graph: Graph, misses: list[Miss]) -> Graph:
    """Shared experts become the last of the experts, which every token chooses with weight 1.

        before   ids, w = top_k_gate(logits);  routed = experts E of ids, combined by w;  I*s wide:
                 routed + (linear(swiglu(linear(x, Wgu)), Wd) + residual)
        after    ids, w = top_k_gate(logits; shared=s);  experts E+s of ids, combined by w, + residual

    Those have the others' width or a multiple of it. The same numbers are multiplied in two kernels less,
    which is worth most where tokens are few; from some 500 tokens on, adding to results once more per shared
    expert costs a few hundredths of the layer.
    """
    return fuse(graph, misses, (ADD,), partial(_joined, graph.users()))


def _joined(users: Users, node: Node) -> Mapping[Value, Value]:
    for combined, base in orders(node[0], ADD):
        if not made_by(combined, COMBINE):
            continue
        for mlp, rest in _terms(base):
            if (shared := _shared(mlp)) and len(users[mlp]) == 1:
                total = _with(need(_routed(combined), _UNKNOWN), shared, node.origin)
                if rest is not None:
                    total = ADD(total, simplest(RESHAPE(rest, shape=total.shape)), origin=node.origin)
                return {node[0]: total}
    return {}


_UNKNOWN = "the routed experts are not what a gate chose, so the shared ones can not be chosen with them"


def _terms(total: Value) -> Iterator[tuple[Value, Value | None]]:
    """Each term of a sum of at most two, in the shape it is computed in, and what else is in the sum."""
    inner = peel(total, RESHAPE)
    yield inner, None
    for term, rest in orders(inner, ADD):
        if term.type == rest.type == inner.type:
            yield peel(term, RESHAPE), rest


def _shared(value: Value) -> _Shared | None:
    """The gated feed-forward that the value is."""
    if not made_by(value, LINEAR) or len(value.node.inputs) != 2:
        return None
    hidden, down = value.node.inputs
    product = operands(hidden, SWIGLU)
    if not product or not made_by(product[0], LINEAR) or len(product[0].node.inputs) != 2:
        return None
    x, gate_up = product[0].node.inputs
    return _Shared(x, gate_up, down) if is_weight(gate_up) and is_weight(down) else None


def _routed(combined: Value) -> _Routed | None:
    """The experts that are combined, where a gate chose them."""
    y, order, weights = combined.node.inputs
    hidden, *sorting, down = operands(y, GROUPED_MATMUL) or (y, y)
    product = operands(hidden, SWIGLU)
    if not product or not made_by(product[0], GROUPED_MATMUL):
        return None
    x, *again, gate_up = product[0].node.inputs
    permute, gate = order.node, weights.node
    whole = again == sorting == [*permute.values] and permute.op is PERMUTE and gate.op is TOP_K_GATE
    if not whole or permute.inputs != (gate[0],) or weights != gate[1]:
        return None
    return _Routed(x, gate, gate_up, down) if is_weight(gate_up) and is_weight(down) else None


def _with(routed: _Routed, shared: _Shared, origin: str) -> Value:
    """All experts combined."""
    if peel(routed.x, RESHAPE) != peel(shared.x, RESHAPE):
        raise Near("shared and routed experts read different tensors")
    if shared.width % routed.width:
        raise Near(
            f"shared experts of width {shared.width} are no multiple of routed ones of {routed.width}, "
            "so they have kernels of their own"
        )
    count, experts = shared.width // routed.width, int(routed.down.shape[0])
    attrs = dict(routed.gate.attrs)
    attrs["shared"] += count
    ids, weights = make(TOP_K_GATE, *routed.gate.inputs, origin=routed.gate.origin, **attrs).values
    order, ends = make(PERMUTE, ids, experts=experts + count, origin=origin).values
    gate_up, down = _weights(routed, shared, count, origin)
    h = GROUPED_MATMUL(routed.x, order, ends, gate_up, share=int(ids.shape[1]), origin=origin)
    y = GROUPED_MATMUL(SWIGLU(h, origin=origin), order, ends, down, share=0, origin=origin)
    return COMBINE(y, order, weights, origin=origin)


def _weights(routed: _Routed, shared: _Shared, count: int, origin: str) -> tuple[Value, Value]:
    """Gate and up [E+s,2I,H] and down [E+s,H,I]: expert j has hidden columns jI .. (j+1)I of the shared."""
    width, hidden = routed.width, shared.gate_up.shape[1]
    halves = TRANSPOSE(RESHAPE(shared.gate_up, shape=(2, count, width, hidden)), perm=(1, 0, 2, 3))
    gate_up = RESHAPE(halves, shape=(count, 2 * width, hidden))
    parts = RESHAPE(shared.down, shape=(shared.down.shape[0], count, width))
    down = TRANSPOSE(parts, perm=(1, 0, 2))
    pairs = ((routed.gate_up, gate_up), (routed.down, down))
    all_gate_up, all_down = (CONCAT(*pair, axis=0, origin=origin) for pair in pairs)
    return all_gate_up, all_down
