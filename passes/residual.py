"""Put additions where a kernel can finish with them.

M tokens of B sequences of T, H hidden.
"""

from __future__ import annotations

from ..compiler.ir import Graph, Miss, Node, Value
from ..compiler.ops.elementwise import ADD
from ..compiler.ops.routing import COMBINE
from ..compiler.ops.shape import RESHAPE
from .match import made_by, orders, peel

# Every sum that is gathered is taken on rows of tokens, so one reshape more goes with it.
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
            if len(users[value]) == 1 and (sum_ := based(inputs[i], inputs[1 - i], node)) is not None:
                return [sum_]
        return None

    return graph.rewrite(step)


def based(routed: Value, base: Value, node: Node) -> Value | None:
    """The sum of both with all bases in one; None where the first is not made of routed experts."""
    inner = peel(routed, RESHAPE)
    for combined, more in orders(inner, ADD):
        if made_by(combined, COMBINE):
            return placed(combined, ADD(peel(more, RESHAPE), base, origin=node.origin), node)
    return placed(inner, base, node) if made_by(inner, COMBINE) and base.type == node.types[0] else None


def placed(combined: Value, base: Value, node: Node) -> Value:
    """combined + base, in the shape that the node has."""
    flat = base if base.shape == combined.shape else RESHAPE(base, shape=combined.shape)
    total = ADD(combined, flat, origin=node.origin)
    return total if total.shape == node.types[0].shape else RESHAPE(total, shape=node.types[0].shape)
