"""Schedules for products of e4m3 codes (kernels/fp8.py)."""

from __future__ import annotations

from collections.abc import Mapping

from ..base import Kernel, Rule, Schedule, Space
from .fp8_tiles import DEPTH, VECTOR, inline, most_registers, registers, shared_bytes, tiles_of
from .sm import Sm

# Tokens that a bucket's default is for. Parts of k that fill the GPU at 128 would take two turns at 256.
GROUPED: Mapping[int, int] = {1: 1, 5: 8, 17: 32, 65: 128, 257: 2048}
DENSE: Mapping[int, int] = {**GROUPED, 65: 256}
RESERVED = 1 << 10  # shared memory that a multiprocessor keeps of each block for itself
SHORT = 1536  # k at most for blocks that hold all of it and still have most weights on the way
OTHER = 44  # registers of a multiplying thread beside its sums
CHOICES: Mapping[str, tuple[int, ...]] = {
    "t_rows": (16, 32, 48, 64, 96, 128),
    "t_cols": (64, 128, 192),
    "t_stages": (2, 3, 4, 5, 6, 7, 8, 10, 12),
    "t_split": (1, 2, 4, 8),
    "t_blocks": (1, 2, 3, 4),
    "t_once": (0, 1),
    "t_inline": (0, 1),
}


def space(kernel: Kernel, sm: Sm) -> Space:
    """Schedules of a product of codes.

    t_rows, t_cols: the tile of the result, tokens, and columns of gate and of up each; t_stages: of 128 of k
    on the way; t_split: parts of k that are summed by a second function; t_blocks at once on a
    multiprocessor; t_once: 1 lets weights leave the L2 cache before all else; t_inline: 1 has each block
    round the tokens of its tile, all of k, and no step do so before.
    """
    grouped = "experts" in dict(kernel.dims)
    typical = GROUPED if grouped else DENSE
    by_bucket = {first: default(kernel, tokens, sm) for first, tokens in typical.items()}
    return Space(
        choices={**CHOICES, **({"t_split": (1,)} if grouped else {"t_inline": (0,)})},
        default=by_bucket[1],
        known=neighbours(kernel, by_bucket[1], sm),
        rules=rules(kernel, sm),
        larger={first: schedule for first, schedule in by_bucket.items() if first > 1},
    )


def rules(kernel: Kernel, sm: Sm) -> tuple[Rule, ...]:
    """Why a schedule cannot run."""

    def sizes(schedule: Schedule) -> str | None:
        k = kernel["k"]
        return f"k={k} is no multiple of {VECTOR}, so rows are not of whole 16 bytes" if k % VECTOR else None

    def memory(schedule: Schedule) -> str | None:
        t = tiles_of(kernel, schedule, sm)
        needed, most = shared_bytes(t, inline(schedule)), room(t.per_sm, sm)
        return f"{needed} bytes of shared memory; {most} are there" if needed > most else None

    def fits(schedule: Schedule) -> str | None:
        t = tiles_of(kernel, schedule, sm)
        needed, has = registers(t) + OTHER, most_registers(t, sm)
        return f"{needed} registers a thread; {has} are there" if needed > has else None

    def parts(schedule: Schedule) -> str | None:
        t = tiles_of(kernel, schedule, sm)
        empty = (t.split - 1) * t.chunks >= t.steps
        return f"k={t.k} has too few steps of {DEPTH} for {t.split} parts" if empty else None

    return sizes, memory, fits, parts


def room(per_sm: int, sm: Sm) -> int:
    """Bytes of shared memory of each of so many blocks on a multiprocessor."""
    return (sm.shared_bytes + RESERVED) // per_sm - RESERVED


def default(kernel: Kernel, tokens: int, sm: Sm) -> Schedule:
    """A good schedule for calls of about so many tokens."""
    sizes, paired = dict(kernel.dims), kernel.kind.endswith("swiglu")
    rows = -(-tokens * sizes.get("share", 1) // sizes.get("experts", 1))
    # For a few tokens one step more takes longer than to round them in every block, while weights come.
    whole = kernel.kind == "grouped_combine" and tokens == 1 and kernel["k"] <= SHORT
    if whole:
        shape = tile(16, 128, 2)
    elif "experts" in sizes:
        shape = tile_of_experts(paired, rows)
    elif rows > 40:
        shape = tile(96 if paired else 128, 128, 1)
    else:
        shape = tile(64 if rows > 24 else 32 if rows > 6 else 16, 64 if paired else 128, 2)
    parts = split(kernel, shape, tokens, sm)
    schedule = {**shape, "t_stages": 2, "t_split": parts, "t_once": 0, "t_inline": int(whole)}
    return {**schedule, "t_stages": deepest(kernel, schedule, sm)}


def tile_of_experts(paired: bool, rows: int) -> Mapping[str, int]:
    """For so many rows of each expert: what was fastest on an H200. While weights are what takes the time,
    they are read once, by blocks with as much on the way as fits.
    """
    if rows > 40:
        return tile(64, 128, 1 if paired else 2)
    if rows > 6:
        return tile(64 if rows > 24 else 32, 64 if paired else 128, 2)
    return tile(16, 64, 2 if paired else 3)


def tile(rows: int, cols: int, blocks: int) -> Mapping[str, int]:
    """Of a schedule, what a block computes at once and how many blocks a multiprocessor has."""
    return {"t_rows": rows, "t_cols": cols, "t_blocks": blocks}


def neighbours(kernel: Kernel, point: Schedule, sm: Sm) -> list[Schedule]:
    """What is tried first: wider and narrower tiles, more and fewer blocks, as deep as fits."""
    changes: tuple[Schedule, ...] = (
        *({"t_cols": cols, "t_blocks": blocks} for cols in (64, 128) for blocks in (1, 2, 3)),
        {"t_rows": 32},
        {"t_once": 1},
        *(({"t_inline": 1 - int(point["t_inline"])},) if "experts" in dict(kernel.dims) else ()),
    )
    deep = ({**point, **change, "t_stages": 2} for change in changes)
    points = [{**each, "t_stages": deepest(kernel, each, sm)} for each in deep]
    return [each for each in points if each != point and not any(rule(each) for rule in rules(kernel, sm))]


def split(kernel: Kernel, shape: Mapping[str, int], tokens: int, sm: Sm) -> int:
    """Parts of k, so that most multiprocessors have a tile; 4 steps of k at least are worth a part."""
    if "experts" in dict(kernel.dims):
        return 1
    width = kernel["n"] // (2 if kernel.kind.endswith("swiglu") else 1)
    tiles = -(-width // shape["t_cols"]) * -(-tokens // shape["t_rows"])
    steps = -(-kernel["k"] // DEPTH)
    most = min(sm.multiprocessors // tiles, steps // 4)
    good = [parts for parts in CHOICES["t_split"] if parts <= most]
    whole = [parts for parts in good if (parts - 1) * -(-steps // parts) < steps]
    return max(whole, default=1)


def deepest(kernel: Kernel, schedule: Schedule, sm: Sm) -> int:
    """The most stages that fit."""
    most = room(int(schedule["t_blocks"]), sm)
    fit = [
        stages
        for stages in CHOICES["t_stages"]
        if shared_bytes(tiles_of(kernel, {**schedule, "t_stages": stages}, sm), inline(schedule)) <= most
    ]
    return max(fit, default=2)
