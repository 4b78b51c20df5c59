"""Products with one matrix for each expert, in standard ONNX: a loop over the experts that have rows.

Only chosen experts are touched. Packed experts are unpacked one at a time, in the loop: onnxruntime unpacks
what does not depend on a run's inputs when it loads a model, and then holds it twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .ir import Array, Graph, Node, Op, Type, Value
from .onnx_ops import SPELLINGS as PRIMITIVES
from .onnx_ops import Spelling
from .onnx_scope import Scope, onnx_dtype
from .ops.layout import UNPACK
from .ops.routing import GROUPED_MATMUL
from .ops.sources import INPUT

# scope, name of all experts' matrices, one-element name of which -> name of its matrix [K, N]
Fetch = Callable[[Scope, str, str], str]


def _packed_type(
    x: Type, order: Type, ends: Type, packed: Type, *, share: int, **panels: Any
) -> tuple[Type, ...]:
    return GROUPED_MATMUL.infer(x, order, ends, *UNPACK.infer(packed, **panels), share=share)


def _packed(x: Array, order: Array, ends: Array, packed: Array, *, share: int, **panels: Any) -> Any:
    return GROUPED_MATMUL.reference(x, order, ends, UNPACK.reference(packed, **panels), share=share)


# grouped_matmul(x, order, ends, unpack(packed; rows, halves); share)
PACKED_GROUPED_MATMUL = Op("packed_grouped_matmul", _packed_type, _packed)


def keep_packed(graph: Graph) -> Graph:
    """Grouped products of packed weights as one op, so that the weights are not unpacked all at once."""

    def step(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
        if node.op is not GROUPED_MATMUL or inputs[3].op is not UNPACK:
            return None
        unpack = inputs[3].node
        return (PACKED_GROUPED_MATMUL(*inputs[:3], *unpack.inputs, **node.attrs, **unpack.attrs),)

    return graph.rewrite(step)


def _grouped_mm(scope: Scope, node: Node, x: str, weight: str, ends: str) -> str:
    return _by_group(scope, node, x, weight, ends, _matrix)


def _grouped_matmul(scope: Scope, node: Node, x: str, order: str, ends: str, weight: str) -> str:
    return _by_group(scope, node, _rows(scope, node, x, order), weight, ends, _transposed)


def _packed_grouped_matmul(scope: Scope, node: Node, x: str, order: str, ends: str, packed: str) -> str:
    def fetch(body: Scope, packed: str, expert: str) -> str:
        one = node.inputs[3].type
        entry = INPUT(name="one", dtype=one.dtype, shape=(1, *one.shape[1:]))
        plain = UNPACK(entry, rows=node.attrs["rows"], halves=node.attrs["halves"])
        names = {entry: body.op("Gather", packed, expert, axis=0)}
        assert UNPACK.expand is not None
        (plain,) = UNPACK.expand(entry, **plain.node.attrs)
        for step in Graph((entry,), (plain,)):
            if step[0] not in names:
                inputs = [names[value] for value in step.inputs]
                names[step[0]] = str(PRIMITIVES[step.op.name](body, step, *inputs))
        return body.op("Transpose", body.op("Squeeze", names[plain], body.constant([0])), perm=[1, 0])

    return _by_group(scope, node, _rows(scope, node, x, order), packed, ends, fetch)


def _rows(scope: Scope, node: Node, x: str, order: str) -> str:
    """The rows of x in expert order."""
    share = int(node.attrs["share"])
    return scope.op("Gather", x, scope.op("Div", order, scope.constant(share)), axis=0) if share else x


def _matrix(body: Scope, weight: str, expert: str) -> str:
    return body.op("Squeeze", body.op("Gather", weight, expert, axis=0), body.constant([0]))


def _transposed(body: Scope, weight: str, expert: str) -> str:
    return body.op("Transpose", _matrix(body, weight, expert), perm=[1, 0])


def _by_group(scope: Scope, node: Node, rows: str, weight: str, ends: str, fetch: Fetch) -> str:
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
        return body.op("Concat", done, body.op("MatMul", own, fetch(body, weight, expert)), axis=0)

    nothing = scope.constant(np.zeros((0, width)), node.types[0].dtype)
    return scope.loop(scope.op("Size", chosen), nothing, step, rank=2, element=element)


SPELLINGS: Mapping[str, Spelling] = {
    **PRIMITIVES,
    "grouped_mm": _grouped_mm,
    "grouped_matmul": _grouped_matmul,
    "packed_grouped_matmul": _packed_grouped_matmul,
}
