"""Kernels over pages tried alone: what is right is what the same kernel without pages gives.

Pages lie in a pool in random order. Some are of nobody, and hold NaN where the kernel only reads, as do rows
that no token has reached. All pages of nothing but padding are one, of such contents too. Where the number of
a page is none of the pool, a sequence that reads it is NaN, and a row that belongs there is written nowhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compiler.ir import Array
from ..compiler.ops.pages import GATHER_PAGES, in_pages
from .base import Kernel
from .cases import Draw, Feeds
from .cases_bf16 import IN_PLACE, MASKS, Sample, caches, unread_in
from .paged import PAGE, is_paged, unpaged

SPARE = 3  # pages of nobody
MOST = 1 << 20  # no pool here has so many pages
LOST = {1: -1, 2: MOST + 1, 3: -(1 << 40), 4: 1 << 32}  # numbers of no page; the last is 0 in 32 bits


def sample_of(kernel: Kernel) -> Sample:
    """What a kernel is tried on, with pages or without."""
    return PagedSample(kernel) if is_paged(kernel) else Sample(kernel)


class PagedSample(Sample):
    """The caches of a kernel's calls in pages, with their table behind all other operands."""

    def __init__(self, kernel: Kernel, seed: int = 0) -> None:
        super().__init__(unpaged(kernel), seed)

    def feeds(
        self, rows: int, wider: int = 0, draw: Draw | None = None, lost: int = 0, **setting: int
    ) -> list[Array]:
        """The operands that are no weights. lost: a number of LOST that the last sequence has for a page."""
        feeds = super().feeds(rows, wider, draw, **setting)
        kind, random = self.kernel.kind, np.random.default_rng((self.seed, rows, 1))
        span, (batch, _, room, _) = feeds[MASKS[kind] + 1], feeds[caches(self.kernel)[0]].shape
        pages = shuffled(random, batch, -(-room // PAGE), span[:, 0] // PAGE)
        for i in caches(self.kernel):
            feeds[i] = paged(feeds[i], pages, unread_in(self.kernel, feeds[i]))
        if lost:
            row = span[-1, 1] - 1 if kind in IN_PLACE else span[-1, 0]  # the last, or the first
            pages[-1, row // PAGE] = LOST[lost]
        return [*feeds, pages]

    def wanted(self, feeds: Feeds) -> list[Array]:
        """What must come out, in float64; of pages, pools."""
        *plain, given = feeds
        lost = (given < 0) | (given > MOST)
        pools = [plain[i] for i in caches(self.kernel)]
        pages = np.where(lost, len(pools[0]) - 1, given)  # the page of padding
        for i, pool in zip(caches(self.kernel), pools):
            readable = pool.copy()
            readable[-1] = 0  # the reference multiplies padding by 0
            plain[i] = GATHER_PAGES.reference(readable, pages)
        results = super().wanted(plain)
        if self.kernel.kind not in IN_PLACE:
            results[0][lost.any(axis=1)] = np.nan
            return results
        return [rewritten(pool, new, pages) for new, pool in zip(results, pools)]


def shuffled(random: Any, batch: int, count: int, empty: Array) -> Array:
    """A table i64 [batch, count] of pages in random order; the first `empty` of a sequence are the last."""
    pages = random.permutation(batch * count + SPARE - 1)[: batch * count].reshape(batch, count)
    padding = np.arange(count) < empty[:, None]
    return np.where(padding, batch * count + SPARE - 1, pages).astype(np.int64)


def paged(cache: Array, pages: Array, unread: float) -> Array:
    """A pool with the rows of a cache; what is of nobody is `unread`."""
    _, heads, room, width = cache.shape
    spare = ((0, 0), (0, 0), (0, pages.shape[1] * PAGE - room), (0, 0))
    pool = np.full((pages.size + SPARE, heads, PAGE, width), unread, cache.dtype)
    whole = in_pages(np.pad(cache, spare, constant_values=unread), pages, pool)
    whole[-1] = unread
    return whole


def rewritten(pool: Array, cache: Array, pages: Array) -> Array:
    """The pool with the rows of a cache, but for its last page, that of padding."""
    result = in_pages(cache, pages, pool.astype(cache.dtype))
    result[-1] = pool[-1]
    return result
