"""Products with one matrix for each expert, in standard ONNX: a loop over the experts that have rows.

Only chosen experts are touched. Packed experts are unpacked one at a time, in the loop: onnxruntime unpacks
what does not depend on a run's inputs when it loads a model, and then holds it twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .ir import Array, Graph, Node, Op, Type, TypeMismatch, Value, make
from .onnx_ops import SPELLINGS as PRIMITIVES
from .onnx_ops import Spelling
from .onnx_scope import Scope, onnx_dtype
from .ops.elementwise import CAST
from .ops.layout import UNPACK, UNPACK_CODES
from .ops.quantize import DEQUANTIZE
from .ops.routing import GROUPED_MATMUL
from .ops.sources import INPUT

# scope, one-element name of an expert -> name of its matrix [K, N]
Fetch = Callable[[Scope, str], str]

# What makes a weight of packed tensors, each expert's from its own part of them.
UNPACKS = (UNPACK, UNPACK_CODES, DEQUANTIZE, CAST)


def _packed_type(
    x: Type, order: Type, ends: Type, *packed: Type, share: int, unpack: Graph
) -> tuple[Type, ...]:
    if packed != tuple(value.type for value in unpack.inputs):
        raise TypeMismatch(f"the weight is made of {', '.join(str(value.type) for value in unpack.inputs)}")
    return GROUPED_MATMUL.infer(x, order, ends, unpack.outputs[0].type, share=share)


def _packed(
    x: Array, order: Array, ends: Array, *packed: Array, share: int, unpack: Callable[..., tuple[Array, ...]]
) -> Any:
    return GROUPED_MATMUL.reference(x, order, ends, *unpack(*packed), share=share)


# grouped_matmul(x, order, ends, unpack(packed..); share)
PACKED_GROUPED_MATMUL = Op("packed_grouped_matmul", _packed_type, _packed)


def keep_packed(graph: Graph) -> Graph:
    """Grouped products of packed weights as one op, so that the weights are not unpacked all at once."""

    def step(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
        if node.op is not GROUPED_MATMUL or inputs[3].op not in UNPACKS:
            return None
        packed = tuple(leaves(inputs[3]))
        entries = tuple(entry(i, value.type) for i, value in enumerate(packed))
        unpack = Graph(entries, (again(inputs[3], dict(zip(packed, entries))),))
        return (PACKED_GROUPED_MATMUL(*inputs[:3], *packed, unpack=unpack, **node.attrs),)

    return graph.rewrite(step)


def entry(i: int, type: Type) -> Value:
    """The i-th input of a graph that unpacks."""
    return INPUT(name=f"w{i}", dtype=type.dtype, shape=type.shape)


def leaves(value: Value) -> Iterator[Value]:
    """The packed tensors that a weight is made of."""
    if value.op not in UNPACKS:
        yield value
    for inner in value.node.inputs if value.op in UNPACKS else ():
        yield from leaves(inner)


def again(value: Value, known: Mapping[Value, Value]) -> Value:
    """The value made from other ones, perhaps of fewer experts."""
    if value in known:
        return known[value]
    inputs = (again(inner, known) for inner in value.node.inputs)
    return make(value.op, *inputs, **value.node.attrs)[value.index]


def expanded(graph: Graph, keeps: Callable[[Node], bool]) -> Graph:
    """The graph with every op that is not kept in simpler ops. Raises ValueError where there are none."""

    def step(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if keeps(node):
            return None
        if node.op.expand is None:
            whence = node.origin or "graph"
            raise ValueError(f"{node.op.name} has no ONNX spelling and no expansion  [from {whence}]")
        return node.op.expand(*inputs, **node.attrs)

    while (simpler := graph.rewrite(step)).outputs != graph.outputs:
        graph = simpler
    return graph


def _grouped_mm(scope: Scope, node: Node, x: str, weight: str, ends: str) -> str:
    return _by_group(scope, node, x, ends, lambda body, expert: _matrix(body, weight, expert))


def _grouped_matmul(scope: Scope, node: Node, x: str, order: str, ends: str, weight: str) -> str:
    def fetch(body: Scope, expert: str) -> str:
        return body.op("Transpose", _matrix(body, weight, expert), perm=[1, 0])

    return _by_group(scope, node, _rows(scope, node, x, order), ends, fetch)


def _packed_grouped_matmul(scope: Scope, node: Node, x: str, order: str, ends: str, *packed: str) -> str:
    unpack: Graph = node.attrs["unpack"]
    types = [value.type for value in unpack.inputs]
    entries = tuple(entry(i, Type(type.dtype, (1, *type.shape[1:]))) for i, type in enumerate(types))
    one = Graph(entries, (again(unpack.outputs[0], dict(zip(unpack.inputs, entries))),))
    one = expanded(one, lambda each: each.op is INPUT or each.op.name in PRIMITIVES)

    def fetch(body: Scope, expert: str) -> str:
        names = {value: body.op("Gather", name, expert, axis=0) for value, name in zip(entries, packed)}
        for each in one:
            if each.op is not INPUT:
                inputs = [names[value] for value in each.inputs]
                names[each[0]] = str(PRIMITIVES[each.op.name](body, each, *inputs))
        squeezed = body.op("Squeeze", names[one.outputs[0]], body.constant([0]))
        return body.op("Transpose", squeezed, perm=[1, 0])

    return _by_group(scope, node, _rows(scope, node, x, order), ends, fetch)


def _rows(scope: Scope, node: Node, x: str, order: str) -> str:
    """The rows of x, which may have any rank, in expert order."""
    share = int(node.attrs["share"])
    x = scope.op("Reshape", x, scope.constant([-1, node.inputs[0].shape[-1]]))
    return scope.op("Gather", x, scope.op("Div", order, scope.constant(share)), axis=0) if share else x


def _matrix(body: Scope, weight: str, expert: str) -> str:
    return body.op("Squeeze", body.op("Gather", weight, expert, axis=0), body.constant([0]))


def _by_group(scope: Scope, node: Node, rows: str, ends: str, fetch: Fetch) -> str:
    """Each expert that has rows multiplies them; the results follow one another."""
    element, width = onnx_dtype(node.types[0].dtype), int(node.types[0].shape[1])
    ends = scope.op("Cast", ends, to=onnx_dtype("i64"))
    shifted = scope.op("Slice", ends, scope.constant([0]), scope.constant([-1]))
    starts = scope.op("Concat", scope.constant([0]), shifted, axis=0)
    chosen = scope.op("Squeeze", scope.op("NonZero", scope.op("Sub", ends, starts)), scope.constant([0]))

    def step(body: Scope, trip: str, done: str) -> str:
        expert = body.op("Gather", chosen, body.op("Unsqueeze", trip, body.constant([0])))
        span = [body.op("Gather", edge, expert) for edge in (starts, ends)]
        own = body.op("Slice", rows, *span, body.constant([0]))
        return body.op("Concat", done, body.op("MatMul", own, fetch(body, expert)), axis=0)

    nothing = scope.constant(np.zeros((0, width)), node.types[0].dtype)
    return scope.loop(scope.op("Size", chosen), nothing, step, rank=2, element=element)


SPELLINGS: Mapping[str, Spelling] = {
    **PRIMITIVES,
    "grouped_mm": _grouped_mm,
    "grouped_matmul": _grouped_matmul,
    "packed_grouped_matmul": _packed_grouped_matmul,
}
