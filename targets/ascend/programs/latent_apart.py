"""Latent attention in launches of their own: scores of all keys, what they count, and latents by that.

Where the cube waits for the vector cores and they for it, neither is busy. In launches apart both overlap,
for the price of reading the cache twice and of scratch for a number for each key and head. The second reading
begins with what the first read last, which L2 still has.

What keeps the cube from more, all simulated: 128 heads, 64 sequences, 4096 cached, 910B3. Cubes are busy
67 % of 375 us between launches; 71 % of 450 with 80 sequences, whose tiles fill all rounds; with 128 the
memory is, 97 %, for L2 holds a third of the cache.

- Scores: 193 us is what reading 309 MB takes; cubes are busy for 132 of them.
- Sums: 175 us, cubes for 118. A tile as large as L0C takes 49 KB of latents and 25 of chances for each 96
  keys, which go into L1 at 145 GB/s: 21.4 of a tile's 24.2 us. 128 tiles on 20 cubes are 7 rounds, not 6.4.

Slower, us: scores and sums of a part of the keys in one launch, chances in L2, 1047 (the compiler lets cube
and vector cores overlap in one of two loops that share an array), 665 (in both, of arrays that it takes for
different ones; its 16 flags between cores then last for 3 blocks each and are waited for at each loop's end);
with flags set by the kernel and sums a part behind, 434 (L0C holds one tile of scores at a time), 414 (turns
spelled out, so that it holds two; a part's chances take the vector cores 44 us, and nothing hides the last).
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
AT_ONCE, DEEP = 128, 48  # heads of tokens, and blocks of keys, that are weighed together
# How many blocks the vector cores may be behind the cube, or before it; by simulated times. With 7 the flags
# between cores, of which a block has two, do not suffice.
BEHIND, BEFORE = 5, 6
ADDED = 16  # rows that are added up together
READ = {"q": "bf16", "latents": "bf16", "keys": "bf16", "span": "i64"}
CHANCES, TOPS, TOTALS = Pointer("s4", "bf16"), Pointer("s5", "fp32"), Pointer("s6", "fp32")
WHOLES = Pointer("s2", "fp32")  # fused, which is then left out, has another there
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
    """Queries to mixed latents. operands: ports of q, latents, keys, span and y; scratch s2, s4 to s7.

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
    grid, ahead = (sized(soc.cubes), ONE, ONE), {"set-workspace-multibuffer": BEHIND}
    return Step("latent_apart:score", arguments, constants, grid, scratch, when, ahead)


def weigh(kernel: Kernel, schedule: Schedule, soc: Soc, span: Pointer) -> Step:
    """The logarithm of what all chances add up to."""
    arguments: dict[str, Argument] = {
        **{"span": span, "tops": TOPS, "totals": TOTALS, "wholes": WHOLES},
        **{"batch": Number(BATCH), "tokens": Number(TOKENS), "seen": Number(SEEN)},
    }
    shape = {
        "HEADS": kernel["heads"],
        "BLOCK": int(schedule["block"]),
        "MANY": min(AT_ONCE, power(kernel["heads"])),
        "DEEP": DEEP,
    }
    grid = (sized(soc.vectors), ONE, ONE)
    scratch = {"s2": M * (4 * kernel["heads"]) * pays(kernel, soc)}
    return Step("latent_apart:weigh", arguments, shape, grid, scratch, pays(kernel, soc))


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
        **{"chances": CHANCES, "tops": TOPS, "wholes": WHOLES, "latents": given["latents"]},
        **{"span": given["span"], "y": y},
        **{"batch": Number(BATCH), "tokens": Number(TOKENS), "room": Number(ROOM), "seen": Number(SEEN)},
        "parts": Number(parts),
    }
    constants = {**tile(kernel, schedule), "COLUMNS": columns_of(kernel, schedule)}
    grid, ahead = (sized(soc.cubes), ONE, ONE), {"set-workspace-multibuffer": BEFORE}
    return Step("latent_apart:mix", arguments, constants, grid, when=when, compiler=ahead)


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
