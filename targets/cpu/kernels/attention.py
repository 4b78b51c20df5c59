"""Attention over blocks of keys: rows of queries are the vector lanes.

    scores[s, i] = sum_d K[s, d] * qt[d, i]     the matmul tile, the transposed queries being its weight
    soften                                       running maximum and sum, down the lanes
    o[i, v] = o[i, v] * carry[i] + sum_s p[s, i] * V[s, v]

Any rows that share keys and values may sit side by side: heads over latent rows, tokens of one head, or both.
"""

from __future__ import annotations

from typing import Any

from tvm import s_tir
from tvm.script import tirx as T

from .exponential import exp
from .matmul import FAR, shape

# Stands for minus infinity, yet differences of it stay numbers.
BOTTOM = -3.0e38


def soften(symbol: str, lanes: int) -> Any:
    """A function (s, limit, most, sum, carry, first, keys): scores to weights, in place, a block of keys at a time.

    s: float32[keys, lanes]; limit: int32[lanes], the number of keys each row sees, counted from key 0 of all
    blocks; `first` is where this block starts. most, sum, carry: float32[lanes]; most and sum live across blocks,
    carry is what earlier blocks' results must be multiplied by.
    """

    @T.prim_func(s_tir=True)
    def nest(
        s: T.handle("float32"),
        limit: T.handle("int32"),
        most: T.handle("float32"),
        total: T.handle("float32"),
        carry: T.handle("float32"),
        first: T.int32,
        keys: T.int32,
    ):
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        S = T.decl_buffer((keys, lanes), "float32", data=s, align=4)
        LIMIT = T.decl_buffer((lanes,), "int32", data=limit, align=4)
        MOST = T.decl_buffer((lanes,), "float32", data=most, align=4)
        TOTAL = T.decl_buffer((lanes,), "float32", data=total, align=4)
        CARRY = T.decl_buffer((lanes,), "float32", data=carry, align=4)
        top = T.sblock_alloc_buffer((lanes,), "float32")
        added = T.sblock_alloc_buffer((lanes,), "float32")
        for i in T.vectorized(lanes):
            top[i] = MOST[i]
            added[i] = T.float32(0)
        for r in T.serial(keys):
            for i in T.vectorized(lanes):
                top[i] = T.max(top[i], T.Select(first + r < LIMIT[i], S[r, i], T.float32(BOTTOM)))
        for r in T.serial(keys):
            for i in T.vectorized(lanes):
                S[r, i] = T.Select(first + r < LIMIT[i], exp(S[r, i] - top[i]), T.float32(0))
            for i in T.vectorized(lanes):
                added[i] = added[i] + S[r, i]
        for i in T.vectorized(lanes):
            CARRY[i] = exp(MOST[i] - top[i])
        for i in T.vectorized(lanes):
            TOTAL[i] = TOTAL[i] * CARRY[i] + added[i]
            MOST[i] = top[i]

    return nest


def weigh(symbol: str, rows: int, lanes: int, width: int, base: str) -> Any:
    """A function (p, v, vat, y, yat, b, keys, chunks): y[yat[i] + c] = base + sum_s p[s, i] * v[vat[s] + c].

    p: float32[keys, lanes], of which the first `rows` columns from the pointer given are used; vat: int64[keys];
    c runs over chunks * width columns. base: carry (y * b[i]: y holds earlier blocks' sums), add (b[yat[i] + c])
    or none (b is not read).
    """

    def result(Y: Any, B: Any, at: Any, i: Any, dot: Any) -> Any:
        if base == "carry":
            return Y[at] * B[T.cast(i, "int64")] + dot
        return B[at] + dot if base == "add" else dot

    @T.prim_func(s_tir=True)
    def nest(
        p: T.handle("float32"),
        v: T.handle("float32"),
        vat: T.handle("int64"),
        y: T.handle("float32"),
        yat: T.handle("int64"),
        b: T.handle("float32"),
        keys: T.int32,
        chunks: T.int32,
    ):
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        P = T.decl_buffer((keys, lanes), "float32", data=p, align=4)
        V = T.decl_buffer((T.int64(FAR),), "float32", data=v, align=4)
        VAT = T.decl_buffer((keys,), "int64", data=vat, align=8)
        Y = T.decl_buffer((T.int64(FAR),), "float32", data=y, align=4)
        YAT = T.decl_buffer((rows,), "int64", data=yat, align=8)
        B = T.decl_buffer((T.int64(FAR),), "float32", data=b, align=4)
        C = T.sblock_alloc_buffer((chunks, rows, width), "float32")
        for c, i, j, l in T.grid(chunks, rows, width, keys):
            with T.sblock("dot"):
                vc, vi, vj, vs = T.axis.remap("SSSR", [c, i, j, l])
                with T.init():
                    C[vc, vi, vj] = T.float32(0)
                C[vc, vi, vj] = C[vc, vi, vj] + P[vs, vi] * V[VAT[vs] + T.cast(vc * width + vj, "int64")]
        for c, i, j in T.grid(chunks, rows, width):
            with T.sblock("store"):
                vc, vi, vj = T.axis.remap("SSS", [c, i, j])
                Y[YAT[vi] + T.cast(vc * width + vj, "int64")] = result(
                    Y, B, YAT[vi] + T.cast(vc * width + vj, "int64"), vi, C[vc, vi, vj]
                )

    schedule = s_tir.Schedule(nest)
    dot, store = schedule.get_sblock("dot"), schedule.get_sblock("store")
    chunk, *inner = schedule.get_loops(store)
    shape(schedule, inner)
    schedule.compute_at(dot, chunk, preserve_unit_loops=True)
    *axes, key = schedule.get_loops(dot)[1:]
    schedule.reorder(key, *axes)
    shape(schedule, axes)
    init = schedule.decompose_reduction(dot, key)
    shape(schedule, schedule.get_loops(init)[1:])
    return next(iter(schedule.mod.functions.values()))


def finish(symbol: str, size: int) -> Any:
    """A function (y, yat, sum, rows): each row of `size` divided by its sum; a row that saw no key stays zero."""

    @T.prim_func(s_tir=True)
    def nest(y: T.handle("float32"), yat: T.handle("int64"), total: T.handle("float32"), rows: T.int32):
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        Y = T.decl_buffer((T.int64(FAR),), "float32", data=y, align=4)
        YAT = T.decl_buffer((rows,), "int64", data=yat, align=8)
        TOTAL = T.decl_buffer((rows,), "float32", data=total, align=4)
        factor = T.sblock_alloc_buffer((1,), "float32")
        for i in T.serial(rows):
            factor[0] = T.Select(TOTAL[i] > T.float32(0), T.float32(1) / TOTAL[i], T.float32(0))
            for j in T.serial(size):
                Y[YAT[i] + T.cast(j, "int64")] = Y[YAT[i] + T.cast(j, "int64")] * factor[0]

    return nest
