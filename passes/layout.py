"""Weights in the order in which the chosen schedules read them.

    before   region[linear](x, w_NK)
    after    region[linear](x, pack(w)_PKl), whose body begins with unpack

    before   region[linear](x, codes_NK, scales_NG)
    after    region[linear](x, pack_codes(codes)_PCl4, pack(scales)_PGl)

pack(w) is an expression of constants: it is evaluated once, when the artifact is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..compiler.ir import Graph, Node, Value, make
from ..compiler.ops.layout import PACK, PACK_CODES, UNPACK, UNPACK_CODES
from ..compiler.ops.region import REGION, inline
from ..compiler.ops.shape import CONCAT, RESHAPE, SLICE, TRANSPOSE
from ..compiler.ops.sources import CONSTANT, INPUT

# What may stand between a stored weight and the weight that an op reads.
ARRANGING = ("concat", "slice", "reshape", "transpose", "cast", "pack", "quantize", "pack_codes")


def is_weight(value: Value) -> bool:
    """Whether the value is known when the artifact is written: a constant, or constants arranged."""
    node = value.node
    return node.op is CONSTANT or (node.op.name in ARRANGING and all(is_weight(v) for v in node.inputs))


class Layout(Protocol):
    """How one weight operand lies in memory: as one or several packed tensors."""

    def pack(self, w: Value) -> tuple[Value, ...]:
        """The packed tensors, as expressions of the weight."""

    def unpack(self, packed: Sequence[Value]) -> Value:
        """The weight again."""


@dataclass(frozen=True, slots=True)
class Panels:
    """[.., rows, K] in panels of `lanes` rows; with halves=2 a panel pairs rows of the two halves."""

    lanes: int
    rows: int
    halves: int = 1

    def pack(self, w: Value) -> tuple[Value, ...]:
        return (PACK(w, lanes=self.lanes, halves=self.halves),)

    def unpack(self, packed: Sequence[Value]) -> Value:
        return UNPACK(*packed, rows=self.rows, halves=self.halves)


@dataclass(frozen=True, slots=True)
class CodePanels:
    """Codes [.., rows, K] of a quantized weight in panels, as bytes; its scales lie in Panels."""

    lanes: int
    rows: int
    bits: int
    halves: int = 1

    def pack(self, w: Value) -> tuple[Value, ...]:
        return (PACK_CODES(w, lanes=self.lanes, bits=self.bits, halves=self.halves),)

    def unpack(self, packed: Sequence[Value]) -> Value:
        return UNPACK_CODES(*packed, rows=self.rows, bits=self.bits, halves=self.halves)


@dataclass(frozen=True, slots=True)
class HeadPanels:
    """A projection [N*(D+V), C] of latents as three: keys turned [N,C,D], keys [N,D,C], values [N,V,C].

    The first takes queries to the latent, the second latents to keys. A kernel goes the way that is cheaper
    for the shape it meets, so both are there.
    """

    lanes: int
    heads: int
    nope: int
    value: int

    def pack(self, w: Value) -> tuple[Value, ...]:
        by_head = RESHAPE(w, shape=(self.heads, self.nope + self.value, w.shape[1]))
        keys = SLICE(by_head, axis=1, start=0, stop=self.nope)
        values = SLICE(by_head, axis=1, start=self.nope, stop=self.nope + self.value)
        return tuple(PACK(part, lanes=self.lanes) for part in (TRANSPOSE(keys, perm=(0, 2, 1)), keys, values))

    def unpack(self, packed: Sequence[Value]) -> Value:
        keys, values = (UNPACK(p, rows=rows) for p, rows in zip(packed[1:], (self.nope, self.value)))
        return RESHAPE(
            CONCAT(keys, values, axis=1), shape=(self.heads * (self.nope + self.value), keys.shape[2])
        )


def pack(graph: Graph, layouts: Mapping[Node, Mapping[int, Layout]]) -> Graph:
    """The graph with these operands of these regions packed; a body still says what its kernel computes."""
    replacements: dict[Value, Value] = {}
    for node, layout in layouts.items():
        replacements.update(zip(node.values, packed(node, layout).values))
    return graph.replace(replacements)


def packed(region: Node, layouts: Mapping[int, Layout]) -> Node:
    """The region on packed operands; one that is several tensors then becomes as many operands."""
    operands: list[Value] = []
    entries: list[Value] = []
    meanings: list[Value] = []
    for i, operand in enumerate(region.inputs):
        layout = layouts.get(i)
        parts = layout.pack(operand) if layout else (operand,)
        fresh = [entry(len(operands) + j, part) for j, part in enumerate(parts)]
        meanings.append(layout.unpack(fresh) if layout else fresh[0])
        operands += parts
        entries += fresh
    body = Graph(tuple(entries), inline(region.attrs["body"], meanings))
    return make(REGION, *operands, kind=region.attrs["kind"], body=body, origin=region.origin)


def entry(i: int, operand: Value) -> Value:
    """The body's input for operand i."""
    return INPUT(name=f"x{i}", dtype=operand.type.dtype, shape=operand.shape)
