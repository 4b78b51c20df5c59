"""Softmax of scores that come in pieces: a block of keys at a time, stretches of keys apart.

The rows of queries that share keys are the vector lanes.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from .exponential import exp
from .matmul import FAR, divisor

# Stands for minus infinity, yet differences of it stay numbers.
BOTTOM = -3.0e38
# Stretches of keys whose results are merged at most.
PARTS = 64


def soften(symbol: str, lanes: int) -> Any:
    """A function (s, at, limit, most, total, carry, keys): scores to weights, in place, one block of keys.

    s: float32[keys, lanes]; at: int32[keys], where each key stands; limit: int32[lanes]: a row sees a key if
    at < limit. most, total: float32[lanes], running maximum and sum, live across blocks; carry:
    float32[lanes], what earlier blocks' results must be multiplied by.
    """

    @T.prim_func(s_tir=True)
    def nest(
        s: T.handle("float32"),
        at: T.handle("int32"),
        limit: T.handle("int32"),
        most: T.handle("float32"),
        total: T.handle("float32"),
        carry: T.handle("float32"),
        keys: T.int32,
    ):
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        S = T.decl_buffer((keys, lanes), "float32", data=s, align=4)
        AT = T.decl_buffer((keys,), "int32", data=at, align=4)
        LIMIT = T.decl_buffer((lanes,), "int32", data=limit, align=4)
        MOST = T.decl_buffer((lanes,), "float32", data=most, align=4)
        TOTAL = T.decl_buffer((lanes,), "float32", data=total, align=4)
        CARRY = T.decl_buffer((lanes,), "float32", data=carry, align=4)
        top = T.sblock_alloc_buffer((lanes,), "float32")
        added = T.sblock_alloc_buffer((lanes,), "float32")
        for i in T.vectorized(lanes):
            top[i] = MOST[i]
        for i in T.vectorized(lanes):
            added[i] = T.float32(0)
        for k in T.serial(keys):
            for i in T.vectorized(lanes):
                top[i] = T.max(top[i], T.Select(AT[k] < LIMIT[i], S[k, i], T.float32(BOTTOM)))
        for k in T.serial(keys):
            for i in T.vectorized(lanes):
                S[k, i] = T.Select(AT[k] < LIMIT[i], exp(S[k, i] - top[i]), T.float32(0))
            for i in T.vectorized(lanes):
                added[i] = added[i] + S[k, i]
        for i in T.vectorized(lanes):
            CARRY[i] = exp(MOST[i] - top[i])
        for i in T.vectorized(lanes):
            TOTAL[i] = TOTAL[i] * CARRY[i] + added[i]
        for i in T.vectorized(lanes):
            MOST[i] = top[i]

    return nest


def merge(symbol: str, size: int, lanes: int) -> Any:
    """A function (acc, most, total, y, step, parts): one row's result from up to PARTS stretches of keys.

    y = sum_p exp(most[p] - top) * acc[p] / sum_p exp(most[p] - top) * total[p], part p lying p * step
    elements on; zero for a row that saw no key. acc: float32[size] in each part; most, total: one float32 in
    each part.
    """
    width = divisor(size, lanes)

    @T.prim_func(s_tir=True)
    def nest(
        acc: T.handle("float32"),
        most: T.handle("float32"),
        total: T.handle("float32"),
        y: T.handle("float32"),
        step: T.int64,
        parts: T.int32,
    ):
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        ACC = T.decl_buffer((T.int64(FAR),), "float32", data=acc, align=4)
        MOST = T.decl_buffer((T.int64(FAR),), "float32", data=most, align=4)
        TOTAL = T.decl_buffer((T.int64(FAR),), "float32", data=total, align=4)
        Y = T.decl_buffer((size,), "float32", data=y, align=4)
        weight = T.alloc_buffer((PARTS,), "float32", scope="global")
        top = T.sblock_alloc_buffer((1,), "float32")
        seen = T.sblock_alloc_buffer((1,), "float32")
        mixed = T.sblock_alloc_buffer((width,), "float32")
        for p in T.serial(PARTS):
            weight[p] = T.float32(0)
        top[0] = T.float32(BOTTOM)
        seen[0] = T.float32(0)
        for p in T.serial(parts):
            top[0] = T.max(top[0], MOST[T.cast(p, "int64") * step])
        for p in T.serial(parts):
            weight[p] = exp(MOST[T.cast(p, "int64") * step] - top[0])
            seen[0] = seen[0] + weight[p] * TOTAL[T.cast(p, "int64") * step]
        seen[0] = T.Select(seen[0] > T.float32(0), T.float32(1) / seen[0], T.float32(0))
        for c in T.serial(size // width):
            for j in T.vectorized(width):
                mixed[j] = T.float32(0)
            for p in T.serial(parts):
                for j in T.vectorized(width):
                    mixed[j] = (
                        mixed[j] + weight[p] * ACC[T.cast(p, "int64") * step + T.cast(c * width + j, "int64")]
                    )
            for j in T.vectorized(width):
                Y[c * width + j] = mixed[j] * seen[0]

    return nest
