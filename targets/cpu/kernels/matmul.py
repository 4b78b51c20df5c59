"""The matmul tile: a few rows of x against panels of a packed weight, sums kept in registers.

Every linear layer, expert, absorbed projection and attention score runs on this one nest. Rows are found through
element offsets, so a gather by expert or a cache with holes costs nothing.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from tvm import s_tir
from tvm.script import tirx as T

from .exponential import silu

# A length no buffer reaches: extents of gathered operands are the caller's business.
FAR = 1 << 40


def heights(most: int) -> tuple[int, ...]:
    """Row counts worth a function of their own: any count is a short sum of these."""
    return tuple(sorted({height for height in (1, 2, 4, 8) if height < most} | {most}))


def divisor(size: int, most: int) -> int:
    """The largest divisor of size that is at most `most`."""
    return next(part for part in range(min(size, most), 0, -1) if size % part == 0)


def tile(symbol: str, rows: int, k: int, nr: int, unroll: int, parts: int = 1, finish: str = "store") -> Any:
    """A function (x, xat, w, y, yat, residual, panels): y[yat[i] + p*width + j] = finish(sum_k x[xat[i] + k] * w[p, k, j]).

    x, w, y, residual: float32; xat, yat: int64[rows] element offsets; w: [panels, k, nr].
    finish: store (width nr), add (plus residual, at y's offsets) or swiglu (silu of the panel's first half times
    its second, width nr/2). parts: independent sums over k, for a single row that would wait on its own adds.
    """
    parts = divisor(k, parts)
    steps = k // parts
    width = nr // 2 if finish == "swiglu" else nr

    def result(sums: Any, residual: Any, at: Any, p: Any, i: Any, j: Any) -> Any:
        def total(column: Any) -> Any:
            return reduce(lambda a, b: a + b, [sums[p, part, i, column] for part in range(parts)])

        if finish == "swiglu":
            return silu(total(j)) * total(j + width)
        return total(j) + residual[at] if finish == "add" else total(j)

    @T.prim_func(s_tir=True)
    def nest(
        x: T.handle("float32"),
        xat: T.handle("int64"),
        w: T.handle("float32"),
        y: T.handle("float32"),
        yat: T.handle("int64"),
        residual: T.handle("float32"),
        panels: T.int32,
    ):
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        X = T.decl_buffer((T.int64(FAR),), "float32", data=x, align=4)
        XAT = T.decl_buffer((rows,), "int64", data=xat, align=8)
        W = T.decl_buffer((panels, k, nr), "float32", data=w, align=4)
        Y = T.decl_buffer((T.int64(FAR),), "float32", data=y, align=4)
        YAT = T.decl_buffer((rows,), "int64", data=yat, align=8)
        R = T.decl_buffer((T.int64(FAR),), "float32", data=residual, align=4)
        C = T.sblock_alloc_buffer((panels, parts, rows, nr), "float32")
        for p, u, i, j, l in T.grid(panels, parts, rows, nr, steps):
            with T.sblock("dot"):
                vp, vu, vi, vj, vk = T.axis.remap("SSSSR", [p, u, i, j, l])
                with T.init():
                    C[vp, vu, vi, vj] = T.float32(0)
                C[vp, vu, vi, vj] = (
                    C[vp, vu, vi, vj]
                    + X[XAT[vi] + T.cast(vk * parts + vu, "int64")] * W[vp, vk * parts + vu, vj]
                )
        for p, i, j in T.grid(panels, rows, width):
            with T.sblock("store"):
                vp, vi, vj = T.axis.remap("SSS", [p, i, j])
                Y[YAT[vi] + T.cast(vp * width + vj, "int64")] = result(
                    C, R, YAT[vi] + T.cast(vp * width + vj, "int64"), vp, vi, vj
                )

    return keep_in_registers(nest, unroll)


def keep_in_registers(nest: Any, unroll: int) -> Any:
    """Sums in vectors, rows unrolled, k innermost around them, the store right after its panel."""
    schedule = s_tir.Schedule(nest)
    dot, store = schedule.get_sblock("dot"), schedule.get_sblock("store")
    panel, *inner = schedule.get_loops(store)
    shape(schedule, inner)
    schedule.compute_at(dot, panel, preserve_unit_loops=True)
    *axes, k = schedule.get_loops(dot)[1:]
    outer, step = schedule.split(k, [None, divisor(int(schedule.get(k).extent), unroll)])
    schedule.reorder(outer, step, *axes)
    schedule.unroll(step)
    shape(schedule, axes)
    init = schedule.decompose_reduction(dot, outer)
    shape(schedule, schedule.get_loops(init)[1:])
    return next(iter(schedule.mod.functions.values()))


def shape(schedule: Any, loops: Any) -> None:
    """Unroll all loops but the last, which becomes vectors."""
    for loop in loops[:-1]:
        schedule.unroll(loop)
    schedule.vectorize(loops[-1])
