"""Schedules for products of many rows (kernels/gemm.py): the knobs that begin with t_."""

from __future__ import annotations

from collections.abc import Mapping

from ..base import Kernel, Rule, Schedule, Space
from .gemm_tiles import registers, tiles_of
from .sm import Sm

KINDS = ("linear", "linear_add", "linear_swiglu", "grouped_swiglu", "grouped_combine")
# Tokens that a bucket's default is for. Parts of k that fill the GPU at 128 would take two turns at 256.
GROUPED: Mapping[int, int] = {1: 1, 5: 8, 17: 32, 65: 128, 257: 2048}
DENSE: Mapping[int, int] = {**GROUPED, 65: 256}
RESERVED = 1 << 10  # shared memory that a multiprocessor keeps of each block for itself
OTHER = 40  # registers of a multiplying thread beside its sums
CHOICES: Mapping[str, tuple[int, ...]] = {
    "t_rows": (16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 256),
    "t_cols": (64, 128, 192, 256),
    "t_depth": (64, 128),
    "t_stages": (2, 3, 4, 5, 6, 7, 8),
    "t_swap": (0, 1),
    "t_split": (1, 2, 4, 8),
    "t_blocks": (1, 2, 3, 4),
    "t_once": (0, 1),
    "t_queue": (0, 1),
}


def space(kernel: Kernel, sm: Sm) -> Space:
    """Schedules of a product of many rows.

    t_rows, t_cols: the tile of the result, columns of gate and of up each; t_depth: of k at once; t_stages of
    that on the way; t_swap: 1 puts the weight on wgmma's left, whose tiles are 64 tall, for few rows an
    expert; t_split: parts of k that are summed by a second function; t_blocks at once on a multiprocessor;
    t_once: 1 lets weights leave the L2 cache before all else; t_queue: 1 has blocks of a grouped product take
    tiles as they come free, for which a function more sets a count to zero.
    """
    grouped = kernel.kind.startswith("grouped")
    typical = GROUPED if grouped else DENSE
    by_bucket = {first: default(kernel, tokens, sm) for first, tokens in typical.items()}
    return Space(
        choices={**CHOICES, **({"t_split": (1,)} if grouped else {"t_queue": (0,)})},
        default=by_bucket[1],
        rules=rules(kernel, sm),
        larger={first: schedule for first, schedule in by_bucket.items() if first > 1},
    )


def rules(kernel: Kernel, sm: Sm) -> tuple[Rule, ...]:
    """Why a schedule cannot run."""

    def sizes(schedule: Schedule) -> str | None:
        t = tiles_of(kernel, schedule, sm)
        odd = next((f"{name}={size}" for name, size in (("k", t.k), ("n", t.width)) if size % 8), None)
        return f"{odd} is not a multiple of 8, so rows are not of whole 16 bytes" if odd else None

    def tiles(schedule: Schedule) -> str | None:
        t = tiles_of(kernel, schedule, sm)
        tall, name = (t.cols, "t_cols") if t.swap else (t.rows, "t_rows")
        if tall % 64 or tall > 192:
            return f"{name}={tall} is not 64, 128 or 192, what one to three warpgroups multiply"
        return None

    def memory(schedule: Schedule) -> str | None:
        t = tiles_of(kernel, schedule, sm)
        most = (sm.shared_bytes + RESERVED) // t.per_sm - RESERVED
        return f"{t.shared_bytes} bytes of shared memory; {most} are there" if t.shared_bytes > most else None

    def fits(schedule: Schedule) -> str | None:
        t = tiles_of(kernel, schedule, sm)
        has = registers(t.groups, t.per_sm, sm)
        needed = t.sums + OTHER
        return f"{needed} registers a thread; {has} are there" if needed > has else None

    def parts(schedule: Schedule) -> str | None:
        t = tiles_of(kernel, schedule, sm)
        empty = (t.split - 1) * t.chunks >= t.steps
        return f"k={t.k} has too few steps of {t.depth} for {t.split} parts" if empty else None

    return sizes, tiles, memory, fits, parts


def default(kernel: Kernel, tokens: int, sm: Sm) -> Schedule:
    """A good schedule for calls of about so many tokens."""
    sizes, paired = dict(kernel.dims), kernel.kind.endswith("swiglu")
    width = sizes["n"] // (2 if paired else 1)
    rows = -(-tokens * sizes.get("share", 1) // max(sizes.get("experts", 1), 1))
    if rows > 40:
        # Columns are halved where whole tiles would leave multiprocessors idle.
        few = "experts" not in sizes and -(-tokens // 128) * -(-width // 256) < sm.multiprocessors
        shape = {"t_rows": 128, "t_cols": 128 if paired or few else 256, "t_swap": 0, "t_blocks": 1}
    else:
        # Memory-bound: a weight is read once, by blocks with as much on the way as fits.
        tall = 64 if rows > 24 else 32 if rows > 6 else 16
        shape = {"t_rows": tall, "t_cols": 64 if paired else 128, "t_swap": 1, "t_blocks": 2}
    schedule = {**shape, "t_depth": 64, "t_stages": 2, "t_split": split(kernel, shape, width, tokens, sm)}
    schedule |= {"t_once": 0, "t_queue": 0}
    return {**schedule, "t_stages": deepest(kernel, schedule, sm)}


def split(kernel: Kernel, shape: Mapping[str, int], width: int, tokens: int, sm: Sm) -> int:
    """Parts of k, so that most multiprocessors have a tile; 8 steps of k at least are worth a part."""
    if "experts" in dict(kernel.dims):
        return 1
    tiles = -(-width // shape["t_cols"]) * -(-tokens // shape["t_rows"])
    steps = -(-kernel["k"] // 64)
    most = min(sm.multiprocessors // tiles, steps // 8)
    good = [parts for parts in CHOICES["t_split"] if parts <= most]
    whole = [parts for parts in good if (parts - 1) * -(-steps // parts) < steps]
    return max(whole, default=1)


def deepest(kernel: Kernel, schedule: Schedule, sm: Sm) -> int:
    """The most stages that fit."""

    def bytes_of(stages: int) -> int:
        return tiles_of(kernel, {**schedule, "t_stages": stages}, sm).shared_bytes

    most = (sm.shared_bytes + RESERVED) // int(schedule["t_blocks"]) - RESERVED
    return max((stages for stages in CHOICES["t_stages"] if bytes_of(stages) <= most), default=2)
