"""What a graph costs per token: bytes its caches grow by, and bytes of weights it reads."""

from __future__ import annotations

import math

import sympy

from .ir import DTYPES, Graph, Node, Type, Value
from .onnx_graph import frontier
from .ops.quantize import QUANTIZE
from .slices import nbytes

GROUPED = {"grouped_mm": 1, "grouped_matmul": 3}  # op -> its operand with one matrix for each expert


def cache_bytes(graph: Graph) -> int:
    """Bytes that one token takes in all caches."""
    return sum(
        _row(value.type) for value in graph.inputs if str(value.node.attrs["name"]).startswith("past.")
    )


def active_bytes(graph: Graph) -> int:
    """Bytes of weights that one token reads: the rows it looks up, the experts it chooses, all of the rest.

    For a graph whose weights are not packed yet, so that what a layout keeps twice counts once.
    """
    stored = set(frontier(graph))
    shares: dict[Value, float] = {}
    for node in graph:
        if any(value not in stored for value in node.inputs):
            for position, value in enumerate(node.inputs):
                if value in stored:
                    shares[value] = max(shares.get(value, 0.0), _share(node, position))
    return sum(math.ceil(share * _stored(value)) for value, share in shares.items())


def stored_bytes(graph: Graph) -> float:
    """Bytes of all weights, in a graph whose weights are not packed yet."""
    return sum(_stored(value) for value in frontier(graph))


def read_bytes(graph: Graph) -> dict[Node, float]:
    """Bytes of weights that each node reads for one token, in such a graph."""
    stored = set(frontier(graph))
    return {
        node: sum(
            _share(node, position) * _stored(value)
            for position, value in enumerate(node.inputs)
            if value in stored
        )
        for node in graph
    }


def _stored(value: Value) -> float:
    """Bytes of a weight once it is packed: codes take their bits."""
    packed = value.node.attrs["bits"] / 8 if value.op is QUANTIZE and value.index == 0 else 1
    return nbytes(value.type) * packed


def _share(node: Node, position: int) -> float:
    """The part of a weight operand that one token reads."""
    if node.op.name == "take" and position == 0:
        return 1 / int(node.inputs[0].shape[0])
    for inner in (node, *node.attrs.get("body", ())):
        if inner.op.name in GROUPED and node.inputs[position].type.rank == 3:
            return _chosen(inner)
    return 1.0


def _chosen(node: Node) -> float:
    """Of all experts, those that the rows of one token go to."""
    rows = sympy.sympify(node.types[0].shape[0])
    experts = int(node.inputs[GROUPED[node.op.name]].shape[0])
    return min(1.0, float(rows.subs(dict.fromkeys(rows.free_symbols, 1))) / experts)


def _row(type: Type) -> int:
    """Bytes of one of a cache's rows [B, h, L, d]."""
    return int(type.shape[1]) * int(type.shape[3]) * int(DTYPES[type.dtype].itemsize)
