"""Caches of latents in about a quarter of the bytes, as codes; what is rotated stays as it is.

    before   past bf16    -> append(past, bf16(rows), mask) -> c;  readers of f32(c)
    after    past u8 | i8 -> append(past, codes, mask)      -> c,  readers of decode_rows(c, s)
             scale f32    -> append(scale, scales, mask)    -> s   with codes, scales = encode_rows(rows)

A latent is what a projection to keys and values reads. Each has one more input then, [B, 1, L, G]: the scales
of each row. It comes behind all others and is handed back as they are. Goes after NarrowCaches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir import Array, Graph, Miss, Node, Value, make
from ..compiler.ops.cache import APPEND, FILLED
from ..compiler.ops.coded import CODINGS, DECODE_ROWS, ENCODE_ROWS, Coding
from ..compiler.ops.dense import LINEAR
from ..compiler.ops.elementwise import CAST
from ..compiler.ops.shape import RESHAPE
from ..compiler.ops.sources import INPUT
from .partition import Users

MAKES = (ENCODE_ROWS, DECODE_ROWS)


@dataclass(frozen=True, slots=True)
class CodeLatents:
    """The pass, to a format of CODINGS. Without latents it changes nothing."""

    format: str
    rounds: ClassVar[bool] = True  # the numbers are others afterwards, and are meant to be

    def __call__(self, graph: Graph, misses: list[Miss]) -> Graph:
        users = graph.users()
        found = latents(graph, users)
        coding = CODINGS[self.format]
        given = {past: (stored_as(past, coding), scale_of(past, coding)) for past in found}
        written = {past: appended(node, *given[past], self.format) for past, node in found.items()}
        read = {
            user[0]: DECODE_ROWS(*written[past]) for past, node in found.items() for user in users[node[0]]
        }
        codes, scales = ([both[i] for both in written.values()] for i in (0, 1))
        result = Graph(graph.inputs, (*graph.outputs, *codes, *scales)).replace(read)
        count = len(graph.outputs)
        stored = dict(zip((node[0] for node in found.values()), result.outputs[count:]))
        outputs = [stored.get(old, new) for old, new in zip(graph.outputs, result.outputs)]
        inputs = [given[past][0] if past in given else past for past in graph.inputs]
        more = [scale for _, scale in given.values()]
        names = [present(scale) for scale in more] if graph.names else []
        return Graph(
            (*inputs, *more),
            (*outputs, *result.outputs[count + len(found) :]),
            (*graph.names, *names),
        )

    def fed(self, graph: Graph, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """The feeds of a graph before the pass as those after it."""
        found = dict(feeds)
        for past in latents(graph, graph.users()):
            name, scale = past.node.attrs["name"], scale_name(past)
            rows = feeds[name].astype("float32")
            found[name], found[scale] = ENCODE_ROWS.reference(rows, format=self.format)
        return found


def latents(graph: Graph, users: Users) -> dict[Value, Node]:
    """The inputs that are caches of latents, in bf16, each with what appends rows to it."""
    appends = {past: users.get(past, []) for past in graph.inputs if past.type.dtype == "bf16"}
    return {
        past: readers[0]
        for past, readers in appends.items()
        if [node.op for node in readers] == [APPEND] and is_projected(readers[0][0], users)
    }


def appended(node: Node, codes: Value, scale: Value, format: str) -> tuple[Value, Value]:
    """Codes and scales after the step."""
    _, rows, mask = node.inputs
    coded = make(ENCODE_ROWS, rows.node.inputs[0], origin=node.origin, format=format)
    new, scales = coded.values
    return APPEND(codes, new, mask, origin=node.origin), APPEND(scale, scales, mask, origin=node.origin)


def is_projected(value: Value, users: Users) -> bool:
    """Whether a product with a weight reads the rows of a cache, and nothing else does."""
    readers = users.get(value, [])
    return bool(readers) and all(
        node.op is LINEAR or (node.op in (CAST, FILLED, RESHAPE) and is_projected(node[0], users))
        for node in readers
    )


def stored_as(past: Value, coding: Coding) -> Value:
    """The input in place of a cache: its codes."""
    return INPUT(name=past.node.attrs["name"], dtype=coding.dtype, shape=past.shape)


def scale_of(past: Value, coding: Coding) -> Value:
    """The input of its scales."""
    *rows, columns = past.shape
    return INPUT(name=scale_name(past), dtype="f32", shape=(*rows, coding.scales(int(columns))))


def scale_name(past: Value) -> str:
    """What that input is called."""
    return str(past.node.attrs["name"]).rpartition(".")[0] + ".scale"


def present(past: Value) -> str:
    """The name of what becomes of an input that is handed back."""
    return str(past.node.attrs["name"]).replace("past", "present")
