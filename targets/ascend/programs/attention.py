"""Attention with grouped queries over caches of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from ...base import Kernel, Schedule, Space
from ..program import (
    BATCH,
    ONE,
    ROOM,
    SEEN,
    TOKENS,
    Argument,
    Builder,
    M,
    Number,
    Pointer,
    Size,
    Step,
    larger,
    sized,
    smaller,
    tiles,
)
from ..soc import L1, Soc
from .rows import power

MOST_PARTS = 32  # of a sequence's cache
SCORES, SUMS = 8192, 16384  # numbers of a tile's scores, and of its results, for which UB has room


def attention(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """x0 [batch, heads, tokens, dk] over x1 [batch, groups, room, dk] and x2 [.., dv], x3 the mask (unused),
    x4 span -> y0 [batch, heads, tokens, dv].

    Where a group's heads of a sequence's tokens are one tile, it has as few rows as may be, and more keys. In
    one launch where a sequence's cache is one part, else in two with scratch for parts.
    """
    share = kernel["heads"] // kernel["groups"]
    few = smaller(1, sized(lone(kernel)) // larger(TOKENS * share, 1))
    forms = (
        (lone(kernel), int(schedule["alone"]), few),
        (int(schedule["rows"]), int(schedule["block"]), ONE - few),
    )
    parts = sum((when * parts_of(kernel, rows, schedule, soc) for rows, _, when in forms), sized(0))
    apart, rows = parts - 1, M * kernel["heads"]
    scratch = {"s0": rows * parts * (2 * kernel["dv"]) * smaller(1, apart), "s1": rows * parts * 4}
    attend = partial(Step, "attention:attend", grid=(sized(soc.cubes), ONE, ONE), scratch=scratch)
    steps = [
        attend(operands(mixed, parts), constants(kernel, tall, block), when=when * taken)
        for tall, block, when in forms
        for mixed, taken in (("y0", ONE // parts), ("s0", apart))
    ]
    joined: dict[str, Argument] = {
        **{"mixed": Pointer("s0", "bf16"), "weights": Pointer("s1", "fp32"), "y": Pointer("y0", "bf16")},
        **{"rows": Number(rows), "parts": Number(parts)},
    }
    wide = {"LATENT": kernel["dv"], "WIDE": padded(kernel["dv"]), "MOST": MOST_PARTS}
    return [*steps, Step("latent:combine", joined, wide, (sized(soc.vectors), ONE, ONE), scratch, apart)]


def operands(mixed: str, parts: Size) -> dict[str, Argument]:
    """What the function is given, which writes to `mixed`."""
    types = {"q": ("x0", "bf16"), "keys": ("x1", "bf16"), "values": ("x2", "bf16"), "span": ("x4", "i64")}
    results = {"mixed": (mixed, "bf16"), "weights": ("s1", "fp32")}
    sizes: dict[str, Size | str] = {
        "batch": BATCH,
        "tokens": TOKENS,
        "room": ROOM,
        "parts": parts,
        "scale": "scale",
    }
    return {
        **{name: Pointer(port, type_) for name, (port, type_) in (types | results).items()},
        **{name: Number(size) for name, size in sizes.items()},
    }


def constants(kernel: Kernel, rows: int, block: int) -> dict[str, int]:
    """Of the function with tiles of so many rows, and so many keys at a time."""
    heads, groups, dk, dv = (kernel[name] for name in ("heads", "groups", "dk", "dv"))
    return {
        **{"GROUPS": groups, "SHARE": heads // groups, "KEY": dk, "VALUE": dv},
        **{"DEEP": padded(dk), "WIDE": padded(dv), "ROWS": rows, "BLOCK": block},
    }


def parts_of(kernel: Kernel, rows: int, schedule: Schedule, soc: Soc) -> Size:
    """How many parts a sequence's cache is split into: enough for all cubes, none of fewer keys than pay."""
    share = kernel["heads"] // kernel["groups"]
    units = larger(BATCH * (tiles(TOKENS * share, rows) * kernel["groups"]), 1)
    worth = smaller(SEEN // int(schedule["least"]), MOST_PARTS)
    return larger(1, smaller((units + (soc.cubes - 1)) // units, worth))


def space(kernel: Kernel, soc: Soc) -> Space:
    """rows: of queries in a tile, each a head of a token; block: keys at a time; alone: the same where all
    rows of a group are one tile; least: keys that are worth a part.
    """
    rows, keys = (16, 32, 64, 128), (16, 32, 64, 128, 256, 512)

    def room(schedule: Schedule) -> str | None:
        pairs = ((int(schedule["rows"]), "block"), (lone(kernel), "alone"))
        return next(filter(None, (crowded(kernel, tall, int(schedule[knob])) for tall, knob in pairs)), None)

    tall = max((count for count in rows[:3] if not crowded(kernel, count, keys[0])), default=rows[0])
    block, alone = (
        max((count for count in keys if not crowded(kernel, height, count)), default=keys[0])
        for height in (tall, lone(kernel))
    )
    choices = {"rows": rows, "block": keys, "alone": keys, "least": (256, 512, 1024, 2048)}
    return Space(choices, {"rows": tall, "block": block, "alone": alone, "least": 512}, rules=(room,))


def lone(kernel: Kernel) -> int:
    """Rows of a tile that holds one token's heads of a group, or as many as there is room for."""
    return min(padded(kernel["heads"] // kernel["groups"]), max(SUMS // padded(kernel["dv"]), 16))


def padded(number: int) -> int:
    """The power of two that holds it; the cube multiplies 16 or more."""
    return max(16, power(number))


def crowded(kernel: Kernel, rows: int, keys: int) -> str | None:
    """Why there is no room for so many rows and keys at once with double buffers, or None. As it was seen:
    nobody but the vendor's compiler knows in advance.
    """
    wide, columns = padded(kernel["dv"]), padded(kernel["dk"]) + padded(kernel["dv"])
    if rows * keys > SCORES or rows * wide > SUMS:
        return f"{rows} rows of {keys} keys and {wide} columns are more than UB has room for"
    if 2 * 2 * keys * columns > L1:
        return f"{keys} keys and values of {columns} columns, twice, are more than the {L1} bytes of L1"
    return None


BUILDERS: Mapping[str, Builder] = {"attention": attention}
SPACES: Mapping[str, Callable[[Kernel, Soc], Space]] = {"attention": space}
