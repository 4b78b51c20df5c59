"""Schedules of products: bm, bn: the tile of the result, columns of the gate and of what it is for; bk of k
are multiplied at once. buffers: 2, so that what comes next is loaded meanwhile, or 1, which leaves room for
larger tiles. Simulated, one is never better: products of DeepSeek-V3 that were tried take 25 to 65 % longer.

The default for a count of tokens is the tile with which all cores are done first, by how much they have to
load and to multiply. Nothing in it was measured: rates are those of hivm/constants.py, and only rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from math import ceil

from ...base import BUCKETS, Kernel, Rule, Schedule, Space
from ..soc import L0C, L1, Soc

# Counts of tokens that a bucket's default is for.
TYPICAL: Mapping[int, Sequence[int]] = dict(
    zip(BUCKETS, ((1,), (4,), (16,), (64,), (256,), (512, 1024, 2048, 4096)))
)
HEIGHTS, WIDTHS = (16, 32, 64, 128), tuple(range(32, 257, 16))
DEPTHS, DEEPEST = (128, 256, 512), 1024
# Of a cube core, in a cycle: bytes into L1, into L0A, into L0B and out of L0C; bytes of sums of products.
INTO_L1, INTO_L0A, INTO_L0B, OUT = 80.0, 263.0, 131.0, 42.0
MULTIPLIED = 8192  # bytes of products' sides
A_ROW = 5.5  # cycles of a row that is loaded, at least
A_STEP, A_TILE = 60, 1500  # cycles that these take beside
FILLED = 1.5  # how much longer loads are that have to be filled up with zeros
L2_B_US = 5.2e6  # bytes a microsecond, for all cores


def space(kernel: Kernel, soc: Soc) -> Space:
    """Tiles that fit the cube's memories; by default those with which the cores are done first."""
    rules = (deep(kernel), high(kernel))
    choices = {"bm": HEIGHTS, "bn": widths(kernel), "bk": depths(kernel), "buffers": (2, 1)}
    tiles = itertools.product(*list(choices.values())[:3])
    every = ({**dict(zip(choices, tile)), "buffers": 2} for tile in tiles)
    possible = [each for each in every if not any(rule(each) for rule in rules)]
    best = {
        first: min(possible, key=lambda schedule: sum(cycles(kernel, schedule, m, soc) / m for m in counts))
        for first, counts in TYPICAL.items()
    }
    return Space(choices, best[BUCKETS[0]], list(best.values()), rules, larger=best)


def buffered(schedule: Schedule) -> Mapping[str, int]:
    """What the vendor's compiler is told, which takes two buffers by itself."""
    return {"enable-auto-multi-buffer": 0} if schedule["buffers"] == 1 else {}


def halves(kernel: Kernel) -> int:
    """2 for a weight that is a gate's and, behind it, what the gate is for."""
    return 1 + kernel.kind.endswith("swiglu")


def size_of(kernel: Kernel) -> int:
    """Bytes of a number that is multiplied."""
    return 1 if kernel.weights.startswith("int8") else 2


def widths(kernel: Kernel) -> tuple[int, ...]:
    """None of which the half would lie outside."""
    return tuple(width for width in WIDTHS if width < 2 * kernel["n"] // halves(kernel)) or WIDTHS[:1]


def depths(kernel: Kernel) -> tuple[int, ...]:
    """Those that divide k, so that nothing has to be filled up, and some that suit every k."""
    most, k = DEEPEST // size_of(kernel), kernel["k"]
    return tuple(sorted({*DEPTHS, *(depth for depth in range(128, most + 1, 32) if k % depth == 0)}))


def deep(kernel: Kernel) -> Rule:
    """Whether L1 holds what is multiplied and, with two buffers, what comes next."""

    def rule(schedule: Schedule) -> str | None:
        bm, bn, bk, buffers = (int(schedule[name]) for name in ("bm", "bn", "bk", "buffers"))
        used = buffers * (bm + halves(kernel) * bn) * bk * size_of(kernel)
        return f"{buffers} buffers of both sides are {used} bytes; L1 has {L1}" if used > L1 else None

    return rule


def high(kernel: Kernel) -> Rule:
    """Whether L0C holds the sums."""

    def rule(schedule: Schedule) -> str | None:
        used = 4 * int(schedule["bm"]) * int(schedule["bn"]) * halves(kernel)
        return f"sums are {used} bytes; L0C has {L0C}" if used > L0C else None

    return rule


def cycles(kernel: Kernel, schedule: Mapping[str, int], tokens: int, soc: Soc) -> float:
    """About how long the core with most tiles takes, and no less than the memory takes for the weights."""
    sizes, parts, size, k = dict(kernel.dims), halves(kernel), size_of(kernel), kernel["k"]
    bm, bn, bk = (schedule[name] for name in ("bm", "bn", "bk"))
    experts = min(sizes.get("experts", 1), tokens * sizes.get("share", 1))
    rows = ceil(tokens * sizes.get("share", 1) / experts)
    tiles = experts * ceil(rows / bm) * ceil(kernel["n"] / parts / bn)
    loaded = min(bm, rows) + parts * bn
    weights, whole = experts * kernel["n"] * k * size, tiles * loaded * k * size
    read = max(weights / (soc.read_gb_s * 1e3), whole / L2_B_US) * soc.mhz
    rate = min(INTO_L1, whole / read / min(tiles, soc.cubes))
    load = loaded * max(bk * size / rate, A_ROW) * (FILLED if k % bk else 1)
    feed = (bm / INTO_L0A + bn / INTO_L0B) * bk * size * parts
    work = max(feed, bm * parts * bn * bk * size / MULTIPLIED)
    tile = ceil(k / bk) * (max(load, work) + A_STEP) + parts * bm * bn * 4 / OUT + A_TILE
    # The first load has nothing to be hidden behind, nor has the last product.
    return max(read, ceil(tiles / soc.cubes) * tile) + min(load, work)
