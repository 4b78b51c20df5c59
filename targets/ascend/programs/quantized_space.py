"""Schedules of products of int8 with int8.

bm, bn: the tile of the result, columns of the gate and of what it is for; bk of k are multiplied at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from math import ceil

from ...base import BUCKETS, Kernel, Rule, Schedule, Space
from ..soc import L0C, L1, Soc

# Tokens that a bucket's default is for.
TYPICAL: Mapping[int, int] = dict(zip(BUCKETS, (1, 4, 16, 64, 256, 2048)))
HEIGHTS, WIDTHS = (16, 32, 64, 128), (32, 64, 96, 128, 160, 192, 256)
DEPTHS, DEEPEST = (128, 256, 512), 1024
# Of a cube core, about: bytes that it loads and products that it makes in a cycle; cycles that a step and a
# tile take beside; how much longer loads are that have to be filled up with zeros. They rank schedules only.
LOADED, MULTIPLIED, A_STEP, A_TILE, FILLED = 64, 8192, 64, 2000, 1.5


def space(kernel: Kernel, soc: Soc) -> Space:
    """Tiles that fit the cube's memories; by default those with which the cores are done first."""
    rules = (deep(kernel), high(kernel))
    choices = {"bm": HEIGHTS, "bn": WIDTHS, "bk": depths(kernel["k"])}
    every = (dict(zip(choices, values)) for values in itertools.product(*choices.values()))
    possible = [each for each in every if not any(rule(each) for rule in rules)]
    best = {
        first: min(possible, key=lambda schedule: cycles(kernel, schedule, tokens, soc))
        for first, tokens in TYPICAL.items()
    }
    return Space(choices, best[BUCKETS[0]], rules=rules, larger=best)


def halves(kernel: Kernel) -> int:
    """2 for a weight that is a gate's and, behind it, what the gate is for."""
    return 1 + kernel.kind.endswith("swiglu")


def depths(k: int) -> tuple[int, ...]:
    """Those that divide k, so that nothing has to be filled up, and some that suit every k."""
    return tuple(sorted({*DEPTHS, *(depth for depth in range(128, DEEPEST + 1, 32) if k % depth == 0)}))


def deep(kernel: Kernel) -> Rule:
    """Whether L1 holds what is multiplied and what comes next."""

    def rule(schedule: Schedule) -> str | None:
        bm, bn, bk = (int(schedule[name]) for name in ("bm", "bn", "bk"))
        used = 2 * (bm + halves(kernel) * bn) * bk
        return f"both sides, twice, are {used} bytes; L1 has {L1}" if used > L1 else None

    return rule


def high(kernel: Kernel) -> Rule:
    """Whether L0C holds the sums."""

    def rule(schedule: Schedule) -> str | None:
        used = 4 * int(schedule["bm"]) * int(schedule["bn"]) * halves(kernel)
        return f"sums are {used} bytes; L0C has {L0C}" if used > L0C else None

    return rule


def cycles(kernel: Kernel, schedule: Mapping[str, int], tokens: int, soc: Soc) -> float:
    """About how long the core with most tiles takes, so that schedules can be compared."""
    sizes, parts = dict(kernel.dims), halves(kernel)
    bm, bn, bk = (schedule[name] for name in ("bm", "bn", "bk"))
    experts = min(sizes.get("experts", 1), tokens * sizes.get("share", 1))
    rows = ceil(tokens * sizes.get("share", 1) / experts)
    tiles = experts * ceil(rows / bm) * ceil(kernel["n"] / parts / bn)
    load = (min(bm, rows) + parts * bn) * bk / LOADED * (FILLED if kernel["k"] % bk else 1)
    step = max(load, bm * parts * bn * bk / MULTIPLIED) + A_STEP
    return ceil(tiles / soc.cubes) * (ceil(kernel["k"] / bk) * step + A_TILE)
