"""What regions hand to each other becomes bf16, their arithmetic does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from layers import EDGES, HIDDEN, apart, assert_same, decoder, weight

from moec.compiler.interpret import interpret
from moec.compiler.ir import DTYPES, HALVES, B, Graph, T, Value
from moec.compiler.ops.dense import LINEAR
from moec.compiler.ops.elementwise import EXP
from moec.compiler.ops.region import REGION
from moec.compiler.ops.shape import RESHAPE, TRANSPOSE
from moec.compiler.ops.sources import INPUT
from moec.compiler.pipeline import run
from moec.compiler.text import show
from moec.passes.activations import NarrowActivations
from moec.passes.partition import Cluster, region
from moec.targets.bf16 import EITHER, WIDE_OPERANDS, WIDE_RESULTS
from moec.targets.cpu.pipeline import PASSES

NARROW = NarrowActivations(WIDE_OPERANDS, WIDE_RESULTS, EITHER)
X = INPUT(name="x", dtype="f32", shape=(B, T, HIDDEN))


def linear(x: Value, name: str = "w") -> Value:
    """A product in a region."""
    w = weight(name, HIDDEN, HIDDEN)
    return region(Cluster("linear", (x, w), (LINEAR(x, w),)))[0]


def dtypes(graph: Graph) -> list[str]:
    """Of the results of all regions, in order."""
    return [type_.dtype for node in graph if node.op is REGION for type_ in node.types]


def test_a_chain_of_products(golden: Callable[[str], None]) -> None:
    moved = TRANSPOSE(RESHAPE(linear(X), shape=(B, T, 2, HIDDEN // 2)), perm=(0, 1, 3, 2))
    golden(show(NARROW(Graph((X,), (linear(RESHAPE(moved, shape=(B, T, HIDDEN)), "v"),)), [])))


@pytest.mark.parametrize(
    "graph", [decoder(2), decoder(2, latent=False), apart()], ids=["mla", "gqa", "apart"]
)
def test_a_model_keeps_its_numbers_in_double_precision(graph: Graph) -> None:
    before, _ = run(graph, PASSES)
    after = NARROW(before, [])
    assert set(dtypes(after)) >= {"bf16"}
    assert [value.type for value in after.outputs] == [value.type for value in before.outputs]
    for sizes in EDGES:
        assert_same(before, after, **sizes)


@pytest.mark.parametrize("dtype", HALVES)
def test_numbers_between_regions_are_rounded_and_only_those(dtype: str) -> None:
    graph = replace(NARROW, narrow=dtype)(Graph((X,), (linear(linear(X)),)), [])
    source = np.random.default_rng(0)
    x, w = (source.standard_normal(shape).astype(np.float32) for shape in ((1, 2, HIDDEN), (HIDDEN, HIDDEN)))
    (got,) = interpret(graph, {"x": x}, {"w": w}).values()
    rounded = lambda array: array.astype(DTYPES[dtype]).astype(np.float32)  # noqa: E731
    np.testing.assert_allclose(got, rounded(rounded(x) @ w.T) @ w.T, rtol=1e-5, atol=1e-5)


def test_a_result_of_the_graph_stays_f32() -> None:
    assert dtypes(NARROW(Graph((X,), (linear(X),)), [])) == ["f32"]


def test_what_moves_only_is_looked_through() -> None:
    graph = NARROW(Graph((X,), (RESHAPE(linear(linear(X)), shape=(B * T, HIDDEN)),)), [])
    assert dtypes(graph) == ["bf16", "f32"]


def test_what_another_op_reads_stays_f32() -> None:
    first = linear(X)
    graph = NARROW(Graph((X,), (EXP(first), linear(first, "v"))), [])
    assert dtypes(graph) == ["f32", "f32"]
    assert graph.outputs[1].node.inputs[0].type.dtype == "bf16"
