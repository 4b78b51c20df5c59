"""Which experts each token takes: the router's product, the gate, and the choices in the order of experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...base import Kernel, Schedule, Space
from ..program import ONE, Argument, Builder, M, Number, Pointer, Size, Step, larger, sized
from ..soc import Soc
from .rows import one_way, power

FEW = 256  # slots that one block sorts
HELD = 4096  # scores that a block compares at once
CHUNK = 16  # experts whose ends are summed side by side


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
    block = power(experts)
    constants: dict[str, int | float | bool | str] = {
        "EXPERTS": experts,
        "BLOCK": block,
        "CHOSEN": chosen,
        "SHARED": kernel["shared"],
        "SLOTS": power(chosen + kernel["shared"]),
        "GROUPS": kernel["groups"],
        "PADDED": power(kernel["groups"]),
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
    most = max(HELD // power(experts), 1)
    rows = [count for count in (1, 2, 4, 8, 16) if count <= most]
    return Space({"rows": rows}, {"rows": 1}, larger={65: {"rows": rows[-1]}})


def sorting(soc: Soc, ids: Pointer, experts: int, share: int) -> list[Step]:
    """Slots to y0 and ends to y1: by one block, or by all vector cores in two launches."""
    bins = power(experts)
    sizes = {"EXPERTS": experts, "BINS": bins, "PIECE": max(min(16384 // bins, 64), 16)}
    ends: dict[str, Argument] = {"order": Pointer("y0", "i64"), "ends": Pointer("y1", "i64")}
    slots, counts = Number(M * share), Pointer("s0", "fp32")
    few = FEW // share
    grid = (sized(soc.vectors), ONE, ONE)
    return [
        Step(
            "order:sort",
            {"ids": ids, **ends, "slots": slots},
            {**sizes, "CHUNK": CHUNK},
            (ONE, ONE, ONE),
            when=larger(few + 1, M) - M,
        ),
        Step(
            "order:count",
            {"ids": ids, "counts": counts, "slots": slots},
            sizes,
            grid,
            {"s0": sized(soc.vectors * bins * 4)},
            when=larger(few, M) - few,
        ),
        Step(
            "order:spread",
            {"ids": ids, "counts": counts, **ends, "slots": slots},
            {**sizes, "CHUNK": CHUNK},
            grid,
            when=larger(few, M) - few,
        ),
    ]


def permute(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """The sort of given ids."""
    return sorting(soc, Pointer("x0", "i64"), kernel["experts"], kernel["k"])


def route(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """The product to s1, what it chooses to s2, then the sort."""
    k, n, parts, share = kernel["k"], kernel["n"], int(schedule["parts"]), kernel["chosen"] + kernel["shared"]
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
    larger: dict[int, Schedule] = {
        17: {"bm": 64},
        65: {"bm": 128, **gates.larger[65]},
        257: {"bm": 128, "bn": 128, "parts": 1, **gates.larger[65]},
    }
    return Space(choices, default, larger=larger)


BUILDERS: Mapping[str, Builder] = {"top_k_gate": top_k_gate, "permute": permute, "route": route}
SPACES: Mapping[str, Callable[[Kernel, Soc], Space]] = {
    "top_k_gate": gate_space,
    "permute": one_way,
    "route": route_space,
}
