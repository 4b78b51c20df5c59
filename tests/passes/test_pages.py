"""Caches in pages: the same numbers wherever pages lie, and which kernels read them there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from layers import EDGES, decoder, feeds_of, running, weights_of

from moec.compiler.interpret import interpret
from moec.compiler.ir import B, Graph, L, S, T
from moec.compiler.ops.cache import APPEND, FILLED
from moec.compiler.ops.elementwise import ADD
from moec.compiler.ops.pages import APPEND_PAGES, GATHER_PAGES
from moec.compiler.ops.sources import INPUT
from moec.compiler.pipeline import Check, run
from moec.compiler.text import read, show
from moec.passes.caches import NarrowCaches
from moec.passes.pages import PageCaches
from moec.passes.precision import ALL_BF16, Precision
from moec.targets.bf16 import FORMATS, PASSES
from moec.targets.cpu.pipeline import PASSES as CPU_PASSES
from moec.targets.paged import left_over

PAGE = PageCaches(4)
MASK = INPUT(name="attention_mask", dtype="i64", shape=(B, S + T))
PAST = INPUT(name="past.0.key", dtype="f32", shape=(B, 2, L, 8))
ROWS = INPUT(name="rows", dtype="f32", shape=(B, 2, T, 8))


def paged(*outputs: Any) -> Graph:
    return PAGE(Graph((MASK, PAST, ROWS), outputs, tuple(f"o{i}" for i in range(len(outputs)))), [])


def test_paged_text(golden: Callable[[str], None]) -> None:
    present = APPEND(PAST, ROWS, MASK)
    graph = paged(present, FILLED(present, MASK))
    golden(show(graph))
    assert read(show(graph)) == graph


def test_what_is_read_otherwise_stays() -> None:
    present = APPEND(PAST, ROWS, MASK)
    assert paged(present, ADD(PAST, PAST)).inputs == (MASK, PAST, ROWS)


@pytest.mark.parametrize("latent", [True, False])
@pytest.mark.parametrize("edge", EDGES, ids=str)
def test_no_number_changes(latent: bool, edge: Mapping[str, int]) -> None:
    graph = decoder(2, latent=latent)
    feeds, weights, after = feeds_of(graph, **edge), weights_of(graph), PAGE(graph, [])
    wanted, given = interpret(graph, feeds, weights, double=True), PAGE.fed(graph, feeds)
    found = interpret(after, given, weights, double=True)
    np.testing.assert_array_equal(found["logits"], wanted["logits"])
    room = feeds["past.0.key"].shape[2]
    for name in wanted.keys() - {"logits"}:
        cache = GATHER_PAGES.reference(found[name], given["pages"])[:, :, :room]
        np.testing.assert_array_equal(cache, wanted[name])


def test_any_order_of_pages_gives_the_same() -> None:
    graph = decoder()
    feeds, weights = feeds_of(graph, room=11), weights_of(graph)
    given, after = PAGE.fed(graph, feeds), PAGE(graph, [])
    order = np.random.default_rng(1).permutation(given["pages"].size)
    moved = {
        name: array[np.argsort(order)] if name.startswith("past.") else array for name, array in given.items()
    }
    moved["pages"] = order[given["pages"]]
    assert not np.array_equal(moved["pages"], given["pages"])
    one, other = (interpret(after, each, weights, double=True)["logits"] for each in (given, moved))
    np.testing.assert_array_equal(one, other)


def test_kernels_read_pages_of_latents_where_they_lie() -> None:
    passes = (NarrowCaches(), PageCaches(64), *PASSES, Precision(ALL_BF16, FORMATS, "bf16"))
    graph, _ = run(decoder(2), passes)
    found = running(graph)
    assert found["latent_write_paged"] == found["latent_attention_paged"] == 2
    assert not left_over(graph)
    assert "latent_attention" not in found
    others, _ = run(decoder(2, latent=False), passes)
    assert {node.op for node in left_over(others)} == {APPEND_PAGES, GATHER_PAGES}


def test_a_target_without_such_kernels_gathers_pages() -> None:
    graph, _ = run(decoder(2), (PAGE, *CPU_PASSES))
    found = running(graph)
    assert found["latent_attention"] == 2
    assert [node.op for node in left_over(graph)].count(APPEND_PAGES) == 4


def test_check_follows_the_feeds() -> None:
    graph = decoder()
    feeds, weights = feeds_of(graph), weights_of(graph)
    run(graph, (PAGE, *PASSES[:-1]), check=Check(weights, feeds))
