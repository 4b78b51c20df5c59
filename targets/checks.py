"""Which calls of a kernel on bf16 are compared with the reference, and what came of one, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ..compiler.ir import Array
from .base import Kernel, Schedules
from .cases import Random
from .cases_bf16 import CACHED, CASES, Example
from .paged import is_paged, unpaged
from .routing import zipf
from .sample import ROWS_TO_CHECK

TILED = (130, 300)  # rows to check besides: some tiles and a part of one


class Shaped(Protocol):
    """An operand, wherever its memory is."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def tokens(kernel: Kernel, operands: Sequence[Shaped]) -> int:
    """How many tokens a call is of: of rows of operand 0, a share of them each, or heads before tokens."""
    shape = operands[0].shape
    match unpaged(kernel).kind:
        case "grouped_combine":
            return shape[0] // kernel["share"]
        case "rotary" | "attention":
            return shape[0] * shape[2]
        case "mla_decode":
            return shape[0] * shape[1]
        case "append":
            return operands[1].shape[0] * operands[1].shape[2]
        case "angles":
            return int(np.prod(operands[1].shape))
        case "embedding" | "permute" | "top_k_gate" | "last_norm":
            return shape[0]
    return int(np.prod(shape[:-1]))


def checked(kernel: Kernel, schedules: Schedules) -> dict[str, dict[str, Any]]:
    """What is compared with the reference, by its name: arguments of Sample.example."""
    counts = sorted({*ROWS_TO_CHECK, *TILED, *schedules})
    if unpaged(kernel).kind in CACHED:
        every = [*with_caches(counts), *(with_padding() if is_paged(kernel) else ())]
        return {setting_name(**setting): setting for setting in every}
    found: dict[str, dict[str, Any]] = {f"{rows} rows": {"rows": rows} for rows in counts}
    if CASES[unpaged(kernel).kind].routed:
        found |= {f"{rows} rows on few experts": {"rows": rows, "draw": crowded} for rows in (7, 130)}
        found |= {f"{rows} rows by Zipf": {"rows": rows, "draw": zipf} for rows in (33, 300)}
    return found


def with_caches(counts: Sequence[int]) -> Iterator[dict[str, int]]:
    """New tokens of one or more sequences, after none or many, padded or with a mask that is wider."""
    for rows in counts:
        yield {"rows": rows, "batch": 1, "cached": 0, "padding": 0, "wider": 0}
        yield {"rows": rows, "batch": 1, "cached": 61, "padding": 0, "wider": 0}
    for rows, batch, cached in ((1, 3, 1000), (1, 20, 130), (5, 2, 77), (33, 3, 40), (70, 2, 0)):
        yield {"rows": rows, "batch": batch, "cached": cached, "padding": min(9, cached), "wider": 0}
        yield {"rows": rows, "batch": batch, "cached": cached, "padding": 0, "wider": 100}


def with_padding() -> Iterator[dict[str, int]]:
    """The same where whole pages are padding, or one is none of the pool."""
    for rows, batch, cached, padding in ((1, 3, 700, 150), (1, 5, 192, 128), (130, 2, 300, 200)):
        yield {"rows": rows, "batch": batch, "cached": cached, "padding": padding, "wider": 70}
    for lost, (rows, batch, cached) in enumerate(((1, 3, 300), (1, 40, 100), (130, 2, 100), (1, 1, 2000)), 1):
        yield {"rows": rows, "batch": batch, "cached": cached, "padding": 0, "wider": 0, "lost": lost}


def setting_name(rows: int, batch: int, cached: int, padding: int, wider: int, lost: int = 0) -> str:
    """Says it in words."""
    return "a lost page, " * bool(lost) + (
        f"{rows} new tokens of {batch} sequences after {cached}, {padding} of them padding, "
        f"mask {wider} wider"
    )


def crowded(random: Random, tokens: int, experts: int, share: int) -> Array:
    """The same experts for all tokens, the last ones: the others have no rows."""
    return np.tile(np.arange(experts - share, experts), (tokens, 1))


def where(example: Example, results: Sequence[Array]) -> str:
    """The first place of a result that is off by more than is right, and how many are."""
    for mine, wanted, dtype in zip(results, example.results, example.dtypes):
        got, exact = mine.astype(np.float64), wanted.astype(np.float64)
        most = example.tolerance * max(float(np.nanmax(np.abs(exact), initial=0.0)), 1e-30)
        off = ~(np.abs(got - exact) <= (0.0 if wanted.dtype.kind == "i" else most))
        if off.any():
            first = tuple(int(i) for i in np.argwhere(off)[0])
            nans = int(np.isnan(got).sum()) if np.dtype(dtype).kind != "i" else 0
            return (
                f"{int(off.sum())} of {off.size} are, {nans} of them NaN; the first at {list(first)} of "
                f"{list(off.shape)}: {got[first]:.6g} instead of {exact[first]:.6g}"
            )
    return "all else is right"
