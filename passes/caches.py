"""Caches in half the bytes: bf16, or f16 alike.

    before   past f32 -> append(past, rows, mask) -> c; readers of c
    after    past bf16 -> append(past, bf16(rows), mask) -> c; readers of f32(c)

The caller holds what is narrower, so inputs and outputs of the graph change their type; all arithmetic stays
in f32. From here on the rounding of cached rows, those of the step itself among them, is a part of what the
graph means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir import HALVES, Graph, Miss, Node, Value
from ..compiler.ops.cache import APPEND
from ..compiler.ops.elementwise import CAST
from ..compiler.ops.sources import INPUT
from .match import made_by

MAKES = (CAST,)


@dataclass(frozen=True, slots=True)
class NarrowCaches:
    """The pass: every f32 input that is read only to append rows to it, in a dtype of half the bytes."""

    dtype: str = "bf16"
    rounds: ClassVar[bool] = True  # the numbers are others afterwards, and are meant to be

    def __call__(self, graph: Graph, misses: list[Miss]) -> Graph:
        users = graph.users()
        wide = [past for past in graph.inputs if is_cache(past, users.get(past, []))]
        kept = {past: narrow(past, self.dtype) for past in wide}
        written = {users[past][0][0]: appended(users[past][0], kept[past]) for past in wide}
        result = graph.replace({old: CAST(new, dtype="f32") for old, new in written.items()})
        inputs = tuple(kept.get(value, value) for value in result.inputs)
        return Graph(inputs, tuple(map(as_stored, result.outputs)), result.names)


def is_cache(past: Value, readers: list[Node]) -> bool:
    """Whether all that happens to an input is that rows are appended to it."""
    only_appended = [node.op for node in readers] == [APPEND] and readers[0].inputs[0] == past
    return only_appended and past.type.dtype == "f32"


def narrow(past: Value, dtype: str) -> Value:
    """The same input in that dtype."""
    return INPUT(name=past.node.attrs["name"], dtype=dtype, shape=past.shape)


def appended(node: Node, past: Value) -> Value:
    """The cache after the step, in the dtype of the one before."""
    _, rows, mask = node.inputs
    return APPEND(past, CAST(rows, dtype=past.type.dtype), mask, origin=node.origin)


def as_stored(output: Value) -> Value:
    """A cache as it is handed back: not widened."""
    stored = output.node.inputs[0] if made_by(output, CAST) else output
    return stored if made_by(stored, APPEND) and stored.type.dtype in HALVES else output
