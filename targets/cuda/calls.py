"""Calls of a kernel as they are timed: operands in the GPU's memory, cold or warm as a model finds them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ...compiler.ir import Array
from .. import cases_bf16 as cases
from .. import sample
from ..base import Kernel
from ..buffers import MARGIN, Buffer, placed
from ..cases import Draw, operands
from ..cases_paged import sample_of
from ..paged import unpaged
from .buffers import copy_of
from .driver import Driver

POINTS = (1, 4, 16, 64, 256, 1024, 4096)  # rows, one count in each bucket of tokens at least
# Of kernels with a cache: one new token for each of so many sequences, and the first tokens of one sequence.
DECODE, PREFILL = (1, 4, 16, 64, 128), (256, 1024)
ENDS = ("last_norm", "choose_token")  # kinds that have a row for each text
CACHED = 4096  # tokens in the cache when one more is decoded
READING = ("latent_attention", "mla_decode", "attention")  # kinds that read all of a cache
SCALES = {"latent_attention": (8,), "mla_decode": (5,)}  # operands, of latents in fp8
BETWEEN = 2.5  # times the cache in front of memory is read before the same weights again
SMALL = 64 << 10  # bytes of weights that need not be cold: a launch takes longer
SHORTEST, LONGEST = 1e-3, 1e-2  # seconds of a run: its start is lost in that, and nobody waits for long
MOST = 1024  # calls of a run
PART = 0.4  # of the free memory that copies may take


@dataclass(frozen=True, slots=True)
class Setting:
    """At what a kernel is timed: rows and how they choose experts, or new tokens and what is in a cache."""

    rows: int
    draw: Draw | None = None
    sequences: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """Operands and results of one call."""

    operands: Sequence[Buffer]
    results: Sequence[Buffer]


class Calls:
    """Calls of one kernel with all that they read; benches of its schedules share them."""

    def __init__(self, gpu: Driver, kernel: Kernel, l2_bytes: int, margin: int = MARGIN) -> None:
        self.gpu, self.kernel, self.l2_bytes, self.margin = gpu, kernel, l2_bytes, margin
        self.sample = sample_of(kernel)
        self.examples: dict[str, cases.Example] = {}  # what was checked before
        self._copies: list[Mapping[int, Buffer]] = []
        self._made: dict[tuple[str, bool], list[Call]] = {}

    @cached_property
    def weights(self) -> Mapping[int, Buffer]:
        """Weights by operand, in the GPU's memory."""
        return {i: self._placed(w) for i, w in self.sample.weights.items()}

    def copies(self, count: int) -> Sequence[Mapping[int, Buffer]]:
        """The weights that often, or as often as memory allows."""
        self._copies = self._copies or [self.weights]
        size = sum(each.size for each in self.weights.values())
        room = int(PART * self.gpu.free_bytes() / max(size, 1))
        for _ in range(min(count - len(self._copies), room)):
            self._copies.append({i: copy_of(self.gpu, each) for i, each in self.weights.items()})
        return self._copies[:count]

    def at(self, name: str, setting: Setting, cold: bool, seconds: Callable[[Call], float]) -> list[Call]:
        """The calls of one run at a point of that name; seconds: times one, to know how many make a run."""
        if (name, cold) not in self._made:
            self._made[name, cold] = self._run(setting, cold, seconds)
        return self._made[name, cold]

    def _run(self, setting: Setting, cold: bool, seconds: Callable[[Call], float]) -> list[Call]:
        every = operands(self._feeds(setting, 0.0), self.sample.weights)
        results = [Buffer(self.gpu, *each, self.margin) for each in results_of(self.kernel, every)]
        shared = {i: self._placed(each) for i, each in enumerate(every) if i not in self.weights}
        part = self._part(every)
        wanted, took = self._turns(shared, part, cold), seconds(self._call(shared, self.weights, results))
        count = min(MOST, max(math.ceil(SHORTEST / took), min(wanted, math.ceil(LONGEST / took))))
        apart = max(1, int(1 / part))  # calls that find experts of their own in one copy
        copies = self.copies(math.ceil(min(wanted, count) / apart))
        caches = self._cache_copies(shared, min(wanted, count))
        chosen = [{}, *(self._chosen(setting, i / apart) for i in range(1, min(apart, wanted, count)))]
        return [
            self._call(
                {**shared, **caches[i % len(caches)], **chosen[i % len(chosen)]},
                copies[i // len(chosen) % len(copies)],
                results,
            )
            for i in range(count)
        ]

    def _call(
        self, feeds: Mapping[int, Buffer], weights: Mapping[int, Buffer], results: Sequence[Buffer]
    ) -> Call:
        every, places = {**feeds, **weights}, cases.in_place(unpaged(self.kernel))
        written = [every[places[i]] if i in places else each for i, each in enumerate(results)]
        return Call([every[i] for i in range(len(every))], written)

    def _turns(self, shared: Mapping[int, Buffer], part: float, cold: bool) -> int:
        """How many calls read weights and caches of their own before one reads the first ones again."""
        read = part * sum(each.size for each in self.weights.values())
        read += sum(shared[i].size for i in self._caches)
        return math.ceil(BETWEEN * self.l2_bytes / read) if cold and read > SMALL else 1

    def _placed(self, array: Array) -> Buffer:
        return placed(self.gpu, array, self.margin)

    def _feeds(self, setting: Setting, part: float) -> list[Array]:
        draw = sample.Turned(setting.draw, part) if setting.draw and self._choosing else None
        return self.sample.feeds(setting.rows, draw=draw, **(setting.sequences or {}))

    @property
    def _choosing(self) -> bool:
        """Whether its operands say which part of the weights it reads."""
        return self.sample.case.routed

    def _chosen(self, setting: Setting, part: float) -> dict[int, Buffer]:
        """The operands that say so, for other experts."""
        every = operands(self._feeds(setting, part), self.sample.weights)
        return {i: self._placed(each) for i, each in enumerate(every) if each.dtype == np.int64}

    def _part(self, every: Sequence[Array]) -> float:
        """The part of the weights that a call reads."""
        if not self._choosing:
            return 1.0
        ends = every[2]
        return float(np.count_nonzero(np.diff(ends, prepend=0)) / len(ends))

    @property
    def _caches(self) -> Sequence[int]:
        """The operands that are caches and are read as a whole: they lie before the weights."""
        kind = unpaged(self.kernel).kind
        scales = SCALES.get(kind, ()) if self.kernel.cache == "fp8" else ()
        return (*cases.CACHES[kind], *scales) if kind in READING else ()

    def _cache_copies(self, shared: Mapping[int, Buffer], count: int) -> Sequence[Mapping[int, Buffer]]:
        first = {i: shared[i] for i in self._caches}
        size = sum(each.size for each in first.values())
        room = int(PART * self.gpu.free_bytes() / size) if size else 0
        copied = range(min(count - 1, room))
        return [first, *({i: copy_of(self.gpu, each) for i, each in first.items()} for _ in copied)]


@lru_cache(maxsize=1)  # a search goes kernel by kernel, and weights are big
def calls_of(gpu: Driver, kernel: Kernel, l2_bytes: int, margin: int = MARGIN) -> Calls:
    """Those of the kernel that is being tried."""
    return Calls(gpu, kernel, l2_bytes, margin)


def settings(kernel: Kernel, draws: Mapping[str, Draw]) -> dict[str, Setting]:
    """The points that a kernel is timed at, by their names."""
    if unpaged(kernel).kind in cases.CACHED:
        decode = {
            f"m={batch} decode": Setting(1, sequences={"batch": batch, "cached": CACHED}) for batch in DECODE
        }
        prefill = {
            f"m={rows} prefill": Setting(rows, sequences={"batch": 1, "cached": 0}) for rows in PREFILL
        }
        return decode | prefill
    points = DECODE if kernel.kind in ENDS else POINTS
    each = {
        f"m={rows} {word}".strip(): Setting(rows, draw) for rows in points for word, draw in draws.items()
    }
    alone = f"m=1 {next(iter(draws))}".strip()  # the experts of a single token are as many wherever they are
    return {name: each[name] for name in each if each[name].rows > 1 or name == alone}


def results_of(kernel: Kernel, every: Sequence[Array]) -> list[tuple[Sequence[int], object]]:
    """Shape and type of each result of a call with these operands."""
    shapes = SHAPES[unpaged(kernel).kind](dict(kernel.dims), [each.shape for each in every])
    return list(zip(shapes, sample_of(kernel).dtypes(len(shapes))))


Sizes = Mapping[str, int]
Shapes = Sequence[Sequence[int]]


def rows_of(x: Shapes) -> int:
    """Rows of operand 0."""
    return math.prod(x[0][:-1])


SHAPES: Mapping[str, Callable[[Sizes, Shapes], Shapes]] = {
    "embedding": lambda d, x: [(*x[0], d["n"])],
    "angles": lambda d, x: [(*x[1], d["f"]), (*x[1], d["f"]), (x[0][0], 2)],
    "rms_norm": lambda d, x: [(*x[0][:-1], d["n"])],
    "last_norm": lambda d, x: [(x[0][0], 1, d["n"])],
    "choose_token": lambda d, x: [x[1], x[1]],
    "linear": lambda d, x: [(*x[0][:-1], d["n"])],
    "linear_add": lambda d, x: [(*x[0][:-1], d["n"])],
    "linear_swiglu": lambda d, x: [(*x[0][:-1], d["n"] // 2)],
    "route": lambda d, x: [
        (rows_of(x) * (d["chosen"] + d["shared"]),),
        (d["n"] + d["shared"],),
        (rows_of(x), d["chosen"] + d["shared"]),
    ],
    "top_k_gate": lambda d, x: [(rows_of(x), d["k"] + d["shared"])] * 2,
    "permute": lambda d, x: [(x[0][0] * d["k"],), (d["experts"],)],
    "grouped_swiglu": lambda d, x: [(x[1][0], d["n"] // 2)],
    "grouped_combine": lambda d, x: [(rows_of(x) // d["share"], d["n"])],
    "latent_write": lambda d, x: [x[4], x[5], x[8]] if len(x) > 8 and len(x[8]) == 4 else [x[4], x[5]],
    "latent_attention": lambda d, x: [(*x[0][:2], d["heads"] * d["value"])],
    "mla_decode": lambda d, x: [(*x[0][:3], d["latent"])],
    "append": lambda d, x: [x[0]],
    "rotary": lambda d, x: [x[0]],
    "attention": lambda d, x: [(*x[0][:3], d["dv"])],
}
