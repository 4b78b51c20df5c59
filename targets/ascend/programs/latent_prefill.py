"""Latent attention, materialised: for many new tokens of a sequence it is less to make keys and values of all
latents than to attend over these with each head's query.

Chances of all keys need scratch; heads come in rounds, as many at once as there is scratch for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...base import Kernel, Rule, Schedule, Space
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
from ..soc import L0C, Soc
from .latent_apart import MOST, power

MOST_TOKENS = (16, 32, 64, 128, 256, 512)
ROUNDS = 8  # of heads, at most, each with up to MOST chances
SCORES = 12288  # of half a tile, for which UB has room
PREPARED = 64 * 192  # numbers of queries that are turned together
DEEP = 16  # blocks that are weighed together
MADE_AT_ONCE = {"BM": 128, "BN": 256}  # keys, and columns of keys and values
Q, MADE, CHANCES = Pointer("s0", "bf16"), Pointer("s1", "bf16"), Pointer("s2", "bf16")
TOPS, TOTALS, SPAN = Pointer("s3", "fp32"), Pointer("s4", "fp32"), Pointer("x6", "i64")
CALLED: Mapping[str, Argument] = {"batch": Number(BATCH), "tokens": Number(TOKENS)}
EVERY, WHOLE, EDGE = 0, 1, 2  # kernels/latent_prefill.py


def padded(schedule: Schedule) -> Size:
    """Keys of a sequence in whole blocks."""
    block = int(schedule["p_keys"])
    return tiles(SEEN, block) * block


def of_a_head(schedule: Schedule) -> Size:
    """Chances of a head, with those that fill tiles."""
    rows = int(schedule["p_rows"])
    return BATCH * tiles(TOKENS, rows) * padded(schedule) * rows


def share(kernel: Kernel, schedule: Schedule) -> Size:
    """Heads of a round: those whose chances there is scratch for."""
    return smaller(kernel["heads"], sized(MOST) // larger(of_a_head(schedule), 1))


def pays(kernel: Kernel, schedule: Schedule) -> Size:
    """1 for so many new tokens of a sequence, if there are rounds enough for all heads, else 0."""
    many = smaller(1, TOKENS // (int(schedule["most"]) + 1))
    return many * smaller(1, share(kernel, schedule) * ROUNDS // kernel["heads"])


def attend(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """x0 to x7 of latent_attention -> y0, with scratch s0 to s4."""
    heads, each = sized(kernel["heads"]), share(kernel, schedule)
    steps = [prepare(kernel, schedule, soc), expand(kernel, schedule, soc)]
    for number in range(ROUNDS):
        skipped = smaller(heads, each * number)
        steps += attended(kernel, schedule, soc, skipped, smaller(heads - skipped, each))
    return steps


def prepare(kernel: Kernel, schedule: Schedule, soc: Soc) -> Step:
    """Queries turned and scaled."""
    heads, nope, rope = (kernel[n] for n in ("heads", "nope", "rope"))
    arguments: dict[str, Argument] = {
        **{"x": Pointer("x0", "bf16"), "cos": Pointer("x1", "fp32"), "sin": Pointer("x2", "fp32"), "q": Q},
        **{"m": Number(M), "scale": Number("scale")},
    }
    near, half = power(nope), power(rope // 2, 1)
    rows = min(64, 1 << (PREPARED // (near + 2 * half)).bit_length() - 1)
    constants = {
        **{"HEADS": heads, "NOPE": nope, "ROPE": rope, "WIDTH": kernel["width"], "START": kernel["start"]},
        **{"PAIRS_IN": kernel["pairs_in"], "PAIRS_OUT": kernel["pairs_out"]},
        **{"ROWS": rows, "NEAR": near, "HALF": half},
    }
    when, grid = pays(kernel, schedule), (sized(soc.vectors), ONE, ONE)
    scratch = {"s0": M * (heads * (nope + rope) * 2)}
    return Step("latent_prefill:prepare", arguments, constants, grid, scratch, when)


def expand(kernel: Kernel, schedule: Schedule, soc: Soc) -> Step:
    """Keys and values of all heads; with scratch for what follows."""
    n = kernel["heads"] * (kernel["nope"] + kernel["value"])
    arguments: dict[str, Argument] = {
        **{"latents": Pointer("x3", "bf16"), "w": Pointer("x7", "bf16"), "span": SPAN, "made": MADE},
        **{"batch": Number(BATCH), "room": Number(ROOM), "padded": Number(padded(schedule))},
    }
    depth = {"BK": min(256, power(kernel["latent"]))}
    constants = {"LATENT": kernel["latent"], "N": n, **MADE_AT_ONCE, **depth}
    when, grid = pays(kernel, schedule), (sized(soc.cubes), ONE, ONE)
    many = of_a_head(schedule) * share(kernel, schedule)
    blocks = many // int(schedule["p_keys"]) * 4
    scratch = {"s1": BATCH * padded(schedule) * (2 * n), "s2": many * 2, "s3": blocks, "s4": blocks}
    return Step("latent_prefill:expand", arguments, constants, grid, scratch, when)


def attended(kernel: Kernel, schedule: Schedule, soc: Soc, skipped: Size, heads: Size) -> list[Step]:
    """A round: so many heads behind those skipped, if there are any."""
    when = pays(kernel, schedule) * smaller(1, heads)
    parts = (WHOLE, EDGE) if schedule["p_edges"] else (EVERY,)
    scores = [score(kernel, schedule, soc, skipped, heads, seen, when) for seen in parts]
    return [
        *scores,
        weigh(schedule, soc, heads, when),
        mix(kernel, schedule, soc, skipped, heads, when),
    ]


def score(
    kernel: Kernel, schedule: Schedule, soc: Soc, skipped: Size, heads: Size, seen: int, when: Size
) -> Step:
    """Chances of keys, what is largest of their blocks and the sums, on cubes and vector cores."""
    nope, rope, block = kernel["nope"], kernel["rope"], int(schedule["p_keys"])
    arguments: dict[str, Argument] = {
        **{"q": Q, "made": MADE, "keys": Pointer("x4", "bf16"), "span": SPAN, "chances": CHANCES},
        **{
            "tops": TOPS,
            "totals": TOTALS,
            **CALLED,
            "room": Number(ROOM),
            "padded": Number(padded(schedule)),
        },
        **{"skipped": Number(skipped), "heads": Number(heads)},
    }
    constants = {
        **{"HEADS": kernel["heads"], "NOPE": nope, "ROPE": rope, "VALUE": kernel["value"]},
        **{"NEAR": power(nope), "NARROW": power(rope)},
        **{"HALF": int(schedule["p_rows"]) // 2, "BLOCK": block, "SEEN": seen},
    }
    return Step("latent_prefill:score", arguments, constants, (sized(soc.cubes), ONE, ONE), when=when)


def weigh(schedule: Schedule, soc: Soc, heads: Size, when: Size) -> Step:
    """What chances of each block count, in place of the sums."""
    arguments: dict[str, Argument] = {
        **{"span": SPAN, "tops": TOPS, "totals": TOTALS, **CALLED},
        **{"padded": Number(padded(schedule)), "heads": Number(heads)},
    }
    constants = {"ROWS": int(schedule["p_rows"]), "BLOCK": int(schedule["p_keys"]), "DEEP": DEEP}
    return Step("latent_prefill:weigh", arguments, constants, (sized(soc.vectors), ONE, ONE), when=when)


def mix(kernel: Kernel, schedule: Schedule, soc: Soc, skipped: Size, heads: Size, when: Size) -> Step:
    """Values by chances."""
    arguments: dict[str, Argument] = {
        **{"chances": CHANCES, "weights": TOTALS, "made": MADE, "span": SPAN, "y": Pointer("y0", "bf16")},
        **{**CALLED, "padded": Number(padded(schedule)), "skipped": Number(skipped), "heads": Number(heads)},
    }
    constants = {
        **{"HEADS": kernel["heads"], "NOPE": kernel["nope"], "VALUE": kernel["value"]},
        **{"WIDE": power(kernel["value"]), "ROWS": int(schedule["p_rows"]), "BLOCK": int(schedule["p_keys"])},
        **{"BLOCKS": int(schedule["p_blocks"])},
    }
    return Step("latent_prefill:mix", arguments, constants, (sized(soc.cubes), ONE, ONE), when=when)


def space(kernel: Kernel, absorbed: Space) -> Space:
    """most: new tokens of a sequence up to which latents are attended over; p_rows: tokens of a tile; p_keys:
    of a block; p_blocks: blocks that are mixed at once; p_edges: whether blocks that only some tokens of a
    tile see have a launch of their own, so that no places are compared in the others.

    By default as simulated for 16 and 128 heads, 16 to 4096 tokens.
    """
    knobs = {
        "most": MOST_TOKENS,
        "p_rows": [64, 128, 256],
        "p_keys": [64, 96, 128, 192],
        "p_blocks": [1, 2, 3],
    }
    most = 32 if kernel["heads"] <= 32 else 128
    short = {"most": most, "p_rows": 128, "p_keys": 192, "p_blocks": 2, "p_edges": 0}
    long = {"p_rows": 256, "p_keys": 96, "p_edges": 1}
    return replace(
        absorbed,
        choices={**absorbed.choices, **knobs, "p_edges": [0, 1]},
        default={**absorbed.default, **short},
        rules=(*absorbed.rules, held(kernel)),
        larger={257: long} if held(kernel)({**short, **long}) is None else {},
    )


def held(kernel: Kernel) -> Rule:
    """Whether UB holds scores, which only the vendor's compiler knows: as it was seen. And L0C the sums."""
    wide = power(kernel["value"])

    def rule(schedule: Schedule) -> str | None:
        rows, keys = int(schedule["p_rows"]), int(schedule["p_keys"])
        if rows // 2 * keys > SCORES:
            return f"scores of {rows // 2} tokens and {keys} keys are more than UB has room for"
        if 4 * rows * wide > L0C:
            return f"sums are {4 * rows * wide} bytes; L0C has {L0C}"
        return None

    return rule
