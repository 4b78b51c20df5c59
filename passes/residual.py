"""Put additions where a kernel can finish with them.

M tokens of B sequences of T, H hidden.
"""

from __future__ import annotations

from ..compiler.ir import Graph, Miss, Node, Value
from ..compiler.ops.elementwise import ADD
from ..compiler.ops.routing import COMBINE
from ..compiler.ops.shape import RESHAPE
from .fold import simplest
from .match import made_by, orders, peel

# The base of a sum is brought to rows of tokens.
MAKES = (RESHAPE,)


def gather_residuals(graph: Graph, misses: list[Miss]) -> Graph:
    """All that is added to routed experts becomes one base, so that their last kernel adds it.

        before   routed_BTH = reshape(combine_MH(...));  residual_BTH + (routed + shared_BTH)
        after    reshape(combine(...) + reshape(shared + residual))

    The inner sum is the shared experts' own last product plus a residual, which its kernel adds.
    """
    users = graph.users()

    def step(node: Node, inputs: tuple[Value, ...]) -> list[Value] | None:
        if node.op is not ADD:
            return None
        for i, value in enumerate(node.inputs):
            alone = len(users[value]) == 1 and value not in graph.outputs
            if alone and (total := based(inputs[i], inputs[1 - i], node)) is not None:
                return [total]
        return None

    return graph.rewrite(step)


def based(routed: Value, base: Value, node: Node) -> Value | None:
    """The sum of both with all bases in one; None where the first is not made of routed experts."""
    inner = peel(routed, RESHAPE)
    if routed.type != node.types[0] or base.type != node.types[0]:
        return None
    for combined, more in orders(inner, ADD):
        if made_by(combined, COMBINE):
            more = simplest(RESHAPE(more, shape=base.shape, origin=node.origin))
            return placed(combined, ADD(more, base, origin=node.origin), node)
    return placed(inner, base, node) if made_by(inner, COMBINE) else None


def placed(combined: Value, base: Value, node: Node) -> Value:
    """combined + base, in the shape that the node has."""
    total = ADD(combined, RESHAPE(base, shape=combined.shape, origin=node.origin), origin=node.origin)
    return RESHAPE(total, shape=node.types[0].shape, origin=node.origin)
