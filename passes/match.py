"""How passes read a graph: small questions on what made a value, and a loop that replaces what is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from ..compiler.ir import Graph, Miss, Node, Op, Value
from ..compiler.ops import elementwise, shape, sources

VIEWS: Sequence[Op] = (elementwise.CAST, shape.RESHAPE, shape.EXPAND)


class Near(Exception):
    """A pattern that had begun to match ends here; the message is the sentence why."""


Found = TypeVar("Found")
Recognise = Callable[[Node], Mapping[Value, Value]]


def fuse(graph: Graph, misses: list[Miss], anchors: Sequence[Op], recognise: Recognise) -> Graph:
    """Ask `recognise` at every anchor node for values that can be computed better, and compute them so.

    It returns the replacements, none where there is no pattern; where it raises Near, that becomes a Miss.
    """
    names = {op.name for op in anchors}
    replacements: dict[Value, Value] = {}
    for node in graph:
        if node.op.name not in names:
            continue
        try:
            replacements.update(recognise(node))
        except Near as near:
            misses.append(Miss(node.origin, str(near)))
    return graph.replace(replacements) if replacements else graph


def need(found: Found | None, otherwise: str) -> Found:
    """What was found; raises Near with the sentence where nothing was."""
    if found is None or found is False:
        raise Near(otherwise)
    return found


def made_by(value: Value, *ops: Op) -> bool:
    """Whether one of these ops made the value."""
    return any(value.op.name == op.name for op in ops)


def operands(value: Value, op: Op) -> tuple[Value, ...]:
    """What the value was made from; nothing where another op made it."""
    return value.node.inputs if made_by(value, op) else ()


def orders(value: Value, op: Op) -> Iterator[tuple[Value, Value]]:
    """Both orders of a commutative op's two operands; none where another op made the value."""
    if pair := operands(value, op):
        a, b = pair
        yield a, b
        yield b, a


def peel(value: Value, *ops: Op) -> Value:
    """The value below any of these ops, following their first operand."""
    while made_by(value, *ops):
        value = value.node.inputs[0]
    return value


def number(value: Value) -> float | None:
    """The number every element of the value is, where that is known."""
    value = peel(value, *VIEWS)
    if made_by(value, shape.FULL):
        return float(value.node.attrs["value"])
    data = sources.array_of(value)
    return float(data.flat[0]) if data is not None and data.size == 1 else None


def over_last(node: Node) -> bool:
    """Whether the node works along the last axis of its first operand, and no other."""
    axes = node.attrs["axes"] if "axes" in node.attrs else (node.attrs["axis"],)
    return tuple(axes) in ((-1,), (node.inputs[0].type.rank - 1,))


def last_slice(value: Value) -> tuple[Value, int, int, int] | None:
    """(x, start, stop, step) where the value is a slice of x's last axis by plain numbers."""
    if not made_by(value, shape.SLICE) or not over_last(value.node):
        return None
    attrs = value.node.attrs
    bounds = (attrs["start"], attrs["stop"], attrs.get("step", 1))
    return (value.node.inputs[0], *bounds) if all(isinstance(b, int) for b in bounds) else None
