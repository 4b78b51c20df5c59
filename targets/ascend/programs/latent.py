"""Multi-head latent attention: new rows of the cache, and queries that attend over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

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
from . import latent_apart, latent_prefill
from .latent_apart import power

FEW = 16  # heads of which more keys are done at once
LEAST = 256  # keys that are worth a part
MOST_PARTS = 32  # of a sequence's cache
BLOCKS = (32, 64, 96, 128, 192)
HEADS_TURNED = 32  # at a time
# Keys, of 1152 bytes each for V3, of which L2 has enough when they are wanted again: by simulated times.
GROUPED = (64 * 4096, 112 * 4096, 256 * 4096)


def together(kernel: Kernel) -> tuple[int, int]:
    """Heads of tokens and keys that are done at once in one launch: as much as UB holds."""
    return (16, 256) if kernel["heads"] <= FEW else (32, 128)


def parts_of(kernel: Kernel, soc: Soc) -> Size:
    """How many parts a sequence's cache is split into: enough for all cubes, none of fewer keys than pay."""
    units = larger(BATCH * tiles(TOKENS * kernel["heads"], together(kernel)[0]), 1)
    worth = smaller(SEEN // LEAST, MOST_PARTS)
    return larger(1, smaller((units + (soc.cubes - 1)) // units, worth))


def fused(kernel: Kernel, soc: Soc, operands: Mapping[str, str], scaled: bool, when: Size) -> list[Step]:
    """Queries to mixed latents. operands: ports of q, latents, keys, span and y.

    In one launch where a sequence's cache is one part, else in two with scratch for parts.
    """
    heads, latent = kernel["heads"], kernel["latent"]
    rows, parts, (high, deep) = M * heads, parts_of(kernel, soc), together(kernel)
    wide = {"LATENT": latent, "WIDE": power(latent)}
    constants = {
        **{"HEADS": heads, **wide, "ROPE": kernel["rope"], "NARROW": power(kernel["rope"])},
        **{"ROWS": high, "BLOCK": deep, "SCALED": scaled},
    }
    types = {"q": "bf16", "latents": "bf16", "keys": "bf16", "span": "i64"}
    given: dict[str, Argument] = {name: Pointer(operands[name], type_) for name, type_ in types.items()}
    sizes: dict[str, Argument] = {
        **{"batch": Number(BATCH), "tokens": Number(TOKENS), "room": Number(ROOM)},
        **{"parts": Number(parts), "scale": Number("scale")},
    }
    results = [Pointer(port, "bf16") for port in (operands["y"], "s2")]
    weights, scratch = Pointer("s3", "fp32"), {"s3": rows * parts * 4 * when}
    split = when * smaller(1, parts - 1)
    grid = (sized(soc.cubes), ONE, ONE)
    # Where L1 holds keys only once, the compiler is told so: on its own it finds out and says so.
    once = {"enable-code-motion": 0, "enable-auto-multi-buffer": 0}
    twice = 4 * (high + deep) * (power(latent) + power(kernel["rope"])) <= L1
    options: Mapping[str, int] = {} if twice else once
    alone, cut = ({**given, "mixed": to, "weights": weights, **sizes} for to in results)
    joined: dict[str, Argument] = {
        "mixed": results[1],
        "weights": weights,
        "y": results[0],
        "rows": Number(rows),
        "parts": Number(parts),
    }
    return [
        Step("latent:attend", alone, constants, grid, scratch, when * (ONE // parts), options),
        Step(
            "latent:attend",
            cut,
            constants,
            grid,
            {**scratch, "s2": rows * parts * latent * 2 * split},
            split,
            options,
        ),
        Step(
            "latent:combine", joined, {**wide, "MOST": MOST_PARTS}, (sized(soc.vectors), ONE, ONE), when=split
        ),
    ]


def mla_decode(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """Attention alone: x0 q [batch,tokens,heads,latent+rope], x1 and x2 the caches, x3 the mask (unused), x4
    span -> y0 [batch,tokens,heads,latent].
    """
    operands = {"q": "x0", "latents": "x1", "keys": "x2", "span": "x4", "y": "y0"}
    mixed, y = Pointer("s1", "bf16"), Pointer("y0", "bf16")
    return [
        *latent_apart.attend(kernel, schedule, soc, {**operands, "y": mixed.port}, scaled=True),
        latent_apart.copy(kernel, schedule, soc, mixed, y),
        *fused(kernel, soc, operands, scaled=True, when=ONE - latent_apart.pays(kernel, soc)),
    ]


def latent_attention(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """Absorbed for few new tokens of a sequence, materialised for many."""
    many = latent_prefill.pays(kernel, schedule)
    few = (only(step, ONE - many) for step in absorbed(kernel, schedule, soc))
    return [*few, *latent_prefill.attend(kernel, schedule, soc)]


def only(step: Step, when: Size) -> Step:
    """The step where this is not 0 either."""
    return replace(step, when=when if step.when is None else when * step.when)


def absorbed(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """Queries into the space of latents and turned (s0), attended (s1), projected.

    Products are apart where that pays, which is so while many sequences are decoded.
    """
    heads, nope, rope, latent, value = (kernel[n] for n in ("heads", "nope", "rope", "latent", "value"))
    tall = int(schedule["tokens"])
    part = {"HEADS": heads, "NOPE": nope, "LATENT": latent}
    read = {**part, "ROPE": rope, "WIDTH": kernel["width"], "START": kernel["start"]}
    x, w, q, made, y = (Pointer(port, "bf16") for port in ("x0", "x7", "s0", "s1", "y0"))
    m, scale = Number(M), Number("scale")
    cubes, vectors = ((sized(cores), ONE, ONE) for cores in (soc.cubes, soc.vectors))
    mixed = latent_apart.mixed_bytes(kernel, schedule, soc)
    scratch = {"s0": M * (heads * (latent + rope) * 2), "s1": mixed}
    absorb = {"VALUE": value, "ROWS": tall, "COLUMNS": min(256, power(latent)), "DEEP": power(nope)}
    pairs = {"PAIRS_IN": kernel["pairs_in"], "PAIRS_OUT": kernel["pairs_out"], "HALF": power(rope // 2, 1)}
    turn = {**pairs, "MANY": min(HEADS_TURNED, power(heads, 1))}
    project = {"VALUE": value, "ROWS": tall, "COLUMNS": power(value), "DEPTH": min(256, power(latent))}
    angles = {"cos": Pointer("x1", "fp32"), "sin": Pointer("x2", "fp32")}
    operands = {"q": "s0", "latents": "x3", "keys": "x4", "span": "x6", "y": "s1"}
    return [
        Step(
            "latent_project:absorb",
            {"x": x, "w": w, "q": q, "m": m, "scale": scale},
            {**read, **absorb},
            cubes,
            scratch,
        ),
        Step(
            "latent_project:turn",
            {"x": x, **angles, "q": q, "m": m, "scale": scale},
            {**read, **turn},
            vectors,
        ),
        *latent_apart.attend(kernel, schedule, soc, operands, scaled=False),
        *fused(kernel, soc, operands, scaled=False, when=ONE - latent_apart.pays(kernel, soc)),
        Step("latent_project:project", {"mixed": made, "w": w, "y": y, "m": m}, {**part, **project}, cubes),
    ]


def latent_write(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """x0 [batch,tokens,width] normed by x1, turned by x2 and x3, to rows of y0 and y1 that x7 tells."""
    constants = {
        **{"LATENT": kernel["c"], "ROPE": kernel["r"], "WIDTH": kernel["width"], "START": kernel["start"]},
        **{"PAIRS_IN": kernel["pairs_in"], "PAIRS_OUT": kernel["pairs_out"]},
        **{"WIDE": power(kernel["c"]), "HALF": power(kernel["r"] // 2, 1)},
    }
    floats = {"w": "x1", "cos": "x2", "sin": "x3"}
    arguments: dict[str, Argument] = {
        "x": Pointer("x0", "bf16"),
        **{name: Pointer(port, "fp32") for name, port in floats.items()},
        **{"span": Pointer("x7", "i64"), "latents": Pointer("y0", "bf16"), "keys": Pointer("y1", "bf16")},
        **{"batch": Number(BATCH), "tokens": Number(TOKENS), "room": Number(ROOM), "eps": Number("eps")},
    }
    return [Step("latent_project:write", arguments, constants, (sized(soc.vectors), ONE, ONE))]


def space(kernel: Kernel, soc: Soc) -> Space:
    """rows: heads of tokens that are done together; block: keys that are; together: keys of all sequences
    that are done before others are begun; tokens: of a tile of the products around. By default all heads of a
    token, as far as that goes, and as many keys as L1 holds beside them.
    """
    rule, rows = latent_apart.held(kernel), min(128, power(kernel["heads"]))
    blocks = [block for block in BLOCKS if not rule({"rows": rows, "block": block})]
    default = {"rows": rows, "block": max(blocks), "together": GROUPED[1], "tokens": 64}
    choices = {"rows": [16, 32, 64, 128], "block": BLOCKS, "together": GROUPED, "tokens": [16, 64, 128]}
    return Space(choices, default, rules=(rule,))


def either_way(kernel: Kernel, soc: Soc) -> Space:
    """The same for what is absorbed, and what there is for what is materialised (latent_prefill.py)."""
    return latent_prefill.space(kernel, space(kernel, soc))


def one_way(kernel: Kernel, soc: Soc) -> Space:
    """A kernel with nothing to choose."""
    return Space({}, {})


BUILDERS: Mapping[str, Builder] = {
    "latent_attention": latent_attention,
    "latent_write": latent_write,
    "mla_decode": mla_decode,
}
SPACES: Mapping[str, Callable[[Kernel, Soc], Space]] = {
    "latent_attention": either_way,
    "latent_write": one_way,
    "mla_decode": space,
}
