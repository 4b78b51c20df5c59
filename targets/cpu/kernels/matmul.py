"""The matmul tile: a few rows of x against panels of a packed weight, sums kept in registers.

Every linear layer, expert and absorbed projection runs on this one nest. Rows are found through offsets, so a
gather by expert costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from tvm.script import tirx as T

from ...base import Kernel, Schedule
from ..isa import Isa
from .exponential import silu

# A length no buffer reaches: extents of gathered operands are the caller's business.
FAR = 1 << 40
LINE = 16  # float32 in a cache line
# Sums that must be under way to keep two adders of four cycles busy.
CHAINS = 8


def divisor(size: int, most: int) -> int:
    """The largest divisor of size that is at most `most`."""
    return next(part for part in range(min(size, most), 0, -1) if size % part == 0)


def prefetch(element: Any) -> Any:
    """Ask for the cache line that holds a buffer's element; harmless beyond the buffer's end."""
    read, keep, data = T.int32(0), T.int32(3), T.int32(1)
    return T.call_llvm_intrin("void", "llvm.prefetch", T.address_of(element), read, keep, data)


def tile(
    symbol: str,
    rows: int,
    k: int,
    nr: int,
    lanes: int,
    unroll: int = 1,
    ahead: int = 0,
    finish: str = "store",
) -> Any:
    """A function (x, xat, w, y, yat, extra, panels).

        y[yat[i] + p * width + j] = finish(sum_k x[xat[i] + k] * w[p, k, j])

    x, y: float32; xat, yat: int64[rows], in elements; w: float32[panels, k, nr], asked for `ahead` steps of k
    early; width: nr. finish: store; add (plus extra, float32 at y's offsets); accumulate (times extra[i],
    float32[rows], plus y itself); swiglu (silu of the panel's first half times its second; width: nr / 2).
    """
    vectors, lines = nr // lanes, max(nr // LINE, 1) if ahead else 0
    # Few rows would wait on their own adds, so several sums take turns over k.
    parts = divisor(k, max(1, CHAINS // (rows * vectors)))
    unroll = divisor(k // parts, unroll)
    width = nr // 2 if finish == "swiglu" else nr

    def result(C: Any, Y: Any, E: Any, at: Any, i: Any, j: Any) -> Any:
        def total(column: Any) -> Any:
            return reduce(lambda a, b: a + b, [C[part * rows + i, column] for part in range(parts)])

        if finish == "swiglu":
            return silu(total(j)) * total(j + width)
        if finish == "accumulate":
            return Y[at] + E[T.cast(i, "int64")] * total(j)
        return total(j) + E[at] if finish == "add" else total(j)

    @T.prim_func(s_tir=True)
    def nest(
        x: T.handle("float32"),
        xat: T.handle("int64"),
        w: T.handle("float32"),
        y: T.handle("float32"),
        yat: T.handle("int64"),
        extra: T.handle("float32"),
        panels: T.int32,
    ):
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        X = T.decl_buffer((T.int64(FAR),), "float32", data=x, align=4)
        XAT = T.decl_buffer((rows,), "int64", data=xat, align=8)
        W = T.decl_buffer((panels, k, nr), "float32", data=w, align=4)
        Y = T.decl_buffer((T.int64(FAR),), "float32", data=y, align=4)
        YAT = T.decl_buffer((rows,), "int64", data=yat, align=8)
        E = T.decl_buffer((T.int64(FAR),), "float32", data=extra, align=4)
        for p in T.serial(panels):
            C = T.alloc_buffer((parts * rows, nr), "float32", scope="global")
            for i in T.unroll(parts * rows):
                for v in T.unroll(vectors):
                    for j in T.vectorized(lanes):
                        C[i, v * lanes + j] = T.float32(0)
            for step in T.serial(k // parts // unroll):
                for u in T.unroll(unroll * parts):
                    for line in T.unroll(lines):
                        T.evaluate(prefetch(W[p, step * unroll * parts + u + ahead, line * LINE]))
                    for i in T.unroll(rows):
                        for v in T.unroll(vectors):
                            for j in T.vectorized(lanes):
                                C[u % parts * rows + i, v * lanes + j] = (
                                    C[u % parts * rows + i, v * lanes + j]
                                    + X[XAT[i] + T.cast(step * unroll * parts + u, "int64")]
                                    * W[p, step * unroll * parts + u, v * lanes + j]
                                )
            for i in T.unroll(rows):
                for v in T.unroll(width // lanes):
                    for j in T.vectorized(lanes):
                        Y[YAT[i] + T.cast(p * width + v * lanes + j, "int64")] = result(
                            C, Y, E, YAT[i] + T.cast(p * width + v * lanes + j, "int64"), i, v * lanes + j
                        )

    return nest


def shape(schedule: Any, loops: Any) -> None:
    """Unroll all loops but the last, which becomes vectors."""
    for loop in loops[:-1]:
        schedule.unroll(loop)
    schedule.vectorize(loops[-1])


FINISH = {
    "linear": "store",
    "linear_add": "add",
    "linear_swiglu": "swiglu",
    "grouped_swiglu": "swiglu",
    "grouped_combine": "accumulate",
}


def tiles(kernel: Kernel, schedule: Schedule, isa: Isa, prefix: str) -> Sequence[Any]:
    """Tiles of 1, 2, .. mr rows: whatever rows there are split into nearly equal heights.

    Only tall tiles ask for weights early: low ones run far enough ahead of memory on their own.
    """
    nr, mr, unroll, ahead = (int(schedule[knob]) for knob in ("nr", "mr", "unroll", "ahead"))
    k, finish = kernel["k"], FINISH[kernel.kind]
    return [
        tile(f"{prefix}_{rows}", rows, k, nr, isa.lanes, unroll, ahead if 2 * rows > mr else 0, finish)
        for rows in range(1, mr + 1)
    ]


BUILDERS = dict.fromkeys(FINISH, tiles)
