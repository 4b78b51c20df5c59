"""What a graph costs per token: bytes its caches grow by, and bytes of weights it reads."""

from __future__ import annotations

import math

import sympy

from .ir import DTYPES, Graph, Node, Type

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
    sources: dict[Node, frozenset[Node]] = {}
    shares: dict[Node, float] = {}
    for node in graph:
        if node.op.name == "constant":
            sources[node] = frozenset({node})
        elif node.op.name == "literal" or (
            node.inputs and all(value.node in sources for value in node.inputs)
        ):
            sources[node] = frozenset().union(*(sources[value.node] for value in node.inputs))
        else:
            for position, value in enumerate(node.inputs):
                for source in sources.get(value.node, ()):
                    shares[source] = max(shares.get(source, 0.0), _share(node, position))
    return sum(math.ceil(share * _bytes(source.types[0])) for source, share in shares.items())


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


def _bytes(type: Type) -> int:
    return math.prod(int(dim) for dim in type.shape) * int(DTYPES[type.dtype].itemsize)
