"""Several projections of one input as one product.

B batch, T tokens, H hidden, Q and W widths of two projections.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise

from ..compiler.ir import Graph, Miss, Node, Value
from ..compiler.ops.dense import LINEAR
from ..compiler.ops.latent import LATENT_ATTENTION
from ..compiler.ops.norm import RMS_NORM
from ..compiler.ops.shape import CONCAT, SLICE
from .layout import is_weight
from .match import last_slice

MAKES = (CONCAT,)

# Ops that a kernel gives columns of something wider for their first operand.
READ_COLUMNS = (RMS_NORM, LATENT_ATTENTION)


def merge_projections(graph: Graph, misses: list[Miss]) -> Graph:
    """Projections of one input become one product, where all that reads them can read columns of it.

        before   q_a_BTQ = linear(x_BTH, w_q);  kv_a_BTW = linear(x_BTH, w_kv)
        after    y_BT(Q+W) = linear(x, concat(w_q, w_kv));  q_a, kv_a = slices of y

    Elsewhere a copy of the columns would cost more than the second product's own start.
    """
    users = graph.users()
    replacements: dict[Value, Value] = {}
    for x, readers in users.items():
        siblings = [node for node in readers if projects(node, x) and read_by_columns(node[0], users)]
        if len(siblings) > 1:
            replacements.update(merged(x, siblings))
    return graph.replace(replacements) if replacements else graph


def projects(node: Node, x: Value) -> bool:
    """Whether this is a plain f32 projection of x."""
    plain = node.op is LINEAR and len(node.inputs) == 2 and node.inputs[0] == x
    return plain and node.types[0].dtype == "f32" and is_weight(node.inputs[1])


def read_by_columns(value: Value, users: Mapping[Value, Iterable[Node]]) -> bool:
    """Whether norms, slices and latent attention's queries are all that reads the value."""
    readers = list(users.get(value, ()))
    slices = [user for user in readers if last_slice(user[0]) is not None]
    others = [user for user in readers if user.op in READ_COLUMNS and user.inputs[0] == value]
    return 0 < len(readers) == len(slices) + len(others)


def merged(x: Value, siblings: Sequence[Node]) -> dict[Value, Value]:
    """One product for all, and the slice of it that each was."""
    weights = [node.inputs[1] for node in siblings]
    origin = siblings[0].origin.rpartition(".")[0]
    product = LINEAR(x, CONCAT(*weights, axis=0, origin=origin), origin=origin)
    bounds = pairwise(accumulate((w.shape[0] for w in weights), initial=0))
    axis = product.type.rank - 1
    return {
        node[0]: SLICE(product, axis=axis, start=start, stop=stop, origin=node.origin)
        for node, (start, stop) in zip(siblings, bounds)
    }
