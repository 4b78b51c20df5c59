"""Schedules of products for few tokens; kernels/gemv.py says what their knobs shape."""

from __future__ import annotations

from collections.abc import Iterator

from ..base import Kernel, Rule, Schedule, Space
from .sm import Sm

KNOBS = (
    *("v_tiles", "v_columns", "v_split", "v_groups", "v_unroll", "v_depth"),
    *("v_blocks", "v_early", "v_stay"),
)
STEP, VECTOR, LANES = 32, 8, 32  # of k: what four lanes read of a row, and one does; lanes of a warp
MANY = 5  # tokens from which a second column of 8 pays
THREADS, LANE_REGISTERS = 1024, 255  # the most that a block, and a thread, may have
RESIDENT = 2048  # threads of a multiprocessor
OTHER_REGISTERS = 24  # addresses, counts, one side of an mma
STAY = 4  # pieces of 32 rows for each multiprocessor, from which blocks stay
LOADS = 8  # of 16 bytes from each of two rows that a lane has under way, if registers allow


def space(kernel: Kernel, sm: Sm) -> Space:
    """v_tiles: of 16 rows that a warp multiplies at once; v_columns: of 8 tokens in a block; v_split: warps
    that share k; v_groups: warps that share experts; v_unroll: steps of 32 along k in a batch of loads;
    v_depth: batches under way; v_blocks: blocks that a multiprocessor has registers for, at least; v_early:
    whether a combine reads where experts lie, and asks for weights, before the step in front of it is done;
    v_stay: blocks of a multiprocessor that take one piece after another, 0 for a block a piece.

    Rows that are no whole 16 bytes have one schedule only: they are multiplied one number at a time.
    """
    if kernel["k"] % VECTOR:
        rest = {**dict.fromkeys(KNOBS, 1), "v_early": 0, "v_stay": 0}
        return Space(choices={knob: (value,) for knob, value in rest.items()}, default=rest)
    combines, grouped = kernel.kind == "grouped_combine", kernel.kind.startswith("grouped")
    rules = rules_of(kernel, sm)
    few, many = (good(kernel, sm, rules, columns) for columns in (1, 2))
    return Space(
        choices={
            "v_tiles": (1, 2),
            "v_columns": (1, 2),
            "v_split": (1, 2, 4, 8, 16),
            "v_groups": (1, 2, 4, 8) if combines else (1,),
            "v_unroll": (1, 2, 4, 8),
            "v_depth": (1, 2, 3, 4, 6, 8, 11),
            "v_blocks": (1, 2, 3, 4),
            "v_early": (0, 1) if combines else (0,),
            "v_stay": (0,) if combines else (1, 2, 3, 4) if grouped else (0, 1, 2, 3, 4),
        },
        default=few,
        known=[*good_elsewhere(few, rules), *good_elsewhere(many, rules)],
        rules=rules,
        larger={MANY: many},
    )


def good(kernel: Kernel, sm: Sm, rules: tuple[Rule, ...], columns: int) -> Schedule:
    """The default: most loads under way first, least of them past the end of k, enough blocks for the GPU.
    Blocks stay where each has several pieces to multiply.
    """
    combines = kernel.kind == "grouped_combine"
    blocks = kernel["n"] // (2 * 16)
    stays = kernel.kind == "grouped_swiglu" or (not combines and blocks >= STAY * sm.multiprocessors)
    wide = columns == 2 and not combines and not stays and blocks >= 2 * sm.multiprocessors
    tiles = (2, 1) if wide else (1,)
    groups = (4, 2, 1) if combines else (1,)
    found = [
        {
            **{"v_tiles": tile, "v_columns": columns, "v_split": split, "v_groups": group},
            **{"v_unroll": unroll, "v_depth": depth, "v_blocks": fit, "v_early": int(combines)},
            "v_stay": fit if stays else 0,
        }
        for tile in tiles
        for split, unroll in shapes(kernel["k"], most=4 if combines else 8)
        for group in groups
        for depth in (4, 3, 2, 1)
        if (loads := unroll * depth * tile * (1 if stays else columns)) <= LOADS
        for fit in ((min(4, LOADS // loads),) if stays else (2, 1))
    ]
    return next(each for each in found if not any(rule(each) for rule in rules))


def shapes(k: int, most: int) -> Iterator[tuple[int, int]]:
    """v_split and v_unroll, those first that load little past the end of k, then the larger."""
    pairs = [(split, unroll) for split in (8, 4, 2, 1) if split <= most for unroll in (4, 2, 1)]
    yield from sorted(pairs, key=lambda pair: (wasted(k, *pair) > 0.1, -pair[0] * pair[1], -pair[0]))


def wasted(k: int, split: int, unroll: int) -> float:
    """Loads past the end of k, as a part of those within."""
    needed, together = -(-k // STEP), split * unroll
    return (-(-needed // together) * together - needed) / needed


def good_elsewhere(point: Schedule, rules: tuple[Rule, ...]) -> list[Schedule]:
    """Neighbours of a default that are tried first: fewer and more loads under way, fewer and more warps."""
    changes = (
        *({"v_depth": depth} for depth in (1, 2)),
        *({"v_split": split} for split in (4, 8, 16)),
        *({"v_unroll": unroll, "v_depth": 2} for unroll in (2, 4, 8)),
        {"v_tiles": 2},
        *({"v_blocks": blocks} for blocks in (1, 2, 3)),
    )
    points = [{**point, **change} for change in changes]
    return [each for each in points if each != point and not any(rule(each) for rule in rules)]


def rules_of(kernel: Kernel, sm: Sm) -> tuple[Rule, ...]:
    """What a schedule must be like."""
    k, combines = kernel["k"], kernel.kind == "grouped_combine"

    def batches(schedule: Schedule) -> int:
        return -(-k // (STEP * int(schedule["v_split"]) * int(schedule["v_unroll"])))

    def slots(schedule: Schedule) -> int:
        return min(int(schedule["v_depth"]), batches(schedule))

    def warps(schedule: Schedule) -> int:
        return int(schedule["v_split"]) * int(schedule["v_groups"])

    def block(schedule: Schedule) -> str | None:
        threads = LANES * warps(schedule)
        if threads * int(schedule["v_blocks"]) > RESIDENT:
            return f"v_blocks={schedule['v_blocks']} of {threads} threads; a multiprocessor holds {RESIDENT}"
        return f"{threads} threads; a block has at most {THREADS}" if threads > THREADS else None

    def lanes(schedule: Schedule) -> str | None:
        tiles, columns = int(schedule["v_tiles"]), int(schedule["v_columns"])
        steps = slots(schedule) * int(schedule["v_unroll"])
        sums = tiles * columns * 4 * (2 if combines else 1)
        needed = steps * (tiles * 8 + columns * 4) + sums + OTHER_REGISTERS
        threads = LANES * warps(schedule) * int(schedule["v_blocks"])
        has = min(LANE_REGISTERS, sm.registers // threads // 8 * 8)
        return (
            f"{needed} registers a thread; with so many in a block and v_blocks there are {has}"
            if needed > has
            else None
        )

    def loads(schedule: Schedule) -> str | None:
        split, unroll = int(schedule["v_split"]), int(schedule["v_unroll"])
        part = wasted(k, split, unroll)
        return f"{part:.0%} of loads would lie past k={k}" if split * unroll > 1 and part > 0.25 else None

    def depth(schedule: Schedule) -> str | None:
        if int(schedule["v_depth"]) > batches(schedule):
            return f"v_depth={schedule['v_depth']} is more than the {batches(schedule)} batches of a warp"
        if (combines or schedule["v_stay"]) and batches(schedule) % slots(schedule):
            return f"{batches(schedule)} batches are no multiple of v_depth={slots(schedule)}"
        return None

    def stay(schedule: Schedule) -> str | None:
        stays, fit = int(schedule["v_stay"]), int(schedule["v_blocks"])
        return f"v_stay={stays} blocks stay where v_blocks={fit} have registers" if stays > fit else None

    def tables(schedule: Schedule) -> str | None:
        tiles, columns = int(schedule["v_tiles"]), int(schedule["v_columns"])
        needed = warps(schedule) * tiles * columns * 4 * LANES * 4
        if combines:
            needed += kernel["experts"] * (3 + 2 * 8 * columns) * 4
        has = sm.shared_bytes
        return f"{needed} bytes of shared memory; there are {has}" if needed > has else None

    return block, lanes, loads, depth, tables, stay
