"""Latent attention in launches of their own: scores of all keys, what they count, and latents by that.

Where the cube waits for the vector cores and they for it, neither is busy. In launches apart both overlap,
for the price of reading the cache twice and of scratch for a number for each key and head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...base import Kernel, Rule, Schedule
from ..program import (
    BATCH,
    ONE,
    ROOM,
    SEEN,
    TOKENS,
    Argument,
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
from ..soc import L0C, L1, Soc

# Chances: how many there is scratch for, of 2 bytes each, and how many for each cube pay for more launches;
# the latter by the simulated times of 16 and 128 heads, 1 to 16 sequences, 128 to 4096 keys.
MOST, LEAST = 1 << 29, 8192
ROUNDS = 8  # units of work for each cube, about, so that none has much more than another
AT_ONCE, DEEP = 64, 64  # heads of tokens, and blocks of keys, that are weighed together
ADDED = 16  # rows that are added up together
READ = {"q": "bf16", "latents": "bf16", "keys": "bf16", "span": "i64"}
CHANCES, TOPS, TOTALS = Pointer("s4", "bf16"), Pointer("s5", "fp32"), Pointer("s6", "fp32")
MIXED = Pointer("s7", "bf16")


def power(n: int, least: int = 16) -> int:
    """The power of two that holds n; the cube multiplies 16 or more."""
    return max(least, 1 << (n - 1).bit_length())


def pays(kernel: Kernel, soc: Soc) -> Size:
    """1 where there are many chances, and scratch for all of them, else 0."""
    chances = M * SEEN * kernel["heads"]
    return smaller(1, chances // (LEAST * soc.cubes)) * smaller(1, sized(MOST) // chances)


def columns_of(kernel: Kernel, schedule: Schedule) -> int:
    """Of latents that are mixed at once: what L0C and L1 hold."""
    rows, block, columns = int(schedule["rows"]), int(schedule["block"]), power(kernel["latent"])
    while columns > 16 and (4 * rows * columns > L0C or 8 * block * (rows + columns) > L1):
        columns //= 2
    return columns


def held(kernel: Kernel) -> Rule:
    """Whether L1 holds queries, latents and keys, and what comes next."""
    wide = power(kernel["latent"]) + power(kernel["rope"])

    def rule(schedule: Schedule) -> str | None:
        used = 4 * (int(schedule["rows"]) + int(schedule["block"])) * wide
        return f"queries and keys, twice, are {used} bytes; L1 has {L1}" if used > L1 else None

    return rule


def split(units: Size, schedule: Schedule, soc: Soc, rounds: int) -> Size:
    """How many parts a sequence's keys are in, so that all cubes have so many rounds of work."""
    worth = larger(1, SEEN // int(schedule["least"]))
    return smaller(worth, (units + (rounds * soc.cubes - 1)) // units)


def attend(
    kernel: Kernel, schedule: Schedule, soc: Soc, operands: Mapping[str, str], scaled: bool
) -> list[Step]:
    """Queries to mixed latents. operands: ports of q, latents, keys, span and y; scratch s4 to s7.

    Where few heads would leave cubes idle, mixed latents come in parts of the keys, which are added up.
    """
    high, columns = (
        BATCH * tiles(TOKENS * kernel["heads"], int(schedule["rows"])),
        columns_of(kernel, schedule),
    )
    cut = split(high, schedule, soc, ROUNDS)
    parts = split(high * -(-kernel["latent"] // columns), schedule, soc, 1)
    when, several = pays(kernel, soc), smaller(1, parts - 1)
    given = {name: Pointer(operands[name], type_) for name, type_ in READ.items()}
    y, many = Pointer(operands["y"], "bf16"), M * kernel["heads"]
    mixed = {"s7": many * parts * (2 * kernel["latent"]) * when * several}
    return [
        score(kernel, schedule, soc, given, cut, scaled),
        weigh(kernel, schedule, soc, given["span"]),
        mix(kernel, schedule, soc, given, y, parts, when * (ONE - several)),
        replace(mix(kernel, schedule, soc, given, MIXED, parts, when * several), scratch=mixed),
        add(kernel, soc, y, parts, when * several),
    ]


def score(
    kernel: Kernel, schedule: Schedule, soc: Soc, given: Mapping[str, Pointer], parts: Size, scaled: bool
) -> Step:
    """Chances of all keys, what is largest of their blocks and the sums, on cubes and vector cores."""
    many, rope, when = M * kernel["heads"], kernel["rope"], pays(kernel, soc)
    arguments: dict[str, Argument] = {
        **{**given, "chances": CHANCES, "tops": TOPS, "totals": TOTALS, "batch": Number(BATCH)},
        **{"tokens": Number(TOKENS), "room": Number(ROOM), "seen": Number(SEEN), "parts": Number(parts)},
        "scale": Number("scale"),
    }
    widths = {"ROPE": rope, "WIDE": power(kernel["latent"]), "NARROW": power(rope)}
    halves = {"HALVES": 2 if int(schedule["rows"]) > 16 else 1, "SCALED": scaled}
    blocks = many * (SEEN // int(schedule["block"]) + 1) * 4 * when
    scratch = {"s4": many * SEEN * 2 * when, "s5": blocks, "s6": blocks}
    constants = {**tile(kernel, schedule), **widths, **halves}
    return Step("latent_apart:score", arguments, constants, (sized(soc.cubes), ONE, ONE), scratch, when)


def weigh(kernel: Kernel, schedule: Schedule, soc: Soc, span: Pointer) -> Step:
    """What chances of each block count, in place of the sums."""
    arguments: dict[str, Argument] = {
        **{"span": span, "tops": TOPS, "totals": TOTALS},
        **{"batch": Number(BATCH), "tokens": Number(TOKENS), "seen": Number(SEEN)},
    }
    shape = {"HEADS": kernel["heads"], "BLOCK": int(schedule["block"]), "MANY": AT_ONCE, "DEEP": DEEP}
    grid = (sized(soc.vectors), ONE, ONE)
    return Step("latent_apart:weigh", arguments, shape, grid, when=pays(kernel, soc))


def mix(
    kernel: Kernel,
    schedule: Schedule,
    soc: Soc,
    given: Mapping[str, Pointer],
    y: Pointer,
    parts: Size,
    when: Size,
) -> Step:
    """Latents by chances, for each part of the keys."""
    arguments: dict[str, Argument] = {
        **{"chances": CHANCES, "weights": TOTALS, "latents": given["latents"], "span": given["span"], "y": y},
        **{"batch": Number(BATCH), "tokens": Number(TOKENS), "room": Number(ROOM), "seen": Number(SEEN)},
        "parts": Number(parts),
    }
    constants = {**tile(kernel, schedule), "COLUMNS": columns_of(kernel, schedule)}
    return Step("latent_apart:mix", arguments, constants, (sized(soc.cubes), ONE, ONE), when=when)


def add(kernel: Kernel, soc: Soc, y: Pointer, parts: Size, when: Size) -> Step:
    """Parts of mixed latents added up."""
    arguments: dict[str, Argument] = {
        **{"mixed": MIXED, "y": y, "rows": Number(M * kernel["heads"]), "parts": Number(parts)},
    }
    shape = {"LATENT": kernel["latent"], "WIDE": power(kernel["latent"]), "MANY": ADDED}
    return Step("latent_apart:add", arguments, shape, (sized(soc.vectors), ONE, ONE), when=when)


def tile(kernel: Kernel, schedule: Schedule) -> dict[str, int]:
    """What both products are specialised for."""
    sizes = {"ROWS": int(schedule["rows"]), "BLOCK": int(schedule["block"])}
    return {"HEADS": kernel["heads"], "LATENT": kernel["latent"], **sizes}
