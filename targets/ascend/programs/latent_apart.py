"""Latent attention in launches of their own: scores of all keys, what they count, and latents by that.

Where the cube waits for the vector cores and they for it, neither is busy. In launches apart both overlap,
for the price of reading the cache twice and of scratch for a number for each key and head. The second reading
begins with what the first read last, which L2 still has; of more sequences than it holds half of, some are
done before the others are begun.

What keeps the cube from more, all simulated: 128 heads, 64 sequences, 4096 cached, 910B3. Cubes are busy
71 % of 355 us between launches of the decoding layer's attention.

- Scores: 192 us is what reading 307 MB takes; cubes are busy for 133 of them.
- Sums: 155 us, cubes for 121. A tile as large as L0C takes 49 KB of latents and 25 of chances for each 96
  keys, which go into L1 at 145 GB/s: that is 143 of them. The rest is where tiles end and begin.
- 8 us in which no cube has anything to do: the second and the last launch.

Slower, us: scores and sums of a part of the keys in one launch, chances in L2, 1047 (the compiler lets cube
and vector cores overlap in one of two loops that share an array), 665 (in both, of arrays that it takes for
different ones; its 16 flags between cores then last for 3 blocks each and are waited for at each loop's end);
with flags set by the kernel and sums a part behind, 434 (L0C holds one tile of scores at a time), 414 (turns
spelled out, so that it holds two; a part's chances take the vector cores 44 us, and nothing hides the last).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

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
AT_ONCE, DEEP = 128, 48  # heads of tokens, and blocks of keys, that are weighed together
# How many blocks the vector cores may be behind the cube, or before it; by simulated times. With 7 the flags
# between cores, of which a block has two, do not suffice.
BEHIND, BEFORE = 5, 6
GROUPS = 4  # of sequences, at most
ADDED = 8192  # numbers that are added up together, or a fourth of those that are copied
READ = {"q": "bf16", "latents": "bf16", "keys": "bf16", "span": "i64"}
CHANCES, TOPS, TOTALS = Pointer("s4", "bf16"), Pointer("s5", "fp32"), Pointer("s6", "fp32")
WHOLES = Pointer("s2", "fp32")  # fused, which is then left out, has another there


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


def across(kernel: Kernel, schedule: Schedule) -> int:
    """Tiles that these are of all columns."""
    return -(-kernel["latent"] // columns_of(kernel, schedule))


def held(kernel: Kernel) -> Rule:
    """Whether L1 holds queries, latents and keys, and what comes next."""
    wide = power(kernel["latent"]) + power(kernel["rope"])

    def rule(schedule: Schedule) -> str | None:
        used = 4 * (int(schedule["rows"]) + int(schedule["block"])) * wide
        return f"queries and keys, twice, are {used} bytes; L1 has {L1}" if used > L1 else None

    return rule


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences that are done before the next ones are begun: so many, behind those skipped."""

    skipped: Size
    many: Size

    @property
    def arguments(self) -> dict[str, Argument]:
        """What functions are told of it."""
        return {"skipped": Number(self.skipped), "batch": Number(self.many), "tokens": Number(TOKENS)}


def attend(
    kernel: Kernel, schedule: Schedule, soc: Soc, operands: Mapping[str, str], scaled: bool
) -> list[Step]:
    """Queries to mixed latents. operands: ports of q, latents, keys, span and y, scratch `mixed_bytes` long.

    Other scratch: s2, s4 to s6.
    """
    steps: list[Step] = []
    each = together(schedule)
    for number in range(GROUPS):
        skipped = smaller(BATCH, each * number)
        group = Group(skipped, smaller(BATCH - skipped, each))
        steps += attended(kernel, schedule, soc, operands, scaled, group)
    return steps


def together(schedule: Schedule) -> Size:
    """Sequences of a group: as the schedule has it in keys, or more, so that there are few groups."""
    most = larger(1, sized(int(schedule["together"])) // larger(SEEN, 1))
    return tiles_of(BATCH, larger(1, smaller(GROUPS, tiles_of(BATCH, most))))


def tiles_of(of: Size, by: Size) -> Size:
    """How many of one size cover another."""
    return (of + (by - 1)) // by


def attended(
    kernel: Kernel, schedule: Schedule, soc: Soc, operands: Mapping[str, str], scaled: bool, group: Group
) -> list[Step]:
    """The same of one group."""
    given = {name: Pointer(operands[name], type_) for name, type_ in READ.items()}
    y = Pointer(operands["y"], "bf16")
    steps = [
        score(kernel, schedule, soc, given, group, scaled),
        weigh(kernel, schedule, soc, given["span"], group),
        mix(kernel, schedule, soc, given, y, group),
        add(kernel, schedule, soc, y, group),
    ]
    return [replace(step, when=pays(kernel, soc) * smaller(1, group.many)) for step in steps]


def mixed_bytes(kernel: Kernel, schedule: Schedule, soc: Soc) -> Size:
    """Of mixed latents, and behind them of a tile for each cube, to be added to those."""
    return (M * kernel["heads"] + soc.cubes * int(schedule["rows"])) * (2 * kernel["latent"])


def score(
    kernel: Kernel,
    schedule: Schedule,
    soc: Soc,
    given: Mapping[str, Pointer],
    group: Group,
    scaled: bool,
) -> Step:
    """Chances of all keys, what is largest of their blocks and the sums, on cubes and vector cores."""
    rope, when = kernel["rope"], pays(kernel, soc)
    many = together(schedule) * TOKENS * kernel["heads"]
    arguments: dict[str, Argument] = {
        **{**given, "chances": CHANCES, "tops": TOPS, "totals": TOTALS, **group.arguments},
        **{"room": Number(ROOM), "seen": Number(SEEN), "scale": Number("scale")},
    }
    widths = {"ROPE": rope, "WIDE": power(kernel["latent"]), "NARROW": power(rope)}
    halves = {"HALVES": 2 if int(schedule["rows"]) > 16 else 1, "SCALED": scaled}
    blocks = many * (SEEN // int(schedule["block"]) + 1) * 4 * when
    scratch = {"s4": many * SEEN * 2 * when, "s5": blocks, "s6": blocks}
    constants = {**tile(kernel, schedule), **widths, **halves}
    grid, ahead = (sized(soc.cubes), ONE, ONE), {"set-workspace-multibuffer": BEHIND}
    return Step("latent_apart:score", arguments, constants, grid, scratch, compiler=ahead)


def weigh(kernel: Kernel, schedule: Schedule, soc: Soc, span: Pointer, group: Group) -> Step:
    """The logarithm of what all chances add up to."""
    arguments: dict[str, Argument] = {
        **{"span": span, "tops": TOPS, "totals": TOTALS, "wholes": WHOLES},
        **{**group.arguments, "seen": Number(SEEN)},
    }
    shape = {
        "HEADS": kernel["heads"],
        "BLOCK": int(schedule["block"]),
        "MANY": min(AT_ONCE, power(kernel["heads"])),
        "DEEP": DEEP,
    }
    scratch = {"s2": M * (4 * kernel["heads"]) * pays(kernel, soc)}
    return Step("latent_apart:weigh", arguments, shape, (sized(soc.vectors), ONE, ONE), scratch)


def mix(
    kernel: Kernel,
    schedule: Schedule,
    soc: Soc,
    given: Mapping[str, Pointer],
    y: Pointer,
    group: Group,
) -> Step:
    """Latents by chances; the last tiles in pieces."""
    arguments: dict[str, Argument] = {
        **{"chances": CHANCES, "tops": TOPS, "wholes": WHOLES, "latents": given["latents"]},
        **{"span": given["span"], "y": y, **group.arguments, "room": Number(ROOM), "seen": Number(SEEN)},
        **{"behind": Number(M * kernel["heads"])},
    }
    constants = {**tile(kernel, schedule), "COLUMNS": columns_of(kernel, schedule)}
    grid, ahead = (sized(soc.cubes), ONE, ONE), {"set-workspace-multibuffer": BEFORE}
    return Step("latent_apart:mix", arguments, constants, grid, compiler=ahead)


def add(kernel: Kernel, schedule: Schedule, soc: Soc, y: Pointer, group: Group) -> Step:
    """Tiles that cubes shared, added up; none is launched where there are no such."""
    rows = int(schedule["rows"])
    units = group.many * tiles(TOKENS * kernel["heads"], rows) * across(kernel, schedule)
    late = units - units // soc.cubes * soc.cubes
    arguments: dict[str, Argument] = {
        **{"y": y, **group.arguments, "seen": Number(SEEN)},
        **{"behind": Number(M * kernel["heads"]), "cores": Number(sized(soc.cubes))},
    }
    columns = columns_of(kernel, schedule)
    shape = {"COLUMNS": columns, "MANY": min(ADDED // columns, rows)}
    grid = (sized(soc.vectors) * smaller(1, late), ONE, ONE)
    return Step("latent_apart:add", arguments, {**tile(kernel, schedule), **shape}, grid)


def copy(kernel: Kernel, schedule: Schedule, soc: Soc, x: Pointer, y: Pointer) -> Step:
    """Mixed latents without what is behind them, and scratch for these."""
    arguments: dict[str, Argument] = {"x": x, "y": y, "rows": Number(M * kernel["heads"])}
    wide = power(kernel["latent"])
    shape = {"LATENT": kernel["latent"], "WIDE": wide, "MANY": 4 * ADDED // wide}
    when, grid = pays(kernel, soc), (sized(soc.vectors), ONE, ONE)
    scratch = {x.port: mixed_bytes(kernel, schedule, soc) * when}
    return Step("latent_apart:copy", arguments, shape, grid, scratch, when)


def tile(kernel: Kernel, schedule: Schedule) -> dict[str, int]:
    """What both products are specialised for."""
    sizes = {"ROWS": int(schedule["rows"]), "BLOCK": int(schedule["block"])}
    return {"HEADS": kernel["heads"], "LATENT": kernel["latent"], **sizes}
