"""Kernels on bf16 or f16 tried alone: operands as a device gets them, and what must come out.

    sample = Sample(kernel)
    example = sample.example(rows=4)                                        # kinds that go row by row
    example = sample.example(rows=1, batch=3, cached=1000, padding=5, wider=64)    # kinds with a cache
    example.operands     every operand x0, x1, .. in the region's order, weights in their places
    example.results      y0, y1, ..: float64, or i64; NaN nowhere
    example.dtypes       what the kernel writes of each: bf16 (or f16), f32 or i64
    example.in_place     {1: 5}: result 1 is operand 5's memory; its first contents are the operand's
    example.errors(got)  of each result, relative to its largest value; infinite for integers that differ
    example.tolerance    the largest error that is right

rows: new tokens, of one sequence where there is a batch. cached: tokens in the cache before the step.
padding: columns that are 0 on the left of every other sequence's mask, at most cached. wider: columns of
zeros on the right of the mask, as in a step whose shapes do not change from token to token. Rows of a cache
that no token has reached hold NaN where the kernel only reads, so that reading one shows.

Operands are rounded to bf16 or f16 before the reference sees them: what is left is the kernel's own rounding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..compiler.ir import DTYPES, HALVES, Array
from ..compiler.ops.cache import POSITIONS, SPAN
from . import cases, cases_attention, cases_ends, cases_quantized
from .base import Kernel
from .bf16 import SPANNED, WIDE_OPERANDS, WIDE_RESULTS
from .cases import Case, Draw, Feeds, Random, operands, uniform
from .regions import BITS

F32, I64, U8 = DTYPES["f32"], DTYPES["i64"], DTYPES["u8"]

# Of the largest value. A bf16 result is off by 2**-9 of its own where all else is exact; of experts, also
# each product may be rounded before they are summed; a cache's reference is rounded too, to the next number
# perhaps; attention rounds what goes into its second product.
ROUNDED, SUMMED, ATTENDED, EXACT = 4e-3, 8e-3, 1.5e-2, 2e-5
FINER = 4  # by how much these are too large for f16, which has three bits more: rounding to bf16 would show
TOLERANCES: Mapping[str, float] = {
    **dict.fromkeys(("grouped_combine", "latent_write"), SUMMED),
    **dict.fromkeys(("latent_attention", "mla_decode", "attention"), ATTENDED),
    **dict.fromkeys(("route", "top_k_gate", "angles", "choose_token"), EXACT),
}
# kind -> the results that are an operand's memory.
IN_PLACE: Mapping[str, Mapping[int, int]] = {"latent_write": {0: 4, 1: 5}, "append": {0: 0}}
INTEGERS: Mapping[str, int] = {  # how many results are, the first
    "route": 2,
    "permute": 2,
    "top_k_gate": 1,
    "choose_token": 1,
}
CACHED = ("latent_write", "latent_attention", "mla_decode", "append", "attention", "angles")


def embedding_feeds(kernel: Kernel, rows: int, random: Random) -> list[Array]:
    """ids [rows]."""
    return [random.integers(0, kernel["v"], rows)]


def embedding_weights(kernel: Kernel, random: Random) -> Mapping[int, Array]:
    """The table [v, n]."""
    return {1: uniform(random, kernel["v"], kernel["n"])}


def embedding(kernel: Kernel, operands: Feeds) -> list[Array]:
    """A row of the table for each id."""
    ids, table = operands
    return [table[ids].astype(np.float64)]


def angles_feeds(
    kernel: Kernel, rows: int, random: Random, batch: int = 1, cached: int = 0, padding: int = 0
) -> list[Array]:
    """mask, ids [batch, rows], freqs [f]."""
    mask = cases_attention.attention_mask(batch, cached + rows, padding)
    freqs = np.power(np.float32(1e-4), np.arange(kernel["f"], dtype=np.float32) / np.float32(kernel["f"]))
    return [mask, random.integers(0, 100, (batch, rows)), freqs]


def angles(kernel: Kernel, operands: Feeds) -> list[Array]:
    """cos, sin and span; a position times a frequency is rounded to f32, as in the model."""
    mask, ids, freqs = operands
    turns = POSITIONS.reference(mask, ids)[..., None].astype(np.float32) * freqs.astype(np.float32)
    wide = turns.astype(np.float64)
    return [np.cos(wide), np.sin(wide), SPAN.reference(mask)]


def mla_feeds(
    kernel: Kernel, tokens: int, random: Random, batch: int = 1, cached: int = 0, padding: int = 0
) -> list[Array]:
    """Queries in the space of latents [batch, tokens, heads, latent+rope], latents, rotary keys, mask."""
    width, seen = kernel["latent"] + kernel["rope"], cached + tokens
    caches, scales = cases_attention.latent_caches(kernel, random, batch, seen)
    return [
        uniform(random, batch, tokens, kernel["heads"], width),
        *caches,
        cases_attention.attention_mask(batch, seen, padding),
        *scales,
    ]


def mla_decode(kernel: Kernel, operands: Feeds) -> list[Array]:
    """Mixed latents [batch, tokens, heads, latent]: attention with one head of keys, whose values are part
    of it.
    """
    q, latents, keys, mask = cases_attention.decoded(kernel, operands, 1)
    plain = Kernel("attention", (), kernel.reals)
    both = np.concatenate([latents, keys], axis=-1)
    (mixed,) = cases_attention.attention(plain, [q.swapaxes(1, 2), both, latents, mask])
    return [np.ascontiguousarray(mixed.swapaxes(1, 2))]


CASES: Mapping[str, Case] = {
    **cases.CASES,
    **cases_attention.CASES,
    **cases_ends.CASES,
    "embedding": Case(embedding_feeds, embedding, embedding_weights),
    "angles": Case(angles_feeds, angles),
    "mla_decode": Case(mla_feeds, mla_decode),
}


@dataclass(frozen=True, slots=True)
class Example:
    """One call of a kernel; the module says what each field is."""

    operands: Sequence[Array]
    results: Sequence[Array]
    dtypes: Sequence[Any]
    tolerance: float
    in_place: Mapping[int, int] = field(default_factory=dict)

    def errors(self, got: Sequence[Array]) -> list[float]:
        """The largest error of each result, relative to the largest value that it should have."""
        return [error(mine, wanted) for mine, wanted in zip(got, self.results, strict=True)]

    def wrong(self, got: Sequence[Array]) -> str | None:
        """A sentence on the first result that is off by more than the tolerance, or None."""
        for i, off in enumerate(self.errors(got)):
            if not off <= self.tolerance:
                return f"y{i} is off by {off:.2e} of its largest value, expected at most {self.tolerance:.1e}"
        return None


def error(got: Array, wanted: Array) -> float:
    """The largest error, relative to the largest value; infinite for other integers or another shape, and for
    NaN but where it is wanted.
    """
    if got.shape != wanted.shape:
        return float("inf")
    if wanted.dtype.kind == "i":
        return 0.0 if np.array_equal(got, wanted) else float("inf")
    if wanted.dtype.kind == "u":
        return coded_error(got, wanted)
    if not wanted.size:
        return 0.0
    if (lost := np.isnan(wanted)).any():
        return error(got[~lost], wanted[~lost]) if np.isnan(got[lost]).all() else float("inf")
    off = np.abs(got.astype(np.float64) - wanted)
    worst = float(off.max() / max(float(np.abs(wanted).max()), 1e-30))
    return worst if worst == worst else float("inf")


def coded_error(got: Array, wanted: Array) -> float:
    """Of e4m3 codes, the share that is another one: a neighbour, for a number that lies between two; infinite
    where one is further off, or no number.
    """
    mine, its = (np.where(each < 128, each, 128 - each.astype(np.int32)) for each in (got, wanted))
    numbers = (got & 127 != 127).all() or np.array_equal(got, wanted)
    near = numbers and int(np.abs(mine - its).max(initial=0)) <= 1
    return float(np.mean(mine != its)) if near and got.size else 0.0 if near else float("inf")


class Sample:
    """What a kernel is tried on. Its weights are made once, and are the same for all examples."""

    def __init__(self, kernel: Kernel, seed: int = 0) -> None:
        self.kernel, self.case, self.seed = kernel, CASES[kernel.kind], seed

    @property
    def half(self) -> Any:
        """What numbers are in that are not f32."""
        return DTYPES[self.kernel.half]

    @cached_property
    def weights(self) -> Mapping[int, Array]:
        """Weights by operand, as the device gets them: for products and tables halves or codes, else f32."""
        places = self.case.weights(self.kernel, np.random.default_rng(self.seed))
        narrow = self.kernel.weights in HALVES
        shifted = {spanned(self.kernel, i): w for i, w in places.items()}
        return {i: w.astype(self.half) if narrow and w.ndim > 1 else w for i, w in shifted.items()}

    def feeds(self, rows: int, wider: int = 0, draw: Draw | None = None, **setting: int) -> list[Array]:
        """The operands that are no weights."""
        if self.kernel.kind not in CACHED and (wider or setting):
            asked = ", ".join(setting) or "wider"
            raise ValueError(f"a {self.kernel.kind} kernel reads no mask, so there is no {asked}")
        source = np.random.default_rng((self.seed, rows))
        more = [draw] if draw and self.case.routed else []
        made = self.case.feeds(self.kernel, rows, source, *more, **setting)
        return self._as_given(self._spanned(made, wider))

    def _spanned(self, feeds: list[Array], wider: int) -> list[Array]:
        """With a wider mask, room for it in the caches, and the span after the mask."""
        place = mask_place(self.kernel)
        if place is None:
            return feeds
        mask = feeds[place]
        feeds[place] = np.pad(mask, ((0, 0), (0, wider)))
        for i in caches(self.kernel) if wider else ():
            unread = unread_in(self.kernel, feeds[i])
            feeds[i] = np.pad(feeds[i], ((0, 0), (0, 0), (0, wider), (0, 0)), constant_values=unread)
        if self.kernel.kind in SPANNED:
            feeds.insert(place + 1, SPAN.reference(mask))
        return feeds

    def _as_given(self, feeds: Sequence[Array]) -> list[Array]:
        """Floats in half the bytes, but for those that the kernel takes in f32."""
        places = iter(i for i in range(len(feeds) + len(self.weights)) if i not in self.weights)
        keep = wide_operands(self.kernel, self.weights)
        narrow = (feed.dtype == F32 and place not in keep for place, feed in zip(places, feeds))
        return [np.ascontiguousarray(feed.astype(self.half) if n else feed) for n, feed in zip(narrow, feeds)]

    def operands(self, feeds: Feeds) -> list[Array]:
        """All operands in their places."""
        return operands(feeds, self.weights)

    def wanted(self, feeds: Feeds) -> list[Array]:
        """What must come out, in float64 or i64."""
        plain = list(feeds)
        place = mask_place(self.kernel)
        if place is not None:
            if self.kernel.kind in SPANNED:
                del plain[place + 1]
            end = int(SPAN.reference(plain[place])[0, 1])
            plain[place] = plain[place][:, :end]
        weights = {unspanned(self.kernel, i): w for i, w in self.weights.items()}
        every = operands(plain, weights)
        exact = [array.astype(F32) if array.dtype == self.half else array for array in every]
        results = self.case.reference(self.kernel, exact)
        return [each.astype(np.float64) if each.dtype.kind not in "iu" else each for each in results]

    def dtypes(self, results: int) -> list[Any]:
        """What the kernel writes each result as."""
        kind, sizes = self.kernel.kind, dict(self.kernel.dims)
        integers = range(2, 3) if kind == "angles" else range(INTEGERS.get(kind, 0))
        wide = range(results) if sizes.get("wide") else WIDE_RESULTS.get(kind, ())
        found = [I64 if i in integers else F32 if i in wide else self.half for i in range(results)]
        return [U8, *found[1:]] if kind == "latent_write" and self.kernel.cache == "fp8" else found

    @property
    def tolerance(self) -> float:
        """The largest error that is right."""
        wide = dict(self.kernel.dims).get("wide")
        known = EXACT if wide else TOLERANCES.get(self.kernel.kind, ROUNDED)
        known /= FINER if self.kernel.half == "f16" and known != EXACT else 1
        return max(known, cases_quantized.TOLERANCE) if self.kernel.weights in BITS else known

    def example(self, rows: int, wider: int = 0, draw: Draw | None = None, **setting: int) -> Example:
        """A call with what must come out of it."""
        feeds = self.feeds(rows, wider, draw, **setting)
        results = self.wanted(feeds)
        return Example(
            self.operands(feeds), results, self.dtypes(len(results)), self.tolerance, in_place(self.kernel)
        )


# Where the mask is among the operands that are no weights.
MASKS: Mapping[str, int] = {
    "latent_write": 5,
    "latent_attention": 5,
    "mla_decode": 3,
    "append": 2,
    "attention": 3,
    "angles": 0,
}
CACHES: Mapping[str, tuple[int, ...]] = {
    "latent_write": (3, 4),
    "latent_attention": (3, 4),
    "mla_decode": (1, 2),
    "append": (0,),
    "attention": (1, 2),
}


def mask_place(kernel: Kernel) -> int | None:
    """Where the mask is among the operands that are no weights; None for a kernel without."""
    return MASKS.get(kernel.kind)


def caches(kernel: Kernel) -> tuple[int, ...]:
    """The places of caches among the operands that are no weights; scales of latents are the last."""
    return (*CACHES.get(kernel.kind, ()), *((-1,) if kernel.cache == "fp8" else ()))


def unread_in(kernel: Kernel, cache: Array) -> float:
    """What rows that nobody should read hold: NaN, of codes too, or what is kept where the kernel writes."""
    if cache.dtype == U8:
        return 0x30 if kernel.kind in IN_PLACE else 0x7F
    return 0.5 if kernel.kind in IN_PLACE else float("nan")


def in_place(kernel: Kernel) -> Mapping[int, int]:
    """The results that are an operand's memory, with its place among all operands."""
    more = {2: 8} if kernel.kind == "latent_write" and kernel.cache == "fp8" else {}
    return {**IN_PLACE.get(kernel.kind, {}), **more}


def wide_operands(kernel: Kernel, weights: Collection[int]) -> list[int]:
    """The operands in f32. Those behind a weight in codes stand one place further: it has scales."""
    coded = kernel.weights in BITS
    return [place + int(coded and place > min(weights)) for place in WIDE_OPERANDS.get(kernel.kind, ())]


def spanned(kernel: Kernel, place: int) -> int:
    """The place of a weight once a span is among the operands: only latent attention's is behind it."""
    return place + 1 if kernel.kind == "latent_attention" else place


def unspanned(kernel: Kernel, place: int) -> int:
    """The inverse."""
    return place - 1 if kernel.kind == "latent_attention" else place
