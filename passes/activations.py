"""Numbers between kernels in half the bytes: bf16, or f16 alike.

    before   region[linear](x f32, w) -> y f32
    after    region[linear](x bf16, w) -> y bf16      whose body is  bf16(linear(f32(x), w))

All arithmetic stays in f32, inside the bodies. What moves elements only, such as a transpose between two
regions, moves bf16. From here on the rounding at the borders is a part of what the graph means.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir import Graph, Miss, Node, Value, make, renew
from ..compiler.ops.elementwise import CAST
from ..compiler.ops.region import REGION, inline
from ..compiler.ops.shape import EXPAND, RESHAPE, SLICE, TRANSPOSE
from .layout import entry, is_weight
from .match import made_by

MAKES = (CAST,)
MOVES = (RESHAPE, TRANSPOSE, SLICE, EXPAND)  # ops that compute nothing
WIDE = "f32"

Places = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class NarrowActivations:
    """The pass: what regions hand to each other, as bf16 or another narrow dtype.

    operands, results: by kind, the places of those that kernels take and give in f32. either: the kinds that
    give f32 where that is wanted: as a result of the graph, or by what reads it. Weights stay as they are.
    """

    operands: Places
    results: Places
    either: Collection[str]
    narrow: str = "bf16"
    rounds: ClassVar[bool] = True  # the numbers are others afterwards, and are meant to be

    def __call__(self, graph: Graph, misses: list[Miss]) -> Graph:
        wanted = self.wanted_wide(graph)
        new: dict[Value, Value] = {value: value for value in graph.inputs}
        for node in graph:
            if node[0] not in new:
                new.update(zip(node.values, self.narrowed(node, new, wanted)))
        outputs = [cast(new[value], value.type.dtype) for value in graph.outputs]
        return Graph(graph.inputs, tuple(outputs), graph.names)

    def wanted_wide(self, graph: Graph) -> set[Value]:
        """The values that are a result of the graph, or read in f32; what only moves them aside."""
        wanted = set(graph.outputs)
        for node in reversed(list(graph)):
            if node.op in MOVES:
                wanted.update(node.inputs if node[0] in wanted else ())
            else:
                wanted.update(value for i, value in enumerate(node.inputs) if not self.narrows(node, i))
        return wanted

    def narrows(self, node: Node, operand: int) -> bool:
        """Whether that operand of the node, if f32, becomes narrow."""
        if node.op is not REGION or is_weight(node.inputs[operand]):
            return False
        return operand not in self.operands.get(node.attrs["kind"], ())

    def narrowed(self, node: Node, new: Mapping[Value, Value], wanted: Collection[Value]) -> Sequence[Value]:
        """The node's values on new operands."""
        inputs = [new[value] for value in node.inputs]
        if node.op is REGION:
            return self.region(node, inputs, wanted)
        if node.op in MOVES and not is_weight(node[0]):
            return renew(node, tuple(inputs)).values
        wide = (cast(value, old.type.dtype) for value, old in zip(inputs, node.inputs))
        return renew(node, tuple(wide)).values

    def region(self, node: Node, inputs: Sequence[Value], wanted: Collection[Value]) -> Sequence[Value]:
        """The region on narrow operands, giving narrow results."""
        kind, body = node.attrs["kind"], node.attrs["body"]
        given = [
            cast(value, self.narrow if old.type.dtype == WIDE and self.narrows(node, i) else old.type.dtype)
            for i, (value, old) in enumerate(zip(inputs, node.inputs))
        ]
        entries = [entry(i, value) for i, value in enumerate(given)]
        meanings = [cast(new, old.type.dtype) for new, old in zip(entries, node.inputs)]
        kept = self.results.get(kind, ())
        results = [
            cast(value, WIDE if i in kept or (kind in self.either and node[i] in wanted) else self.narrow)
            if value.type.dtype == WIDE
            else value
            for i, value in enumerate(inline(body, meanings))
        ]
        once = without_detours(Graph(tuple(entries), tuple(results)), self.narrow)
        return make(REGION, *given, kind=kind, body=once, origin=node.origin).values


def cast(value: Value, dtype: str) -> Value:
    """The value as that dtype."""
    return value if value.type.dtype == dtype else CAST(value, dtype=dtype)


def without_detours(body: Graph, narrow: str) -> Graph:
    """bf16(f32(x)) of an x that is bf16 is x; so for any narrow dtype."""

    def step(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if node.op is not CAST or node.attrs["dtype"] != narrow or not made_by(inputs[0], CAST):
            return None
        (source,) = inputs[0].node.inputs
        widened = inputs[0].type.dtype == WIDE and source.type.dtype == narrow
        return (source,) if widened else None

    return body.rewrite(step)
