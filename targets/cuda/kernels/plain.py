"""Matrix products of any size, one number of the result a thread: for rows that 16-byte loads do not fit."""

from collections.abc import Mapping, Sequence
from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Builder, Step
from ..sm import Sm

BF16, F32, I64 = "bfloat16", "float32", "int64"
THREADS = 128


@T.macro
def dot(x: Any, row: Any, w: Any, column: Any, k: int, total: Any) -> None:
    """total[0]: row of x times column of w, both k wide."""
    total[0] = 0.0
    for i in T.serial(k):
        total[0] += T.cast(x[row, i], F32) * T.cast(w[column, i], F32)


@T.macro
def expert_of(row: Any, ends: Any, experts: int, found: Any) -> None:
    """found[0]: whose row of the sorted ones this is."""
    found[0] = 0
    for e in T.serial(experts):
        if ends[e] <= T.cast(row, I64):
            found[0] = e + 1
    found[0] = T.min(found[0], experts - 1)


def silu(gate: Any) -> Any:
    return gate / (1.0 + T.exp(-gate))


def linear(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """linear and, with a residual, linear_add."""
    k, n, dtype = kernel["k"], kernel["n"], F32 if kernel["wide"] else BF16
    m = T.dynamic("m")

    @T.macro
    def body(x0, x1, x2, y0, j, i):
        total = T.alloc_local((1,), F32)
        T.pdl_sync()
        T.pdl_trigger()
        if j < n:
            dot(x0, i, x1, j, k, total)
            if x2 is not None:
                total[0] += T.cast(x2[i, j], F32)
            y0[i, j] = T.cast(total[0], dtype)

    @T.prim_func
    def plain_linear(x0: T.Tensor((m, k), BF16), x1: T.Tensor((n, k), BF16), y0: T.Tensor((m, n), dtype)):
        with T.Kernel(m, T.ceildiv(n, THREADS), threads=THREADS) as (i, block):
            body(x0, x1, None, y0, block * THREADS + T.get_thread_binding(0), i)

    @T.prim_func
    def plain_linear_add(
        x0: T.Tensor((m, k), BF16),
        x1: T.Tensor((n, k), BF16),
        x2: T.Tensor((m, n), BF16),
        y0: T.Tensor((m, n), dtype),
    ):
        with T.Kernel(m, T.ceildiv(n, THREADS), threads=THREADS) as (i, block):
            body(x0, x1, x2, y0, block * THREADS + T.get_thread_binding(0), i)

    return [Step(plain_linear_add if kernel.kind == "linear_add" else plain_linear, overlap=True)]


def linear_swiglu(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """Gate and up side by side."""
    k, n, half = kernel["k"], kernel["n"], kernel["n"] // 2
    dtype = F32 if kernel["wide"] else BF16
    m = T.dynamic("m")

    @T.prim_func
    def plain_linear_swiglu(
        x0: T.Tensor((m, k), BF16), x1: T.Tensor((n, k), BF16), y0: T.Tensor((m, half), dtype)
    ):
        with T.Kernel(m, T.ceildiv(half, THREADS), threads=THREADS) as (i, block):
            j = block * THREADS + T.get_thread_binding(0)
            gate, up = T.alloc_local((1,), F32), T.alloc_local((1,), F32)
            T.pdl_sync()
            T.pdl_trigger()
            if j < half:
                dot(x0, i, x1, j, k, gate)
                dot(x0, i, x1, half + j, k, up)
                y0[i, j] = T.cast(silu(gate[0]) * up[0], dtype)

    return [Step(plain_linear_swiglu, overlap=True)]


def grouped_swiglu(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """A block takes columns of one sorted row."""
    k, n, half = kernel["k"], kernel["n"], kernel["n"] // 2
    experts, share = kernel["experts"], kernel["share"]
    m = T.dynamic("m")

    @T.prim_func
    def plain_grouped_swiglu(
        x0: T.Tensor((m, k), BF16),
        x1: T.Tensor((m * share,), I64),
        x2: T.Tensor((experts,), I64),
        x3: T.Tensor((experts * n, k), BF16),
        y0: T.Tensor((m * share, half), BF16),
    ):
        with T.Kernel(m * share, T.ceildiv(half, THREADS), threads=THREADS) as (i, block):
            j = block * THREADS + T.get_thread_binding(0)
            gate, up = T.alloc_local((1,), F32), T.alloc_local((1,), F32)
            expert = T.alloc_local((1,), "int32")
            T.pdl_sync()
            T.pdl_trigger()
            if j < half:
                expert_of(i, x2, experts, expert)
                token = T.cast(x1[i], "int32") // share
                dot(x0, token, x3, expert[0] * n + j, k, gate)
                dot(x0, token, x3, expert[0] * n + half + j, k, up)
                y0[i, j] = T.cast(silu(gate[0]) * up[0], BF16)

    return [Step(plain_grouped_swiglu, overlap=True)]


def grouped_combine(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """A thread looks for its token's rows among all: right for any routing, and slow for many tokens."""
    k, n, experts, share = kernel["k"], kernel["n"], kernel["experts"], kernel["share"]
    m = T.dynamic("m")

    @T.macro
    def body(x0, x1, x2, x3, x4, x5, y0, j, i):
        total, product = T.alloc_local((1,), F32), T.alloc_local((1,), F32)
        expert = T.alloc_local((1,), "int32")
        T.pdl_sync()
        T.pdl_trigger()
        if j < n:
            total[0] = 0.0
            if x5 is not None:
                total[0] = T.cast(x5[i, j], F32)
            for r in T.serial(m * share):
                slot = T.cast(x1[r], "int32")
                if slot // share == i:
                    expert_of(r, x2, experts, expert)
                    dot(x0, r, x3, expert[0] * n + j, k, product)
                    total[0] += product[0] * x4[i, slot % share]
            y0[i, j] = T.cast(total[0], BF16)

    @T.prim_func
    def plain_grouped_combine(
        x0: T.Tensor((m * share, k), BF16),
        x1: T.Tensor((m * share,), I64),
        x2: T.Tensor((experts,), I64),
        x3: T.Tensor((experts * n, k), BF16),
        x4: T.Tensor((m, share), F32),
        y0: T.Tensor((m, n), BF16),
    ):
        with T.Kernel(m, T.ceildiv(n, THREADS), threads=THREADS) as (i, block):
            body(x0, x1, x2, x3, x4, None, y0, block * THREADS + T.get_thread_binding(0), i)

    @T.prim_func
    def plain_grouped_combine_onto(
        x0: T.Tensor((m * share, k), BF16),
        x1: T.Tensor((m * share,), I64),
        x2: T.Tensor((experts,), I64),
        x3: T.Tensor((experts * n, k), BF16),
        x4: T.Tensor((m, share), F32),
        x5: T.Tensor((m, n), BF16),
        y0: T.Tensor((m, n), BF16),
    ):
        with T.Kernel(m, T.ceildiv(n, THREADS), threads=THREADS) as (i, block):
            body(x0, x1, x2, x3, x4, x5, y0, block * THREADS + T.get_thread_binding(0), i)

    return [Step(plain_grouped_combine_onto if kernel["base"] else plain_grouped_combine, overlap=True)]


PLAIN: Mapping[str, Builder] = {
    "linear": linear,
    "linear_add": linear,
    "linear_swiglu": linear_swiglu,
    "grouped_swiglu": grouped_swiglu,
    "grouped_combine": grouped_combine,
}
