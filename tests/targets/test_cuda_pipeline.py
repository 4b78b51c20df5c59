"""The CUDA target's passes on models of every family: same numbers, every node a kernel, bf16 between."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import pytest
from layers import running

from moec.compiler.driver import whole
from moec.compiler.interpret import interpret
from moec.compiler.ir import B, Graph, L, Miss, Node, S, T
from moec.compiler.ops.region import REGION
from moec.compiler.pipeline import Check, random_feeds, run
from moec.compiler.source import resolve
from moec.compiler.trace import Traced, trace
from moec.passes.caches import NarrowCaches
from moec.passes.precision import ALL_BF16, Precision
from moec.targets.bf16 import FORMATS, PASSES, SPANNED, WIDE_OPERANDS, WIDE_RESULTS, kernel_of

LATENT = ("deepseek_v2_lite", "deepseek_v2", "deepseek_v3")
EVERY = (NarrowCaches(), *PASSES, Precision(ALL_BF16, FORMATS, "bf16"))


@pytest.fixture(scope="module", params=models.FAMILIES)
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Traced, Graph]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    models.save(folder, request.param)
    traced = trace(resolve(str(folder)))
    misses: list[Miss] = []
    feeds = random_feeds(traced.graph, {B: 2, T: 3, S: 2, L: 6})
    graph, _ = run(traced.graph, EVERY, misses=misses, check=Check(traced.weights, feeds))
    assert not misses
    return request.param, traced, graph


def regions(graph: Graph) -> list[Node]:
    return [node for node in graph if node.op is REGION]


@pytest.mark.parametrize("sizes", [(1, 1, 0, 1), (2, 1, 4, 9), (2, 5, 0, 5)], ids=str)
def test_the_numbers_stay_in_double_precision(
    compiled: tuple[str, Traced, Graph], sizes: tuple[int, ...]
) -> None:
    _, traced, graph = compiled
    feeds = random_feeds(traced.graph, dict(zip((B, T, S, L), sizes)))
    feeds["input_ids"] = models.tokens(*sizes[:2]).numpy()
    narrow = {
        name: feed.astype(np.float64) if feed.dtype.kind == "f" else feed for name, feed in feeds.items()
    }
    expected = interpret(traced.graph, narrow, traced.weights, double=True)
    for name, array in interpret(graph, narrow, traced.weights, double=True).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-10, atol=1e-11, err_msg=name)


def test_every_node_is_a_kernel(compiled: tuple[str, Traced, Graph]) -> None:
    family, _, graph = compiled
    found = running(graph)
    # Grouped-query attention goes to heads and back: what only moves is left.
    moved = {name: found.pop(name) for name in ("reshape", "transpose") if name in found}
    assert moved == ({} if family in LATENT else {"reshape": 8, "transpose": 8})
    assert whole(graph) == (family in LATENT)
    assert found == {kind: sum(node.attrs["kind"] == kind for node in regions(graph)) for kind in found}
    assert found["embedding"] == found["angles"] == 1


def test_numbers_between_kernels_are_bf16(compiled: tuple[str, Traced, Graph]) -> None:
    _, _, graph = compiled
    for node in regions(graph):
        kind = node.attrs["kind"]
        for i, value in enumerate(node.inputs):
            moving = not all(isinstance(dim, int) for dim in value.shape)
            narrow = value.type.dtype == "bf16" or value.type.rank < 2
            assert not moving or narrow or value.type.dtype == "i64" or i in WIDE_OPERANDS[kind], (kind, i)
        for i, value in enumerate(node.values):
            wide = i in WIDE_RESULTS.get(kind, ()) or value in graph.outputs
            assert value.type.dtype in ("i64", "f32" if wide else "bf16", "bf16"), (kind, i)
    assert graph.outputs[0].type.dtype == "f32"
    assert {value.type.dtype for value in graph.outputs[1:]} == {"bf16"}


def test_every_kernel_has_its_sizes(compiled: tuple[str, Traced, Graph]) -> None:
    _, _, graph = compiled
    kernels = {str(kernel_of(node)) for node in regions(graph)}
    assert {f"embedding v={models.VOCAB} n=32 bf16", f"linear k=32 n={models.VOCAB} wide=1 bf16"} <= kernels
    assert any(kernel.startswith("angles f=") for kernel in kernels)
    assert all(kernel.endswith("bf16") for kernel in kernels if not kernel.startswith(("rms", "rot", "ang")))
    assert sum("wide=1" in kernel for kernel in kernels) == 1


def test_the_span_follows_the_mask(compiled: tuple[str, Traced, Graph]) -> None:
    _, _, graph = compiled
    (angles,) = (node for node in regions(graph) if node.attrs["kind"] == "angles")
    mask, ids, _ = angles.inputs
    assert (mask.node.attrs["name"], ids.node.attrs["name"]) == ("attention_mask", "input_ids")
    for node in regions(graph):
        if place := SPANNED.get(node.attrs["kind"]):
            assert (node.inputs[place - 1], node.inputs[place]) == (mask, angles[2])
