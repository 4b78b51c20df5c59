"""Tokens that nobody asks for are not computed.

B batch, T new tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from ..compiler.ir import Graph, Miss, Node, Op, Value, make, renew
from ..compiler.ops import elementwise
from ..compiler.ops.dense import LINEAR
from ..compiler.ops.norm import RMS_NORM
from ..compiler.ops.shape import SLICE
from .layout import is_weight
from .match import number
from .partition import Users

ALIKE: tuple[Op, ...] = tuple(op for op in vars(elementwise).values() if isinstance(op, Op))


def take_rows_first(graph: Graph, misses: list[Miss]) -> Graph:
    """Some rows of what is computed row by row are computed of these rows.

    before   linear(rms_norm(x_BTH, w_H), w_VH)[:, T-1:]        which nobody else reads
    after    linear(rms_norm(x_BTH[:, T-1:], w_H), w_VH)
    """
    users = graph.users()
    moved: dict[Value, Value] = {}
    for node in graph:
        if node.op is SLICE and node.attrs["axis"] < node.types[0].rank - 1:
            early = part_of(node.inputs[0], node, users, graph.outputs)
            if early != node[0]:
                moved[node[0]] = early
    return graph.replace(moved) if moved else graph


def part_of(x: Value, cut: Node, users: Users, outputs: tuple[Value, ...]) -> Value:
    """What `cut` leaves of x, cut as early as it can be."""
    alone = x not in outputs and len(users.get(x, ())) == 1
    if alone and is_rowwise(x.node):
        rows, *others = x.node.inputs
        return renew(x.node, (part_of(rows, cut, users, outputs), *others))[0]
    return make(SLICE, x, origin=cut.origin, **cut.attrs)[0]


def is_rowwise(node: Node) -> bool:
    """Whether each row of the result depends on that row of the first operand alone, along any axis but the
    last: what else is read are weights for the last axis, or numbers.
    """
    if not node.inputs or node.inputs[0].shape[:-1] != node.types[0].shape[:-1]:
        return False
    rows, *others = node.inputs
    if node.op in (LINEAR, RMS_NORM):
        return all(map(is_weight, others))
    return (
        node.op in ALIKE and rows.shape == node.types[0].shape and all(number(v) is not None for v in others)
    )
