"""The schedules worth trying for each kind of kernel, and which of their knobs the C++ drivers read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..base import Kernel, Rule, Schedule, Space
from ..regions import BITS
from .isa import Isa

# Rows of C++ and Python meet here: a driver finds these knobs, in this order, in Row::knobs.
MATMUL_KNOBS = ("nr", "mr", "group", "grain")
DRIVER_KNOBS: Mapping[str, tuple[str, ...]] = {
    "linear": MATMUL_KNOBS,
    "linear_add": MATMUL_KNOBS,
    "linear_swiglu": MATMUL_KNOBS,
    "grouped_swiglu": MATMUL_KNOBS,
    "grouped_combine": MATMUL_KNOBS,
    "route": MATMUL_KNOBS,
    "attention": ("few", "many", "lone", "block", "span"),
    "latent_attention": ("nr", "few", "many", "lone", "block", "span", "path", "absorb"),
    **dict.fromkeys(("rms_norm", "rotary", "latent_write", "append", "top_k_gate", "permute"), ()),
}
# Where a token is several rows of the first operand, the dim that says how many.
ROWS_OF_A_TOKEN: Mapping[str, str] = {"grouped_combine": "share", "attention": "heads"}


def space(kernel: Kernel, isa: Isa) -> Space:
    """Every schedule worth trying for one kernel. Raises ValueError for a kind without a space."""
    if kernel.kind not in SPACES:
        raise ValueError(
            f"the cpu target has no {kernel.kind!r} kernel; there are {', '.join(sorted(SPACES))}"
        )
    return (QUANTIZED if kernel.weights in BITS else SPACES)[kernel.kind](kernel, isa)


def panel_rules(kernel: Kernel, isa: Isa) -> tuple[Rule, Rule]:
    """What a panel's width must be like."""
    paired = kernel.kind.endswith("swiglu")

    def halves(schedule: Schedule) -> str | None:
        odd = paired and int(schedule["nr"]) // isa.lanes % 2
        return f"nr={schedule['nr']} does not split into two halves of whole vectors" if odd else None

    def narrow(schedule: Schedule) -> str | None:
        wide = int(schedule["nr"]) > max(kernel["n"], 2 * isa.lanes)
        return f"nr={schedule['nr']} is wider than n={kernel['n']}" if wide else None

    return halves, narrow


def matmul(kernel: Kernel, isa: Isa) -> Space:
    """nr: columns of a panel; mr: rows of the tallest tile; unroll: steps of k per turn; ahead: steps of k
    that are asked for early together (0: as the hardware guesses); group: rows that share one pass over a
    weight; grain: thousands (1024) of multiply-adds that are worth a task of their own.
    """

    def fits(schedule: Schedule) -> str | None:
        vectors = int(schedule["nr"]) // isa.lanes
        needed = (int(schedule["mr"]) + 1) * vectors + 1
        return f"{needed} vector registers; {isa} has {isa.registers}" if needed > isa.registers else None

    def point(vectors: int, mr: int, unroll: int, ahead: int, grain: int = 1024) -> Schedule:
        shape = {"nr": vectors * isa.lanes, "mr": mr, "unroll": unroll, "ahead": ahead}
        return {**shape, "group": 128, "grain": grain}

    # The first that fits is the default; at 64 rows and more they are close to each other. On AVX-512 tiles
    # of 12 rows, not 8, gave 65 experts with 64 tokens, 7 experts each, 12 % (swiglu) and about 6 %
    # (combine): more of them are read from memory in one pass. 128 rows of x, not 256, stay in cache beside
    # a panel: 2 % at 512 rows, within the noise. The next three lay out weights as the default does, so
    # they can serve some calls. In AVX2 code on a Zen 3 not to ask made float32 1.05 to 1.25 times as fast at
    # 1 to 4 rows, grouped products 1.1 to 1.3 times; bfloat16 at 4 rows is the faster for asking, 1.1 times.
    wide, asked, narrowest = isa.registers == 32, kernel.weights == "bf16", point(2, 4, 2, 0)
    good = (
        [
            *(point(2, 12, 2, 128), point(2, 8, 2, 128), point(2, 12, 2, 128, 256), point(2, 12, 4, 128)),
            *(point(4, 6, 2, 64), point(3, 8, 2, 64)),
        ]
        if wide
        else [point(3, 4, 4, 512 * asked), point(2, 6, 4, 512 * asked), point(3, 4, 4, 512 * (not asked))]
    )
    rules = (fits, *panel_rules(kernel, isa))
    usable = [one for one in (*good, narrowest) if not any(rule(one) for rule in rules)]
    return Space(
        # Panels of one vector were 1.2 to 3x slower at many rows on AVX2, so none has them.
        choices={
            "nr": [vectors * isa.lanes for vectors in ((2, 3, 4) if wide else (2, 3))],
            "mr": [4, 5, 6, 8, 10, 12, 14] if wide else [3, 4, 5, 6],
            "unroll": [1, 2, 4],
            "ahead": [0, 64, 128, 256] if wide else [0, 128, 256, 512],
            "group": [64, 128, 256],  # rows of the largest point it is timed at
            "grain": [256, 1024, 4096],
        },
        default=usable[0],
        known=usable[1:],
        rules=rules,
        layout=("nr",),
    )


def quantized(kernel: Kernel, isa: Isa) -> Space:
    """nr, mr, group, grain as for floats; sums: vectors of integer sums under way at once, which decides how
    many vectors of a panel a tile takes; ahead: groups of 32 along k by which weights are asked for early;
    ask: for which of a group's cache lines.
    """
    if kernel["k"] % 32:
        raise ValueError(f"k={kernel['k']} is not a multiple of 32, the group of numbers that share a scale")
    wide, short = isa.registers == 32, kernel.weights == "int4"
    grouped = kernel.kind.startswith("grouped")

    def point(mr: int, sums: int, ahead: int, vectors: int = 2, ask: str = "all") -> Schedule:
        shape = {"nr": vectors * isa.lanes, "mr": mr, "sums": sums, "ahead": ahead}
        return {**shape, "ask": ask, "group": 256, "grain": 16384 if grouped else 4096}

    # The best of sweeps over k=2048, n=2816: the tile at 48 and 252 rows, weights from memory at 1 to 8. On a
    # Zen 3 experts in 4 bits took 0.68, 0.54, 0.68 and 0.78 of the time of 4 rows by two vectors, without
    # asking for every line, at 1, 16, 64 and 512 tokens; 2 KB ahead, not 4, another 0.9 at 1 and 16.
    streams = isa.dot == "tdpbsud" or (grouped and short and isa.dot == "vpdpbusd")
    streamed = [point(12, 12, 16, 4)] if streams else []  # 20 % faster at one token, 3 % slower at 64
    ask = "all" if isa.dot in ("vpdpbusd", "tdpbsud") else "first"
    if wide:
        good = [*streamed, *(point(*each, ask=ask) for each in ((12, 12, 16), (8, 8, 16), (6, 12, 8)))]
    elif short:
        good = [point(5, 20, 4, 4), point(8, 32, 8, 4), point(6, 12, 16)]
    else:
        good = [point(4, 8, 8), point(8, 8, 4), point(3, 12, 4, 4)]
    rules = panel_rules(kernel, isa)
    usable = [one for one in good if not any(rule(one) for rule in rules)]
    return Space(
        choices={
            "nr": [vectors * isa.lanes for vectors in (1, 2, 4)],
            "mr": [4, 6, 8, 10, 12, 14, 16] if wide else [2, 3, 4, 5, 6, 8],
            "sums": [8, 12, 16] if wide else [4, 8, 12, 20, 32],
            "ahead": [0, 2, 4, 8, 16, 32],
            "ask": ["first", "all"],
            "group": [64, 128, 256],
            "grain": [1024, 4096, 16384, 65536],
        },
        default=usable[0],
        known=usable[1:],
        rules=rules,
        layout=("nr",),
    )


def attention(kernel: Kernel, isa: Isa) -> Space:
    """few, many: lanes of a panel (query rows side by side) for a single token and for more; few_sums,
    many_sums: vectors of sums in registers together: scores of how many keys are made at a time, how many
    rows and columns of values are mixed; unroll: steps of scores; lone, block: keys softened at a time by a
    panel alone and by more; span: keys that are worth a task of their own.
    """
    share = kernel["heads"] // (kernel["groups"] if kernel.kind == "attention" else 1)
    few, wide = min(16, max(4, 1 << (share - 1).bit_length())), isa.registers == 32

    def vectors(size: int) -> int:
        return -(-size // isa.lanes)

    def fits(schedule: Schedule) -> str | None:
        needed = max(
            int(schedule[f"{form}_sums"]) + vectors(int(schedule[form])) + 1 for form in ("few", "many")
        )
        return f"{needed} vector registers; {isa} has {isa.registers}" if needed > isa.registers else None

    # A panel alone waits for memory, and what was asked for lately arrives soonest: on AVX-512, 16 heads over
    # 4096 keys took 1.05 ms with 16 keys at a time, 1.10 with 32, 1.31 with 64 (caches not yet aligned).
    default: dict[str, int | str] = {
        **{"few": few, "many": 2 * isa.lanes, "unroll": 4},
        **({"few_sums": 16, "many_sums": 24} if wide else {"few_sums": 12, "many_sums": 12}),
        **({"lone": 16, "block": 48} if wide else {"lone": 24, "block": 64}),
        "span": 512,
    }
    choices: dict[str, list[int | str]] = {
        **{"few": [few], "many": [8, 16, 32], "unroll": [1, 2, 4, 8]},
        **{f"{form}_sums": [8, 12, 16, 20, 24, 28] if wide else [6, 8, 10, 12] for form in ("few", "many")},
        **{
            "lone": [12, 16, 24, 32, 64],
            "block": [32, 48, 64, 128, 256],
            "span": [128, 256, 512, 1024, 2048],
        },
    }
    return Space(choices, default, rules=(fits,))


def latent_attention(kernel: Kernel, isa: Isa) -> Space:
    """attention's knobs; nr: columns of a panel of the projections. path is how results come: 0 the cheaper
    way for each shape; 1, always absorbed, and 2, always materialised, are for tests. absorb: what a
    multiplication costs the absorbed way, in percent of what one costs the other.
    """
    base = attention(kernel, isa)
    nr, absorb = [isa.lanes * n for n in (1, 2, 4)], [60, 75, 90, 100, 115, 130, 170]
    choices = {**base.choices, "nr": nr, "path": [0], "absorb": absorb}
    # As measured from 32 to 512 tokens over 1000 and 4000; bf16 projections cost the second way 15 % more.
    default = {**base.default, "nr": 2 * isa.lanes, "path": 0, "absorb": 100 if isa.lanes == 16 else 115}
    return Space(choices, default, rules=base.rules, layout=("nr",))


def fixed(kernel: Kernel, isa: Isa) -> Space:
    """Kernels with nothing to choose."""
    return Space({}, {})


# kind -> its space; a new kind of kernel adds its line here, in DRIVER_KNOBS and in emit.BUILDERS.
SPACES: Mapping[str, Callable[[Kernel, Isa], Space]] = {
    "linear": matmul,
    "linear_add": matmul,
    "linear_swiglu": matmul,
    "grouped_swiglu": matmul,
    "grouped_combine": matmul,
    "route": matmul,
    "attention": attention,
    "latent_attention": latent_attention,
    **dict.fromkeys(("rms_norm", "rotary", "latent_write", "append", "top_k_gate", "permute"), fixed),
}
# The same where weights are stored in few bits.
QUANTIZED: Mapping[str, Callable[[Kernel, Isa], Space]] = {
    kind: quantized if made is matmul else made for kind, made in SPACES.items()
}
