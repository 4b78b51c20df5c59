"""The error of stored weights, measured as they are written, and the table of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from arrays import real

from moec.compiler import slices
from moec.compiler.ir import Graph, Value, make
from moec.compiler.onnx_graph import frontier
from moec.compiler.ops.elementwise import CAST
from moec.compiler.ops.layout import PACK, PACK_CODES
from moec.compiler.ops.quantize import DEQUANTIZE, QUANTIZE
from moec.compiler.ops.shape import CONCAT
from moec.compiler.ops.sources import CONSTANT
from moec.compiler.rounding import Rounding, stored_weights


def weight(name: str, rows: int) -> Value:
    return CONSTANT(name=name, dtype="f32", shape=(rows, 64))


def written(graph: Graph, arrays: dict[str, Any]) -> Rounding:
    rounding = Rounding()
    for _, parts in slices.evaluated(frontier(graph), arrays, rounding.observe):
        list(parts)
    return rounding


@pytest.fixture
def graph() -> Graph:
    """Weights as kernels read them: codes and scales, half the bytes, as it was."""
    joined = CONCAT(weight("a", 6), weight("b", 4), axis=0)
    codes, scales = make(QUANTIZE, joined, bits=4).values
    packed = PACK_CODES(codes, lanes=4, bits=4), PACK(scales, lanes=4)
    return Graph((), (*packed, CAST(weight("c", 3), dtype="bf16"), weight("d", 2)))


def test_each_weight_has_its_format_its_bytes_and_its_error(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "CHUNK_BYTES", 4 * 64 * 4)
    arrays = {name: real(rows, 64) for name, rows in (("a", 6), ("b", 4), ("c", 3), ("d", 2))}
    codes, narrow, plain = stored_weights(graph, written(graph, arrays))
    assert (codes.name, codes.format, codes.bytes) == ("a+b", "int4", 12 * 32 + 12 * 2 * 2)
    assert (narrow.name, narrow.format, narrow.bytes) == ("c", "bf16", 3 * 64 * 2)
    assert (plain.name, plain.format, plain.bytes, plain.error) == ("d", "f32", 2 * 64 * 4, 0.0)
    w = np.concatenate([arrays["a"], arrays["b"]])
    off = DEQUANTIZE.reference(*QUANTIZE.reference(w, bits=4), bits=4) - w
    assert codes.error == pytest.approx(np.sqrt((off**2).sum() / (w**2).sum()), rel=1e-5)
    assert narrow.error is not None
    assert 1e-3 < narrow.error < 3e-3


def test_what_was_not_written_has_no_error(graph: Graph) -> None:
    assert [each.error for each in stored_weights(graph, Rounding())] == [None, None, 0.0]


def test_a_weight_of_zeros_has_no_error(graph: Graph) -> None:
    zeros = {
        name: np.zeros((rows, 64), np.float32) for name, rows in (("a", 6), ("b", 4), ("c", 3), ("d", 2))
    }
    assert [each.error for each in stored_weights(graph, written(graph, zeros))] == [0.0, 0.0, 0.0]
