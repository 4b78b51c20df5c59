"""How far weights are off what they were once they are stored in fewer bits; measured as they are written."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import numpy as np

from .ir import HALVES, Array, Graph, Node, Value, walk
from .manifest import StoredWeight
from .onnx_graph import frontier
from .ops import quantize
from .ops.elementwise import CAST
from .ops.quantize import DEQUANTIZE, QUANTIZE
from .slices import nbytes


class Rounding:
    """Sums of squares of error and weight, by the node that rounds. Any thread may add to them."""

    def __init__(self) -> None:
        self._sums: dict[Node, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def observe(self, node: Node, operands: Sequence[Array], results: Sequence[Array]) -> None:
        """Take note of a slice that was rounded; for Run."""
        if (approximate := restored(node, results)) is None:
            return
        exact = np.asarray(operands[0], np.float32)
        error, size = (float(np.vdot(x, x)) for x in (approximate - exact, exact))
        with self._lock:
            before = self._sums.get(node, (0.0, 0.0))
            self._sums[node] = before[0] + error, before[1] + size

    def error(self, value: Value) -> float | None:
        """RMS of error over RMS of weight; 0 where nothing is rounded, None where it was not measured."""
        rounds = [node for node in walk([value]) if is_rounding(node)]
        if any(node not in self._sums for node in rounds):
            return None
        error, size = (sum(self._sums[node][i] for node in rounds) for i in (0, 1))
        return math.sqrt(error / size) if size else 0.0


def is_rounding(node: Node) -> bool:
    """Whether a node makes a weight narrower."""
    return node.op is QUANTIZE or (node.op is CAST and node.types[0].dtype in HALVES)


def restored(node: Node, results: Sequence[Array]) -> Array | None:
    """What is left of a weight after it was rounded, in f32."""
    if not is_rounding(node):
        return None
    if node.op is QUANTIZE:
        wide: Array = DEQUANTIZE.reference(*results, **node.attrs)
        return wide
    return results[0].astype(np.float32)


def stored_weights(graph: Graph, rounding: Rounding) -> list[StoredWeight]:
    """Every weight that a graph reads: what it is made of, its format, its bytes in all forms, its error."""
    rows: dict[tuple[str, str], StoredWeight] = {}
    for value in frontier(graph):
        names = "+".join(str(node.attrs["name"]) for node in walk([value]) if node.op.name == "constant")
        key = (names or "constant", format_of(value))
        size = nbytes(value.type) + (rows[key].bytes if key in rows else 0)
        rows[key] = StoredWeight(*key, size, rounding.error(value))
    return list(rows.values())


def format_of(value: Value) -> str:
    """How a weight is stored: "int4", "int8", "int8row", or a dtype."""
    codes = [quantize.format_of(node) for node in walk([value]) if node.op is QUANTIZE]
    return codes[0] if codes else value.type.dtype
