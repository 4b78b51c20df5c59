"""Products of int8 with int8: rows of x become codes on the vector cores, then the cube multiplies them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ...base import Kernel, Schedule, Space
from ...bf16 import MATMULS
from ..program import ONE, Argument, Builder, M, Number, Pointer, Size, Step, smaller, tiles
from ..soc import Soc
from .tiling import buffered, halves, space

WHOLE, PART = 8192, 2048  # columns of a row that are done at once: of a short one all
TOGETHER = 1024  # columns of rows that are added up together
LINE = 16  # numbers that are written at once
Arguments = Mapping[str, Argument]
X, X_SCALES = Pointer("s0", "i8"), Pointer("s1", "fp32")
ORDER, ENDS = Pointer("x1", "i64"), Pointer("x2", "i64")


def linear(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """x [m, k] times w [n, k], added to a residual or through SwiGLU."""
    added = kernel.kind == "linear_add"
    residual = Pointer("x3" if added else "x0", "bf16")
    y = Pointer("y0", "fp32" if kernel["wide"] else "bf16")
    arguments: Arguments = {**operands(1), "residual": residual, "y": y, "m": Number(M)}
    constants = sizes(kernel, schedule)
    count = tiles(M, constants["BM"]) * -(-constants["N"] // constants["BN"])
    grid, told = on(soc.cubes, count), buffered(schedule)
    step = Step("quantized:linear", arguments, {**constants, "ADDED": int(added)}, grid, compiler=told)
    return [to_codes(M, kernel["k"], soc), step]


def grouped_swiglu(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """Rows of x [m, k] by the order, times the gates and ups of their experts."""
    k, share = kernel["k"], kernel["share"]
    codes, scales, rows = Pointer("s3", "i8"), Pointer("s4", "fp32"), M * share
    own: Arguments = {"own": X, "own_scales": X_SCALES, "rows": Number(rows)}
    arguments: Arguments = {"codes": codes, "scales": scales, "order": ORDER, **own}
    constants = {"K": k, "SHARE": share, "BLOCK": at_once(k)}
    scratch = {"s0": rows * k, "s1": rows * 4}
    gather = Step("quantized:gather", arguments, constants, on(soc.vectors, rows), scratch)
    products = grouped(kernel, schedule, soc, rows, Pointer("y0", "bf16"))
    return [to_codes(M, k, soc, codes, scales), gather, *products]


def grouped_combine(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """Rows of x [m * share, k] times their experts, added up by token with its weights."""
    n, rows, y, inverse = kernel["n"], M * kernel["share"], Pointer("s3", "bf16"), Pointer("s4", "i32")
    table, products = grouped(kernel, schedule, soc, rows, y)
    arguments: Arguments = {"order": ORDER, "inverse": inverse, "rows": Number(rows)}
    scratch = {"s4": rows * (4 * LINE)}
    invert = Step("quantized:invert", arguments, {"LINE": LINE}, on(soc.vectors, rows), scratch)
    return [
        to_codes(rows, kernel["k"], soc),
        table,
        replace(products, scratch={"s3": rows * (2 * n)}),
        invert,
        combine(kernel, soc, y, inverse, 5),
    ]


def to_codes(rows: Size, k: int, soc: Soc, codes: Pointer = X, scales: Pointer = X_SCALES) -> Step:
    """Rows of x0 [rows, k] as codes with their scales."""
    x = Pointer("x0", "bf16")
    arguments: Arguments = {"x": x, "codes": codes, "scales": scales, "rows": Number(rows)}
    constants = {"K": k, "BLOCK": at_once(k)}
    scratch = {codes.port: rows * k, scales.port: rows * 4}
    return Step("quantized:to_codes", arguments, constants, on(soc.vectors, rows), scratch)


def grouped(kernel: Kernel, schedule: Schedule, soc: Soc, rows: Size, y: Pointer) -> tuple[Step, Step]:
    """The table of tiles s2, then codes times the weights of their experts."""
    constants, experts, table = sizes(kernel, schedule), kernel["experts"], Pointer("s2", "i32")
    slots = rows // constants["BM"] + smaller(rows, experts)
    made: Arguments = {"ends": ENDS, "table": table, "slots": Number(slots)}
    places = {"E": experts, "BM": constants["BM"]}
    grid = on(soc.vectors, tiles(slots, LINE))
    tabulate = Step("grouped:tabulate", made, places, grid, {"s2": slots * 16})
    arguments: Arguments = {**operands(3), "table": table, "y": y, "slots": Number(slots)}
    count = slots * -(-constants["N"] // constants["BN"])
    grid, told = on(soc.cubes, count), buffered(schedule)
    return tabulate, Step("quantized:grouped", arguments, constants, grid, compiler=told)


def combine(kernel: Kernel, soc: Soc, products: Pointer, inverse: Pointer, weights: int) -> Step:
    """A token's rows by its weights, added to what there is already; weights: their place among operands,
    before that of what there is.
    """
    n, based = kernel["n"], kernel["base"] > 0
    block = max(part for part in range(1, min(n, TOGETHER) + 1) if n % part == 0)
    arguments: Arguments = {
        "x": products,
        "inverse": inverse,
        "weights": Pointer(f"x{weights}", "fp32"),
        "base": Pointer(f"x{weights + 1}", "bf16") if based else products,
        "y": Pointer("y0", "bf16"),
        "m": Number(M),
    }
    constants = {"N": n, "SHARE": kernel["share"], "BASED": int(based), "LINE": LINE, "BLOCK": block}
    return Step("quantized:combine", arguments, constants, on(soc.vectors, M * (n // block)))


def on(cores: int, count: Size) -> tuple[Size, Size, Size]:
    """A grid of as many blocks as there is work for, at most one a core."""
    return smaller(count, cores), ONE, ONE


def operands(w: int) -> Arguments:
    """Codes and scales of both sides; w: the place of the weight among the kernel's operands."""
    weight = {"w": Pointer(f"x{w}", "i8"), "w_scales": Pointer(f"x{w + 1}", "fp16")}
    return {"x": X, "x_scales": X_SCALES, **weight}


def at_once(k: int) -> int:
    """Columns of a row of k that are done at once."""
    return k if k <= WHOLE else PART


def sizes(kernel: Kernel, schedule: Schedule) -> dict[str, int]:
    """What all products are specialised for; where there is a gate, N is its rows."""
    tile = {name.upper(): int(schedule[name]) for name in ("bm", "bn", "bk")}
    parts = halves(kernel)
    return {"K": kernel["k"], "N": kernel["n"] // parts, "GATED": parts - 1, **tile}


BUILDERS: Mapping[str, Builder] = {
    **dict.fromkeys(("linear int8row", "linear_add int8row", "linear_swiglu int8row"), linear),
    "grouped_swiglu int8row": grouped_swiglu,
    "grouped_combine int8row": grouped_combine,
}
SPACES: Mapping[str, Callable[[Kernel, Soc], Space]] = dict.fromkeys(BUILDERS, space)
# The formats of weights that products read.
FORMATS: Mapping[str, Sequence[str]] = dict.fromkeys(MATMULS, ("bf16", "int8row"))
