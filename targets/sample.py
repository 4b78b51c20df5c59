"""How kernels are tried, whatever they run on: at which points, by which routings, on how many experts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..compiler.ir import Array
from . import routing
from .base import Kernel
from .cases import Case, Draw, Random

ROWS_TO_CHECK = (1, 2, 3, 7, 33)
BYTES = {
    "f32": 4.0,
    "bf16": 2.0,
    "f16": 2.0,
    "int8": 34 / 32,
    "int8row": 1.0,
    "int4": 18 / 32,
    "fp8": 1 + 4 / 128**2,
}  # of a number of a weight, scales included


@dataclass(frozen=True, slots=True)
class Turned:
    """A draw whose experts are others: moved on by that part of all of them."""

    draw: Draw
    part: float

    def __call__(self, random: Random, tokens: int, experts: int, share: int) -> Array:
        """i64 [tokens, share], different experts in a row."""
        chosen: Array = (self.draw(random, tokens, experts, share) + int(self.part * experts)) % experts
        return chosen


def draws(kernel: Kernel, case: Case, trace: str) -> Mapping[str, Draw]:
    """How tokens choose experts at the points of a kernel, by the word that names it there.

    trace: a file of a recorded routing, for the kernels that it suits; the others have made-up ones.
    """
    if not case.routed:
        return {"": routing.even}
    found = recorded(trace) if trace else None
    if found and found.times(kernel):
        return {"trace": found.draw}
    return {"": routing.even, "zipf": routing.zipf}


@lru_cache(maxsize=1)
def recorded(path: str) -> routing.Trace:
    """A recorded routing; the driver has checked it."""
    return routing.read(Path(path))


def points(case: Case, draws: Mapping[str, Draw]) -> Sequence[str]:
    """Where a kernel is timed: "m=1", "m=64 zipf"."""
    # A single token's experts are as many wherever they are: there is one way to choose them.
    words = [(rows, word) for rows in case.points for word in draws]
    alone = next(iter(draws))
    return [f"m={rows} {word}".strip() for rows, word in words if rows > 1 or word == alone]


def point(name: str) -> tuple[int, str]:
    """The rows of a point, and the word for its routing."""
    rows, _, word = name.removeprefix("m=").partition(" ")
    return int(rows), word


def affordable(kernel: Kernel, most_bytes: int) -> Kernel:
    """The kernel with as many experts as fit so many bytes of weights."""
    dims = dict(kernel.dims)
    if "experts" not in dims or "n" not in dims:
        return kernel
    fit = int(most_bytes / (BYTES[kernel.weights] * dims["k"] * dims["n"]))
    dims["experts"] = min(dims["experts"], max(fit, dims["share"]))
    return replace(kernel, dims=tuple(dims.items()))


def unwritten(like: Array) -> Array:
    """An array of that shape in which every element that nobody writes will be noticed.

    float64, in which references compute, stands for the float32 of kernels.
    """
    if like.dtype.kind == "i":
        return np.full(like.shape, np.iinfo(like.dtype).min, like.dtype)
    return np.full(like.shape, np.nan, np.float32 if like.dtype == np.float64 else like.dtype)


def deviation(mine: Array, its: Array) -> float:
    """The largest difference over the largest value; NaN if there is a NaN, infinite if integers differ. Of
    codes the share that is a neighbour, for a number that lies between two; infinite if one is further off.
    """
    if its.dtype == np.int8:
        off = np.abs(mine.astype(np.int32) - its)
        return math.inf if off.max(initial=0) > 1 else float(off.sum() / max(off.size, 1))
    if its.dtype.kind == "i":
        return 0.0 if np.array_equal(mine, its) else math.inf
    mine, its = mine.astype(np.float64), its.astype(np.float64)
    return float(np.max(np.abs(mine - its), initial=0.0) / max(np.max(np.abs(its), initial=0.0), 1e-30))
