"""Which rows of a cache hold real tokens, worked out once for all layers.

B batch, T new tokens, S cached tokens, Z = S+T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..compiler.ir import Graph, Miss, Node, Value, make
from ..compiler.ops.cache import POSITIONS, SPAN
from ..compiler.ops.region import REGION, inline
from ..compiler.ops.shape import FULL
from ..compiler.ops.sources import INPUT, LITERAL
from .layout import entry
from .match import made_by

MAKES = (SPAN,)
ANGLES = "angles"  # the kind of region that has mask and ids first


def read_ids(graph: Graph, misses: list[Miss]) -> Graph:
    """Positions take the ids that the caller feeds, of which only the shape counts.

    before   positions(mask_BZ, full() i64_BT)
    after    positions(mask_BZ, input_ids_BT)
    """

    def step(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if node.op is not POSITIONS or not made_by(inputs[1], FULL):
            return None
        fed = [value for value in graph.inputs if value.type == inputs[1].type]
        return (POSITIONS(inputs[0], fed[0], origin=node.origin),) if fed else None

    return graph.rewrite(step)


@dataclass(frozen=True, slots=True)
class AddSpans:
    """The pass: regions that read a mask of the cache also get its span.

    before   region[angles](mask_BZ, ids, f) -> cos, sin;            region[append](past, rows, mask)
    after    region[angles](mask_BZ, ids, f) -> cos, sin, span_B2;   region[append](past, rows, mask, span)

    places: by kind, where the span is among the operands, right after the mask. The bodies ignore it; what
    they say of the mask holds for the span. A mask that no angles are made of has its span computed alone.
    """

    places: Mapping[str, int]

    def __call__(self, graph: Graph, misses: list[Miss]) -> Graph:
        first = {node.inputs[0]: node for node in reversed(list(graph)) if is_angles(node)}
        giving = {node: with_span(node) for node in first.values()}
        spans = {mask: giving[node].values[-1] for mask, node in first.items()}

        def step(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
            kind = node.attrs["kind"] if node.op is REGION else ""
            if node in giving:
                return giving[node].values[:-1]
            if kind not in self.places:
                return None
            mask = inputs[self.places[kind] - 1]
            span = spans.get(mask) or SPAN(mask)
            return with_operand(node, inputs, self.places[kind], span)

        return graph.rewrite(step)


def is_angles(node: Node) -> bool:
    """Whether the node is a region that makes angles of what the caller feeds."""
    fed = all(made_by(value, INPUT, LITERAL) for value in node.inputs)
    return fed and node.op is REGION and node.attrs["kind"] == ANGLES


def with_span(angles: Node) -> Node:
    """The region with the span as its last result."""
    body: Graph = angles.attrs["body"]
    more = Graph(body.inputs, (*body.outputs, SPAN(body.inputs[0])))
    return make(REGION, *angles.inputs, kind=ANGLES, body=more, origin=angles.origin)


def with_operand(node: Node, inputs: Sequence[Value], place: int, value: Value) -> Sequence[Value]:
    """The region with one more operand, which its body does not read."""
    operands = (*inputs[:place], value, *inputs[place:])
    entries = [entry(i, operand) for i, operand in enumerate(operands)]
    results = inline(node.attrs["body"], [*entries[:place], *entries[place + 1 :]])
    body = Graph(tuple(entries), results)
    return make(REGION, *operands, kind=node.attrs["kind"], body=body, origin=node.origin).values
