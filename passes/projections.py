"""Several projections of one input as one product.

B batch, T tokens, H hidden, Q and W widths of two projections.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from ..compiler.ir import Graph, Miss, Node, Value
from ..compiler.ops.dense import LINEAR
from ..compiler.ops.latent import LATENT_ATTENTION
from ..compiler.ops.routing import SWIGLU, TOP_K_GATE
from ..compiler.ops.shape import CONCAT, RESHAPE, SLICE
from .layout import is_weight

MAKES = (CONCAT,)


def merge_projections(graph: Graph, misses: list[Miss]) -> Graph:
    """Projections of one input become one product, cut apart after it.

        before   q_a_BTQ = linear(x_BTH, w_q);  kv_a_BTW = linear(x_BTH, w_kv)
        after    y_BT(Q+W) = linear(x, concat(w_q, w_kv));  q_a, kv_a = slices of y

    A product that another kernel finishes or reads whole (gate, swiglu, attention) is better alone.
    """
    users = graph.users()
    replacements: dict[Value, Value] = {}
    for x, readers in users.items():
        siblings = [node for node in readers if mergeable(node, x) and not whole(node[0], users)]
        if len(siblings) > 1:
            replacements.update(merged(x, siblings))
    return graph.replace(replacements) if replacements else graph


def mergeable(node: Node, x: Value) -> bool:
    """Whether this is a plain f32 projection of x."""
    plain = node.op is LINEAR and len(node.inputs) == 2 and node.inputs[0] == x
    return plain and node.types[0].dtype == "f32" and is_weight(node.inputs[1])


def whole(value: Value, users: Mapping[Value, Iterable[Node]]) -> bool:
    """Whether something reads this product in a way that needs it alone."""
    return any(
        user.op in (TOP_K_GATE, SWIGLU, LATENT_ATTENTION) or (user.op is RESHAPE and whole(user[0], users))
        for user in users.get(value, ())
    )


def merged(x: Value, siblings: Sequence[Node]) -> dict[Value, Value]:
    """One product for all, and the slice of it that each was."""
    weights = [node.inputs[1] for node in siblings]
    product = LINEAR(x, CONCAT(*weights, axis=0), origin=siblings[0].origin)
    starts = [0]
    for w in weights:
        starts.append(starts[-1] + w.shape[0])
    axis = product.type.rank - 1
    return {
        node[0]: SLICE(product, axis=axis, start=start, stop=stop, origin=node.origin)
        for node, start, stop in zip(siblings, starts, starts[1:])
    }
