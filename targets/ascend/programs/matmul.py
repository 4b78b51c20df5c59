"""Products of bf16 with bf16 weights [n, k], dense and by expert."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ...base import Kernel, Schedule, Space
from ..program import Argument, Builder, M, Number, Pointer, Size, Step, smaller, tiles
from ..soc import Soc
from .quantized import LINE, at_once, combine, on
from .tiling import buffered, halves, space

ORDER, ENDS = Pointer("x1", "i64"), Pointer("x2", "i64")


def linear(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """x [m, k] times w [n, k], added to a residual or through SwiGLU."""
    arguments: dict[str, Argument] = {"x": Pointer("x0", "bf16"), "w": Pointer("x1", "bf16")}
    if kernel.kind == "linear_add":
        arguments["residual"] = Pointer("x2", "bf16")
    arguments["y"] = Pointer("y0", "fp32" if kernel["wide"] else "bf16")
    arguments["m"] = Number(M)
    constants = sizes(kernel, schedule)
    count = tiles(M, constants["BM"]) * -(-constants["N"] // constants["BN"])
    grid, told = on(soc.cubes, count), buffered(schedule)
    return [Step(f"matmul:{kernel.kind}", arguments, constants, grid, compiler=told)]


def grouped_swiglu(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """Rows of x [m, k] gathered by the order, then times the gates and ups of their experts."""
    k, share, own = kernel["k"], kernel["share"], Pointer("s0", "bf16")
    rows = M * share
    arguments: dict[str, Argument] = {"x": Pointer("x0", "bf16"), "order": ORDER, "own": own}
    constants = {"K": k, "SHARE": share, "BLOCK": at_once(k)}
    scratch = {"s0": rows * (2 * k)}
    gather = Step(
        "grouped:gather", {**arguments, "rows": Number(rows)}, constants, on(soc.vectors, rows), scratch
    )
    return [gather, *grouped(kernel, schedule, soc, rows, own, Pointer("y0", "bf16"))]


def grouped_combine(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """Rows of x [m * share, k] times their experts, added up by token with its weights."""
    rows, y, inverse = M * kernel["share"], Pointer("s3", "bf16"), Pointer("s4", "i32")
    table, products = grouped(kernel, schedule, soc, rows, Pointer("x0", "bf16"), y)
    arguments: dict[str, Argument] = {"order": ORDER, "inverse": inverse, "rows": Number(rows)}
    invert = Step(
        "quantized:invert", arguments, {"LINE": LINE}, on(soc.vectors, rows), {"s4": rows * (4 * LINE)}
    )
    products = replace(products, scratch={"s3": rows * (2 * kernel["n"])})
    return [table, products, invert, combine(kernel, soc, y, inverse, 4)]


def grouped(
    kernel: Kernel, schedule: Schedule, soc: Soc, rows: Size, x: Pointer, y: Pointer
) -> tuple[Step, Step]:
    """The table of tiles s2, then rows of x times the weights of their experts."""
    constants, experts, table = sizes(kernel, schedule), kernel["experts"], Pointer("s2", "i32")
    constants["GATED"] = halves(kernel) - 1
    slots = rows // constants["BM"] + smaller(rows, experts)
    made: dict[str, Argument] = {"ends": ENDS, "table": table, "slots": Number(slots)}
    grid = on(soc.vectors, tiles(slots, LINE))
    places = {"E": experts, "BM": constants["BM"]}
    tabulate = Step("grouped:tabulate", made, places, grid, {"s2": slots * 16})
    weight: dict[str, Argument] = {"x": x, "w": Pointer("x3", "bf16"), "table": table, "y": y}
    count = slots * -(-constants["N"] // constants["BN"])
    arguments = {**weight, "slots": Number(slots)}
    grid, told = on(soc.cubes, count), buffered(schedule)
    return tabulate, Step("grouped:products", arguments, constants, grid, compiler=told)


def sizes(kernel: Kernel, schedule: Schedule) -> dict[str, int]:
    """What a product is specialised for; where there is a gate, N is its rows."""
    tile = {name.upper(): int(schedule[name]) for name in ("bm", "bn", "bk")}
    return {"K": kernel["k"], "N": kernel["n"] // halves(kernel), **tile}


BUILDERS: Mapping[str, Builder] = {
    **dict.fromkeys(("linear", "linear_add", "linear_swiglu"), linear),
    "grouped_swiglu": grouped_swiglu,
    "grouped_combine": grouped_combine,
}
SPACES: Mapping[str, Callable[[Kernel, Soc], Space]] = dict.fromkeys(BUILDERS, space)
