"""Caches in pages: what the ops mean, in standard operators too, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from moec.compiler.interpret import interpret
from moec.compiler.ir import B, Graph, L, P, S, T, TypeMismatch
from moec.compiler.ops.cache import APPEND
from moec.compiler.ops.pages import APPEND_PAGES, GATHER_PAGES, NOWHERE, in_pages
from moec.compiler.ops.sources import INPUT
from moec.compiler.text import read, show

ROWS = 4  # of a page
RANDOM = np.random.default_rng(5)


def graph(heads: int = 2, width: int = 3) -> Graph:
    """Rows written, and the cache that then is there."""
    pool = INPUT(name="pool", dtype="f32", shape=(P, heads, ROWS, width))
    rows = INPUT(name="rows", dtype="f32", shape=(B, heads, T, width))
    mask = INPUT(name="mask", dtype="i64", shape=(B, S + T))
    pages = INPUT(name="pages", dtype="i64", shape=(B, L / ROWS))
    after = APPEND_PAGES(pool, rows, mask, pages)
    return Graph((pool, rows, mask, pages), (after, GATHER_PAGES(after, pages)), ("pool", "cache"))


def feeds(
    batch: int = 2, heads: int = 2, room: int = 3, new: int = 3, cached: int = 4
) -> dict[str, np.ndarray]:
    """Pages in random order, more than are used."""
    pages = RANDOM.permutation(batch * room + 2)[: batch * room].reshape(batch, room)
    return {
        "pool": RANDOM.standard_normal((batch * room + 2, heads, ROWS, 3)).astype(np.float32),
        "rows": RANDOM.standard_normal((batch, heads, new, 3)).astype(np.float32),
        "mask": np.ones((batch, cached + new), np.int64),
        "pages": pages,
    }


def expanded(found: Graph) -> Graph:
    """The same in simpler ops."""

    def step(node, inputs):  # type: ignore[no-untyped-def]
        return node.op.expand(*inputs, **node.attrs) if node.op in (APPEND_PAGES, GATHER_PAGES) else None

    return found.rewrite(step)


@pytest.mark.parametrize(("heads", "new", "cached"), [(1, 1, 8), (2, 3, 4), (2, 12, 0), (1, 0, 5)])
@pytest.mark.parametrize("simpler", [False, True])
def test_pages_hold_what_a_cache_does(heads: int, new: int, cached: int, simpler: bool) -> None:
    given = feeds(heads=heads, new=new, cached=cached)
    found = interpret(expanded(graph(heads)) if simpler else graph(heads), given, {})
    before = GATHER_PAGES.reference(given["pool"], given["pages"])
    wanted = APPEND.reference(before, given["rows"], given["mask"])
    np.testing.assert_array_equal(found["cache"], wanted, strict=True)
    np.testing.assert_array_equal(found["pool"], in_pages(wanted, given["pages"], given["pool"]), strict=True)


def test_pages_of_nobody_stay() -> None:
    given = feeds()
    found = interpret(graph(), given, {})["pool"]
    others = np.setdiff1d(np.arange(len(given["pool"])), given["pages"])
    assert len(others) == 2
    np.testing.assert_array_equal(found[others], given["pool"][others])


@pytest.mark.parametrize("wrong", [-1, 8, NOWHERE])
def test_a_page_that_no_pool_has(wrong: int) -> None:
    given = feeds()
    given["pages"][1, 2] = wrong
    with pytest.raises(ValueError, match=f"there is no page {wrong}: the pool has 8, from 0 to 7"):
        interpret(graph(), given, {})
    with pytest.raises(IndexError):
        interpret(expanded(graph()), given, {})


def test_rows_beyond_the_pages() -> None:
    with pytest.raises(ValueError, match="13 rows do not fit into 3 pages of 4"):
        interpret(graph(), feeds(new=13, cached=0), {})


def test_types() -> None:
    found = graph()
    assert [str(value.type) for value in found.outputs] == ["f32[P, 2, 4, 3]", "f32[B, 2, L, 3]"]
    pool, _, mask, pages = found.inputs
    for wrong, said in (
        ((pool, mask), "must have 4 axes|dtypes"),
        ((pool, INPUT(name="r", dtype="f32", shape=(B, 3, T, 3))), "its shape must be"),
    ):
        with pytest.raises(TypeMismatch, match=said):
            APPEND_PAGES(*wrong, mask, pages)
    with pytest.raises(TypeMismatch, match="the table of pages is f32"):
        GATHER_PAGES(pool, INPUT(name="p", dtype="f32", shape=(B, 3)))
    with pytest.raises(TypeMismatch, match="their number must be known"):
        GATHER_PAGES(INPUT(name="q", dtype="f32", shape=(P, 2, L, 3)), pages)


def test_text_and_back() -> None:
    assert read(show(graph())) == graph()
