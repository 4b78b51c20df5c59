"""What to feed a kernel that is tried on its own, and what must come out, in numpy and double precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..compiler.ir import Array
from . import cases_quantized
from .base import Kernel
from .regions import BITS
from .routing import even

T = TypeVar("T")
Random = np.random.Generator
Feeds = Sequence[Array]
# random, tokens, experts, experts of a token -> i64 [tokens, experts of a token]
Draw = Callable[[Random, int, int, int], Array]


def no_weights(kernel: Kernel, random: Random) -> Mapping[int, Array]:
    """For kernels that read none."""
    return {}


@dataclass(frozen=True, slots=True)
class Case:
    """How to try one kind of kernel.

    feeds(kernel, rows, random): operands that are no weights, for that many rows of tokens;
    weights(kernel, random): the others by their place among all operands, not packed;
    reference(kernel, operands): outputs, float64 or int64.
    tolerance: the largest error of a float output, relative to its largest value.
    points: the counts of rows it is timed at, one in each bucket of tokens.
    routed: whether feeds take one more argument, a Draw: which experts tokens choose.
    """

    feeds: Callable[..., list[Array]]
    reference: Callable[[Kernel, Feeds], list[Array]]
    weights: Callable[[Kernel, Random], Mapping[int, Array]] = no_weights
    tolerance: float = 1e-5
    points: tuple[int, ...] = (1, 3, 8, 32, 128, 512)
    routed: bool = False


def operands(feeds: Sequence[T], weights: Mapping[int, T]) -> list[T]:
    """All operands, every weight in its place."""
    merged = list(feeds)
    for index in sorted(weights):
        merged.insert(index, weights[index])
    return merged


def uniform(random: Random, *shape: int) -> Array:
    """float32 between -1 and 1; big arrays repeat after a million values, which makes them fast to make."""
    values = random.random(min(int(np.prod(shape)), 1_000_003), np.float32) * np.float32(2) - np.float32(1)
    return np.resize(values, shape)


def swiglu(x: Array) -> Array:
    """x1 * sigmoid(x1) * x2 of the two halves of the columns."""
    first, second = np.split(x, 2, axis=-1)
    gated: Array = first / (1 + np.exp(-first)) * second
    return gated


def linear_feeds(kernel: Kernel, rows: int, random: Random) -> list[Array]:
    """x [rows, k] and, to add, a residual [rows, n]."""
    residual = [uniform(random, rows, kernel["n"])] if kernel.kind == "linear_add" else []
    return [uniform(random, rows, kernel["k"]), *residual]


def linear_weights(kernel: Kernel, random: Random) -> Mapping[int, Array]:
    """w [n, k]."""
    return weight(kernel, 1, random, kernel["n"], kernel["k"])


def weight(kernel: Kernel, place: int, random: Random, *shape: int) -> Mapping[int, Array]:
    """The weight that is operand `place`, as one or, in few bits, two operands."""
    if kernel.weights in BITS:
        return cases_quantized.weight(kernel, place, random, shape)
    return {place: uniform(random, *shape)}


def times(x: Array, w: Any) -> Array:
    """x times w transposed in float64, some rows of w at a time: they may be many."""
    rows = range(0, len(w), 4096)
    return np.concatenate(
        [x.astype(np.float64) @ w[r : r + 4096].astype(np.float64).T for r in rows], axis=-1
    )


def linear(kernel: Kernel, operands: Feeds) -> list[Array]:
    """x times w transposed, then swiglu or the residual."""
    x, w, *residual = cases_quantized.meant(kernel, 1, operands)
    y = times(x, w)
    if kernel.kind == "linear_swiglu":
        return [swiglu(y)]
    return [y + residual[0] if residual else y]


def routing(kernel: Kernel, tokens: int, random: Random, draw: Draw) -> list[Array]:
    """order and ends of tokens that each chose `share` different experts."""
    experts = kernel["experts"]
    chosen = draw(random, tokens, experts, kernel["share"]).reshape(-1)
    ends = np.cumsum(np.bincount(chosen, minlength=experts))
    return [np.argsort(chosen, kind="stable").astype(np.int64), ends.astype(np.int64)]


def grouped_weights(kernel: Kernel, random: Random) -> Mapping[int, Array]:
    """w [experts, n, k]."""
    return weight(kernel, 3, random, kernel["experts"], kernel["n"], kernel["k"])


def grouped_swiglu_feeds(kernel: Kernel, rows: int, random: Random, draw: Draw = even) -> list[Array]:
    """x [rows, k], order, ends."""
    return [uniform(random, rows, kernel["k"]), *routing(kernel, rows, random, draw)]


def grouped_combine_feeds(kernel: Kernel, rows: int, random: Random, draw: Draw = even) -> list[Array]:
    """y [rows * share, k], order, ends, weights [rows, share], and base [rows, n] if there is one."""
    share, n = kernel["share"], kernel["n"]
    base = [uniform(random, rows, n)] if kernel["base"] else []
    y = uniform(random, rows * share, kernel["k"])
    return [y, *routing(kernel, rows, random, draw), uniform(random, rows, share), *base]


def grouped(rows: Array, ends: Array, w: Any) -> Array:
    """Every row times the weight of its expert."""
    y = np.zeros((len(rows), w.shape[1]))
    first = 0
    for expert, end in enumerate(ends):
        if first < end:
            y[first:end] = times(rows[first:end], w[expert])
        first = end
    return y


def grouped_swiglu(kernel: Kernel, operands: Feeds) -> list[Array]:
    """Gathered rows times their experts, then swiglu."""
    x, order, ends, w = cases_quantized.meant(kernel, 3, operands)
    return [swiglu(grouped(x[order // kernel["share"]], ends, w))]


def grouped_combine(kernel: Kernel, operands: Feeds) -> list[Array]:
    """Rows times their experts, added up by token with its weights."""
    y, order, ends, w, weights, *base = cases_quantized.meant(kernel, 3, operands)
    out = base[0].astype(np.float64) if base else np.zeros((len(weights), kernel["n"]))
    scale = weights.reshape(-1)[order].astype(np.float64)
    np.add.at(out, order // kernel["share"], grouped(y, ends, w) * scale[:, None])
    return [out]


LINEAR = Case(linear_feeds, linear, linear_weights)
# kind -> its case; a new kind of kernel adds its line here.
CASES: Mapping[str, Case] = {
    "linear": LINEAR,
    "linear_add": LINEAR,
    "linear_swiglu": LINEAR,
    "grouped_swiglu": Case(grouped_swiglu_feeds, grouped_swiglu, grouped_weights, routed=True),
    "grouped_combine": Case(grouped_combine_feeds, grouped_combine, grouped_weights, routed=True),
}
