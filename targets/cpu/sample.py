"""What a kernel is tried on: operands, what must come out, and weights where a model would find them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from ...compiler.interpret import interpret
from ...compiler.ir import DTYPES, Array, Graph
from ...compiler.ops.sources import INPUT
from .. import cases, cases_attention, cases_quantized, sample
from ..base import Kernel, Schedule
from ..cases import Draw, Feeds, operands
from ..regions import BITS
from . import memory
from .lower import layout_of

MOST_BYTES = 256 << 20  # of one weight: fewer experts are tried than a model has, where all would be more
RUN_BYTES = 8 << 20  # of weights that the calls of one run read, about: a millisecond
LONG_BYTES = 32 << 20  # beyond, reading them hides that threads had to wake up
MOST_CALLS, MOST_TURNS = 12, 64
FEW_ROWS = 32  # for one weight; beyond, arithmetic hides whether it was in cache
MANY_ROWS = 128  # beyond, it also hides that threads had to wake up
PAGE = 4096

Call = Sequence[Array]
CASES = {**cases.CASES, **cases_attention.CASES}


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of runs: the weights of each call, and by what part of all experts its choice is turned."""

    weights: Sequence[Mapping[int, Call]]
    turned: float = 0.0


class Sample:
    """What a kernel is tried on: operands and what must come out, the same for each of its schedules."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.case = kernel, case_of(kernel)
        self.turn = itertools.count()  # benches of one layout share copies: what one reads is warm for all
        self._examples: dict[int, tuple[Feeds, Feeds]] = {}
        self._packed: dict[str, list[Mapping[int, Call]]] = {}

    @cached_property
    def weights(self) -> Mapping[int, Array]:
        """Random weights by operand, not packed; those that a layout is for have the kernel's dtype."""
        weights = self.case.weights(self.kernel, np.random.default_rng(0))
        if self.kernel.weights != "bf16":
            return weights
        stored = {i: weights[i].astype(DTYPES["bf16"]) for i in layout_of(self.kernel, {})}
        return {**weights, **stored}

    def feeds(self, rows: int, seed: int = 0, draw: Draw | None = None) -> list[Array]:
        """Random operands that are no weights, for that many rows; draw: how tokens choose experts."""
        more = [draw] if draw and self.case.routed else []
        return self.case.feeds(self.kernel, rows, np.random.default_rng((seed, rows)), *more)

    def wanted(self, feeds: Feeds) -> Feeds:
        """What must come out."""
        return self.case.reference(self.kernel, operands(feeds, self.weights))

    def example(self, rows: int) -> tuple[Feeds, Feeds]:
        """Feeds for that many rows, and what must come out; computed once."""
        if rows not in self._examples:
            feeds = self.feeds(rows)
            self._examples[rows] = feeds, self.wanted(feeds)
        return self._examples[rows]

    def packed(self, schedule: Schedule, copies: int = 1) -> Sequence[Mapping[int, Call]]:
        """The weights in the layout of a schedule, as often; what was packed before for an equal layout."""
        layout = repr(layout_of(self.kernel, schedule))
        if layout not in self._packed:
            self._packed[layout] = [pack(self.kernel, schedule, self.weights)]
        made = self._packed[layout]
        while len(made) < copies:
            made.append({i: [aligned(part) for part in parts] for i, parts in made[0].items()})
        return made[:copies]

    def rounds(self, schedule: Schedule, rows: int, cold: bool, threads: int) -> list[Round]:
        """The weights of each turn: as many rounds as it takes until weights are where a model finds them."""
        one = self.packed(schedule)[0]
        size = sum(part.nbytes for parts in one.values() for part in parts)
        dims = dict(self.kernel.dims)
        each = rows * dims.get("share", 1) / dims.get("experts", 1)  # rows for one weight
        if each > FEW_ROWS or not size:
            return [Round([one] * (1 if rows > MANY_ROWS else 2))]  # the first call wakes the threads
        read = size * min(1.0, each)
        least = 1 if read > LONG_BYTES else 2
        calls = min(MOST_CALLS, max(least, math.ceil(RUN_BYTES / read)))
        turns = min(MOST_TURNS, 1 + math.ceil(memory.between_uses(cold, threads) / (calls * read)))
        apart = max(1, int(size / (calls * read)))  # rounds that find experts of their own in one copy
        own = min(calls, math.ceil(calls * read / size))
        copies = min(own * math.ceil(turns / apart), max(own, memory.most_copies(size)))
        made = self.packed(schedule, copies)
        sets = [made[first : first + own] for first in range(0, copies - own + 1, own)]
        some = [Round(list(each), part / apart) for each in sets for part in range(apart)]
        return [replace(round, weights=(list(round.weights) * calls)[:calls]) for round in some[:turns]]


def case_of(kernel: Kernel) -> cases.Case:
    """How to try a kernel of its kind."""
    case = CASES[kernel.kind]
    return replace(case, tolerance=cases_quantized.TOLERANCE) if kernel.weights in BITS else case


@lru_cache(maxsize=1)  # a search goes kernel by kernel, and weights are big
def sample_of(kernel: Kernel) -> Sample:
    """The sample of the kernel that is being tried."""
    return Sample(kernel)


def affordable(kernel: Kernel) -> Kernel:
    """The kernel with as many experts as fit MOST_BYTES: their number shapes no code."""
    return sample.affordable(kernel, MOST_BYTES)


def pack(kernel: Kernel, schedule: Schedule, weights: Mapping[int, Array]) -> Mapping[int, Call]:
    """Weights in the layout of the schedule, by the same expressions that pack a model's."""
    layouts = layout_of(kernel, schedule)
    return {i: laid_out(layouts[i], w) if i in layouts else [w] for i, w in weights.items()}


def laid_out(layout: Any, w: Array) -> Call:
    """One weight packed."""
    value = INPUT(name="w", dtype=next(name for name in DTYPES if DTYPES[name] == w.dtype), shape=w.shape)
    parts = interpret(Graph((value,), layout.pack(value)), {"w": w}, {})
    return [aligned(part) for part in parts.values()]


def aligned(array: Array) -> Array:
    """A copy that starts at a page, as weights do in a mapped file; numpy starts anywhere in a cache line."""
    memory = np.empty(array.nbytes + PAGE, np.uint8)
    start = -memory.ctypes.data % PAGE
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def spread(feeds: Feeds, packed: Mapping[int, Call]) -> Call:
    """All operands of the packed kernel. Places count operands before packing."""
    single: list[Call] = [[feed] for feed in feeds]
    return [array for parts in operands(single, packed) for array in parts]
