"""Texts that grow together, and how their caches go in and out of onnxruntime."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .ir import DTYPES, Array
from .ops.pages import expect_pages
from .sampler import GREEDY, Sampler
from .session import ELEMENTS, copy, memory, run_options

if TYPE_CHECKING:
    from .runner import Artifact

CHUNK = 512  # tokens of a prompt that go through the model at once, so its logits stay small
PAGES = "pages"  # the input that says where rows are, of an artifact with caches in pages

Cache = Mapping[str, Any]  # by input name: arrays, or tensors in the memory of the target's kernels


class BadRequest(ValueError):
    """What was asked of an artifact does not fit it; the text says what would."""


class Texts:
    """Some texts that grow together: what is known of their earlier tokens, and how to go on."""

    def __init__(self, artifact: Artifact, batch: int, rows: int) -> None:
        self.artifact, self.batch, self.rows = artifact, batch, rows
        self.cache = artifact.cache(batch, rows)
        self.bound: dict[str, Any] = {}  # by result; binding 54 caches anew took 0.6 ms a token

    def step(self, ids: Array, mask: Array) -> Array:
        """Logits f32 [B, T, vocab] of new tokens i64 [B, T]; mask i64 [B, S+T] as for Artifact.step."""
        return self.run(ids, mask, "logits")

    def run(self, ids: Array, mask: Array, result: str, choose: Sampler = GREEDY) -> Array:
        """The result of a step, as Artifact.run names them."""
        if result not in self.bound:
            self.bound[result] = self.artifact.bound(self.cache)
        ran = self.artifact.run(ids, mask, self.bound[result], result=result, choose=choose)
        return np.asarray(ran.get_outputs()[-1].numpy())

    def last(self, ids: Array, mask: Array) -> Array:
        """Logits f32 [B, vocab] of the last of them; the tokens go in a chunk at a time."""
        for chunk, known in chunks(ids, mask):
            logits = self.step(chunk, known)
        return np.asarray(logits[:, -1])

    def next(self, ids: Array, mask: Array, choose: Sampler = GREEDY) -> Array:
        """The tokens i64 [B] that follow new ones, of which it sees some at a time, as `last` does."""
        if not self.artifact.chooses:
            return choose(self.last(ids, mask))
        *before, (end, known) = chunks(ids, mask)
        for chunk, its in before:
            self.run(chunk, its, "token")
        return self.run(end, known, "token", choose)


class Recorded(Texts):
    """Texts on a device, whose steps of one token are recorded once and then replayed.

    All that such a step reads and writes stays at one place: its mask is as wide as the caches have rows,
    with zeros after the new token.
    """

    count = itertools.count(1)  # of recordings in this process: each has its number

    def __init__(self, artifact: Artifact, batch: int, rows: int) -> None:
        super().__init__(artifact, batch, rows)
        facts, self.number = artifact.manifest.target, next(self.count)
        self.ids = memory(facts, (batch, 1), DTYPES["i64"])
        self.mask = memory(facts, (batch, rows), DTYPES["i64"])
        self.logits = memory(facts, (batch, 1, artifact.vocabulary), DTYPES["f32"])
        self.binding = artifact.session.io_binding()
        self.binding.bind_ortvalue_input("input_ids", self.ids)
        self.binding.bind_ortvalue_input("attention_mask", self.mask)
        bind(self.binding, self.cache)
        self.binding.bind_ortvalue_output("logits", self.logits)
        self.wished: dict[str, tuple[Array, Any]] = {}  # what was asked last, here and in the device's memory
        if artifact.chooses:
            self.token = memory(facts, (batch,), DTYPES["i64"])
            self.binding.bind_ortvalue_output("token", self.token)
            for name, wish in GREEDY.wishes(batch).items():
                self.wished[name] = wish, memory(facts, wish.shape, wish.dtype)
                copy(*self.wished[name])
                self.binding.bind_ortvalue_input(name, self.wished[name][1])

    def last(self, ids: Array, mask: Array) -> Array:
        """The same. Only the last token's logits are fetched: those before it go in by themselves."""
        for chunk, known in chunks(ids[:, :-1], mask[:, :-1]):
            self.feed(chunk, known)
        return np.asarray(self.step(ids[:, -1:], mask)[:, -1])

    def next(self, ids: Array, mask: Array, choose: Sampler = GREEDY) -> Array:
        """The same; logits stay where they are."""
        if not self.artifact.chooses:
            return choose(self.last(ids, mask))
        for chunk, known in chunks(ids[:, :-1], mask[:, :-1]):
            self.feed(chunk, known)
        self.replay(ids[:, -1:], mask, choose)
        token = np.empty(self.batch, np.int64)
        copy(self.token, token)
        return token

    def feed(self, ids: Array, mask: Array) -> None:
        """As step, with logits that nobody looks at."""
        tokens = 1 if self.artifact.chooses else ids.shape[1]
        shape = (self.batch, tokens, self.artifact.vocabulary)
        unseen = memory(self.artifact.manifest.target, shape, DTYPES["f32"])
        self.artifact.run(ids, mask, self.artifact.bound(self.cache), unseen)

    def fits(self, batch: int, rows: int) -> bool:
        """Whether others may take its place."""
        return (self.batch, self.rows) == (batch, rows)

    def step(self, ids: Array, mask: Array) -> Array:
        if ids.shape[1] > 1:
            return super().step(ids, mask)
        self.replay(ids, mask)
        logits = np.empty((self.batch, 1, self.artifact.vocabulary), np.float32)
        copy(self.logits, logits)
        return logits

    def replay(self, ids: Array, mask: Array, choose: Sampler = GREEDY) -> None:
        """A step of one token, whose results stay in the device's memory."""
        wide = np.zeros((self.batch, self.rows), np.int64)
        wide[:, : mask.shape[1]] = mask
        copy(np.ascontiguousarray(ids, np.int64), self.ids)
        copy(wide, self.mask)
        for name, wish in choose.wishes(self.batch).items() if self.wished else ():
            before, place = self.wished[name]
            if not np.array_equal(before, wish):
                copy(wish, place)
                self.wished[name] = wish, place
        self.artifact.session.run_with_iobinding(self.binding, run_options(self.number))


def bind(binding: Any, cache: Cache) -> None:
    """Each cache as what goes in and what comes out, so that it is written in place; a table only goes in."""
    if PAGES in cache:
        bind_table(binding, cache)
    for past, rows in cache.items():
        if past == PAGES:
            continue
        present = past.replace("past", "present", 1)
        if isinstance(rows, np.ndarray):
            place = ("cpu", 0, ELEMENTS[rows.dtype], rows.shape, rows.ctypes.data)
            binding.bind_input(past, *place)
            binding.bind_output(present, *place)
        else:
            binding.bind_ortvalue_input(past, rows)
            binding.bind_ortvalue_output(present, rows)


def bind_table(binding: Any, cache: Cache) -> None:
    """The table of a cache in pages. Raises BadRequest where an array says a page that no pool has; where it
    is in a device's memory, the kernels see to it: what would be read there is NaN, and nothing is written.
    """
    table = cache[PAGES]
    if not isinstance(table, np.ndarray):
        binding.bind_ortvalue_input(PAGES, table)
        return
    try:
        expect_pages(table, min(len_of(pool) for name, pool in cache.items() if name != PAGES))
    except ValueError as wrong:
        raise BadRequest(f"got a table of pages that does not fit: {wrong}") from None
    binding.bind_cpu_input(PAGES, np.ascontiguousarray(table, np.int64))


def len_of(pool: Any) -> int:
    """How many pages it has, be it an array or a tensor."""
    return len(pool) if isinstance(pool, np.ndarray) else int(pool.shape()[0])


def chunks(new: Array, mask: Array) -> Iterator[tuple[Array, Array]]:
    """New tokens i64 [B, T] some at a time, each with the mask [B, S+T] up to its end."""
    seen = mask.shape[1] - new.shape[1]
    for start in range(0, new.shape[1], CHUNK):
        chunk = new[:, start : start + CHUNK]
        yield chunk, mask[:, : seen + start + chunk.shape[1]]
