"""Rows of tokens read in the shape they have.

M = B*T tokens, H hidden, E experts.
"""

from __future__ import annotations

from ..compiler.ir import Graph, Miss, Node, Value, renew
from ..compiler.ops.dense import LINEAR
from ..compiler.ops.routing import GROUPED_MATMUL, TOP_K_GATE
from ..compiler.ops.shape import RESHAPE
from .match import made_by, operands


def drop_flattening(graph: Graph, misses: list[Miss]) -> Graph:
    """What takes tokens of any rank takes them as they are.

    before   flat_MH = reshape(x_BTH);  top_k_gate(linear(flat, w_EH));  grouped_matmul(flat, ...)
    after    top_k_gate(linear(x_BTH, w_EH));  grouped_matmul(x_BTH, ...)
    """

    def step(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
        if node.op not in (TOP_K_GATE, GROUPED_MATMUL):
            return None
        x = unflattened(inputs[0])
        if node.op is TOP_K_GATE and made_by(x, LINEAR):
            rows, *weights = x.node.inputs
            x = LINEAR(unflattened(rows), *weights, origin=x.node.origin)
        return renew(node, (x, *inputs[1:])).values

    return graph.rewrite(step)


def unflattened(rows: Value) -> Value:
    """What the same rows, along the last axis, lie in before they are reshaped."""
    while inner := operands(rows, RESHAPE):
        if inner[0].type.rank < 2 or inner[0].shape[-1] != rows.shape[-1]:
            break
        rows = inner[0]
    return rows
