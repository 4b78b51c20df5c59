"""Caches in pages, as servers keep them: many sequences of different length in one pool.

    before   past [B,h,L,d] -> append(past, rows, mask) -> c; readers of c
    after    pool [P,h,R,d] -> append_pages(pool, rows, mask, pages) -> p; readers of gather_pages(p, pages)

The caller holds the pools and says by `pages` [B, L/R], the last input, where each sequence's rows are. What
is computed does not change: targets have kernels that read pages where they lie, or gather them first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..compiler.ir import Array, Graph, Miss, Node, P, Value, plain
from ..compiler.ops.cache import APPEND
from ..compiler.ops.pages import APPEND_PAGES, GATHER_PAGES, in_pages
from ..compiler.ops.sources import INPUT

MAKES = (APPEND_PAGES, GATHER_PAGES)
TABLE = "pages"  # the input's name


@dataclass(frozen=True, slots=True)
class PageCaches:
    """The pass: every input that is read only to append rows to it, in pages of so many rows."""

    rows: int
    rounds: ClassVar[bool] = True  # numbers of pools are elsewhere, so that they are not compared

    def __call__(self, graph: Graph, misses: list[Miss]) -> Graph:
        users = graph.users()
        caches = {past: users[past][0] for past in graph.inputs if is_cache(past, users.get(past, []))}
        if not caches:
            return graph
        batch, _, room, _ = next(iter(caches)).shape
        table = INPUT(name=TABLE, dtype="i64", shape=(batch, plain(room / self.rows)))
        pools = {past: self.pool(past) for past in caches}
        written = {node[0]: appended(node, pools[past], table) for past, node in caches.items()}
        result = graph.replace({old: GATHER_PAGES(new, table) for old, new in written.items()})
        outputs = [
            new.node.inputs[0] if old in written else new for old, new in zip(graph.outputs, result.outputs)
        ]
        inputs = (*(pools.get(value, value) for value in graph.inputs), table)
        return Graph(inputs, tuple(outputs), graph.names)

    def pool(self, past: Value) -> Value:
        """What takes the place of a cache among the inputs, of its name."""
        _, heads, _, width = past.shape
        return INPUT(name=past.node.attrs["name"], dtype=past.type.dtype, shape=(P, heads, self.rows, width))

    def fed(self, graph: Graph, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """The feeds of a graph before the pass as those after it, pages in some order."""
        caches = [name for name in feeds if name.startswith("past.")]
        if not caches:
            return feeds
        batch, _, room, _ = feeds[caches[0]].shape
        each = -(-room // self.rows)
        pages = np.random.default_rng(0).permutation(batch * each).reshape(batch, each)
        return {**feeds, **{name: self.paged(feeds[name], pages) for name in caches}, TABLE: pages}

    def paged(self, cache: Array, pages: Array) -> Array:
        """The pool of just these pages that holds a cache."""
        _, heads, room, width = cache.shape
        spare = pages.shape[1] * self.rows - room
        whole = np.pad(cache, ((0, 0), (0, 0), (0, spare), (0, 0)))
        return in_pages(whole, pages, np.zeros((pages.size, heads, self.rows, width), cache.dtype))


def is_cache(past: Value, readers: list[Node]) -> bool:
    """Whether all that happens to an input is that rows are appended to it."""
    return [node.op for node in readers] == [APPEND] and readers[0].inputs[0] == past


def appended(node: Node, pool: Value, table: Value) -> Value:
    """The pool after the step."""
    _, rows, mask = node.inputs
    return APPEND_PAGES(pool, rows, mask, table, origin=node.origin)
