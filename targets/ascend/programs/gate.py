"""Which experts each token takes: the router's product, the gate, and the choices in the order of experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...base import Kernel, Schedule, Space
from ..program import ONE, Argument, Builder, M, Number, Pointer, Size, Step, larger, sized
from ..soc import Soc
from .rows import one_way, power

FEW = 1280  # slots that are sorted in one launch
EXACT = 1 << 24  # f32 has all whole numbers up to this
HELD = 2048  # scores that a block compares at once


def gate(
    kernel: Kernel,
    schedule: Schedule,
    soc: Soc,
    ports: Mapping[str, Pointer],
    parts: int,
    when: Size | None = None,
) -> Step:
    """One launch on all vector cores, of logits in so many parts. ports: logits, bias, ids, weights."""
    experts = kernel["n" if kernel.kind == "route" else "experts"]
    chosen = kernel["chosen" if kernel.kind == "route" else "k"]
    constants: dict[str, int | float | bool | str] = {
        "EXPERTS": experts,
        "CHOSEN": chosen,
        "SHARED": kernel["shared"],
        "SLOTS": power(chosen + kernel["shared"]),
        "GROUPS": kernel["groups"],
        "PADDED": power(kernel["groups"]),
        "SIZE": power(experts // kernel["groups"]),
        "KEEP": kernel["keep"],
        "PARTS": parts,
        "ROWS": int(schedule["rows"]),
        **{name.upper(): bool(kernel[name]) for name in ("sigmoid", "top2", "normalise", "bias")},
    }
    arguments: dict[str, Argument] = {
        **ports,
        "m": Number(M),
        "eps": Number("eps"),
        "scale": Number("scale"),
    }
    return Step("gate:gate", arguments, constants, (sized(soc.vectors), ONE, ONE), when=when)


def top_k_gate(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """One launch."""
    ports = {
        "logits": Pointer("x0", "fp32"),
        "bias": Pointer("x1" if kernel["bias"] else "x0", "fp32"),
        "ids": Pointer("y0", "i64"),
        "weights": Pointer("y1", "fp32"),
    }
    return [gate(kernel, schedule, soc, ports, 1)]


def gate_space(kernel: Kernel, soc: Soc) -> Space:
    """Tokens side by side: as many as leave no core without."""
    experts = kernel["n" if kernel.kind == "route" else "experts"]
    scores = power(kernel["groups"]) * power(experts // kernel["groups"])
    rows = [count for count in (1, 2, 4, 8, 16) if count == 1 or count * scores <= HELD]
    many = {17: 2, 65: 4, 257: 16}
    return Space(
        {"rows": rows}, {"rows": 1}, larger={m: {"rows": min(most, rows[-1])} for m, most in many.items()}
    )


def sorting(soc: Soc, ids: Pointer, experts: int, share: int) -> list[Step]:
    """Slots to y0 and ends to y1, by all vector cores: in one launch or, where slots are many, in two."""
    bins, few = power(experts), min(FEW, EXACT // experts) // share
    ends: dict[str, Argument] = {"order": Pointer("y0", "i64"), "ends": Pointer("y1", "i64")}
    slots, counts = Number(M * share), Pointer("s0", "fp32")
    grid = (sized(soc.vectors), ONE, ONE)
    side = max(min(4096 // bins, 8), 1)  # slots side by side, or blocks, or experts
    return [
        Step(
            "order:sort",
            {"ids": ids, **ends, "slots": slots},
            {"EXPERTS": experts, "PIECE": 8, "CHUNK": 256},
            grid,
            when=larger(few + 1, M) - M,
        ),
        Step(
            "order:count",
            {"ids": ids, "counts": counts, "slots": slots},
            {"EXPERTS": experts, "BINS": bins, "PIECE": 2 * side},
            grid,
            {"s0": sized(soc.vectors * bins * 4)},
            when=larger(few, M) - few,
        ),
        Step(
            "order:spread",
            {"ids": ids, "counts": counts, **ends, "slots": slots},
            {"EXPERTS": experts, "BINS": bins, "PIECE": side, "CHUNK": 128},
            grid,
            when=larger(few, M) - few,
        ),
    ]


def permute(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """The sort of given ids."""
    return sorting(soc, Pointer("x0", "i64"), kernel["experts"], kernel["k"])


def route(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """The product to s1, what it chooses to s2, then the sort."""
    k, n, share = kernel["k"], kernel["n"], kernel["chosen"] + kernel["shared"]
    parts = parts_of(k, int(schedule["bk"]), int(schedule["parts"]))
    arguments: dict[str, Argument] = {
        "x": Pointer("x0", "bf16"),
        "w": Pointer("x1", "bf16"),
        "logits": Pointer("s1", "fp32"),
        "m": Number(M),
    }
    tile = {name.upper(): int(schedule[name]) for name in ("bm", "bn", "bk")}
    sizes = {"K": k, "N": n, "PARTS": parts, **tile}
    scratch = {"s1": M * (parts * n * 4), "s2": M * (share * 4)}
    ports = {
        "logits": Pointer("s1", "fp32"),
        "bias": Pointer("x2", "fp32") if kernel["bias"] else Pointer("s1", "fp32"),
        "ids": Pointer("s2", "i32"),
        "weights": Pointer("y2", "fp32"),
    }
    product = Step("gate:router", arguments, sizes, (sized(soc.cubes), ONE, ONE), scratch)
    chosen = gate(kernel, schedule, soc, ports, parts)
    return [product, chosen, *sorting(soc, Pointer("s2", "i32"), n + kernel["shared"], share)]


def parts_of(k: int, bk: int, most: int) -> int:
    """How many parts of K have columns where each has as many tiles of bk: most, or fewer."""
    tiles = -(-k // bk)
    return -(-tiles // -(-tiles // most))


def route_space(kernel: Kernel, soc: Soc) -> Space:
    """How the product is cut: experts and depth among cube cores while tokens are few."""
    gates = gate_space(kernel, soc)
    bn = [16, 32, 64, 128]
    choices = {
        "bm": [16, 32, 64, 128],
        "bn": bn,
        "bk": [128, 256, 512],
        "parts": [1, 2, 4, 8],
        **gates.choices,
    }
    default = {"bm": 16, "bn": 64, "bk": 256, "parts": 4, **gates.default}
    tiles: dict[int, Schedule] = {17: {"bm": 64}, 65: {"bm": 128}, 257: {"bm": 128, "bn": 128, "parts": 1}}
    larger = {first: {**tile, **gates.larger[first]} for first, tile in tiles.items()}
    return Space(choices, default, larger=larger)


BUILDERS: Mapping[str, Builder] = {"top_k_gate": top_k_gate, "permute": permute, "route": route}
SPACES: Mapping[str, Callable[[Kernel, Soc], Space]] = {
    "top_k_gate": gate_space,
    "permute": one_way,
    "route": route_space,
}
