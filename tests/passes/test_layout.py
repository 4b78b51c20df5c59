"""Packed weights are the same weights, and a region with packed operands the same region."""

from __future__ import annotations

import numpy as np
import pytest
from layers import EDGES, assert_same, decoder

from moec.compiler.interpret import evaluate
from moec.compiler.ir import Graph, Node
from moec.compiler.ops.layout import PACK
from moec.compiler.ops.region import REGION
from moec.compiler.ops.shape import CONCAT
from moec.compiler.ops.sources import CONSTANT, INPUT
from moec.compiler.pipeline import run
from moec.passes.layout import HeadPanels, Layout, Panels, is_weight, pack
from moec.targets.cpu.lower import layout_of
from moec.targets.cpu.pipeline import PASSES
from moec.targets.regions import kernel_of

SCHEDULE = {"nr": 4}


def regions(graph: Graph, kind: str = "") -> list[Node]:
    return [node for node in graph if node.op is REGION and kind in ("", node.attrs["kind"])]


def packed(graph: Graph) -> Graph:
    return pack(graph, {node: layout_of(kernel_of(node), SCHEDULE) for node in regions(graph)})


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (Panels(4, 8), (8, 5)),
        (Panels(4, 7), (7, 5)),
        (Panels(4, 6), (3, 6, 5)),
        (Panels(4, 10, halves=2), (10, 5)),
        (Panels(4, 6, halves=2), (3, 6, 5)),
        (HeadPanels(4, heads=2, nope=3, value=5), (16, 7)),
    ],
    ids=str,
)
def test_unpack_undoes_pack(layout: Layout, shape: tuple[int, ...]) -> None:
    w = CONSTANT(name="w", dtype="f32", shape=shape)
    data = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    parts = layout.pack(w)
    assert all(is_weight(part) for part in parts)
    np.testing.assert_array_equal(evaluate(layout.unpack(parts), {"w": data}), data)


def test_the_three_forms_of_a_latent_projection() -> None:
    w = CONSTANT(name="w", dtype="f32", shape=(16, 7))
    parts = HeadPanels(4, heads=2, nope=3, value=5).pack(w)
    assert [part.shape for part in parts] == [(2, 2, 3, 4), (2, 1, 7, 4), (2, 2, 7, 4)]
    data = np.arange(16 * 7, dtype=np.float32).reshape(16, 7)
    to_latent = evaluate(parts[0], {"w": data})
    np.testing.assert_array_equal(
        to_latent[1, 0, :, 2], data[8:11, 2]
    )  # head 1, latent 2: its three key rows


@pytest.mark.parametrize("latent", [True, False])
def test_a_packed_model_gives_the_same_numbers(latent: bool) -> None:
    before, _ = run(decoder(2, latent=latent), PASSES)
    after = packed(before)
    assert [node.attrs["kind"] for node in regions(after)] == [node.attrs["kind"] for node in regions(before)]
    for sizes in EDGES:
        assert_same(before, after, **sizes)


def test_packing_changes_no_kernel() -> None:
    before, _ = run(decoder(), PASSES)
    after = packed(before)
    assert list(map(kernel_of, regions(before))) == list(map(kernel_of, regions(after)))


def test_every_matrix_that_a_kernel_reads_is_packed() -> None:
    after = packed(run(decoder(), PASSES)[0])
    for node in regions(after):
        assert all(v.op is PACK for v in node.inputs if is_weight(v) and v.type.rank > 1)
    (attention,) = regions(after, "latent_attention")
    assert [value.op is PACK for value in attention.inputs] == [False] * 6 + [True] * 3


def test_what_has_no_layout_stays() -> None:
    graph, _ = run(decoder(), PASSES)
    assert pack(graph, {node: {} for node in regions(graph)}) == graph


def test_a_weight_is_made_of_constants_only() -> None:
    w = CONSTANT(name="w", dtype="f32", shape=(4, 4))
    x = INPUT(name="x", dtype="f32", shape=(4, 4))
    assert is_weight(CONCAT(w, w, axis=0))
    assert not is_weight(CONCAT(w, x, axis=0))
