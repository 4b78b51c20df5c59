"""What comes after a product whose rows or parts of k were written apart: their sum, in a fixed order."""

from typing import Any

import tilelang.language as T

from ...base import Kernel
from ..gemm_tiles import Tiles

BF16, F32 = T.bfloat16, T.float32
THREADS = 128
LANES = 8  # columns of a thread: 16 bytes of bf16


def combine_sum(kernel: Kernel) -> Any:
    """y0 bf16 [m,n] = (x5 base +) the sum over a token's rows of x4 weight * s0 bf16 [m*share, n],
    the products in the order of tokens.
    """
    n, share, base = kernel["n"], kernel["share"], bool(kernel["base"])
    m = T.dynamic("m")

    @T.macro
    def body(s0, x4, base_rows, y0):
        with T.Kernel(T.ceildiv(m * (n // LANES), THREADS), threads=THREADS) as bx:
            sums = T.alloc_local((LANES,), F32)
            part = T.alloc_local((LANES,), BF16)
            weight = T.alloc_var(F32)
            unit = bx * THREADS + T.get_thread_binding()
            T.pdl_sync()
            T.pdl_trigger()
            if unit < m * (n // LANES):
                row = unit // (n // LANES)
                col = unit % (n // LANES) * LANES
                if base:
                    for v in T.vectorized(LANES):
                        part[v] = base_rows[row, col + v]
                    for v in T.unroll(LANES):
                        sums[v] = T.cast(part[v], F32)
                else:
                    for v in T.unroll(LANES):
                        sums[v] = 0
                for j in T.unroll(share):
                    weight = x4[row, j]
                    for v in T.vectorized(LANES):
                        part[v] = s0[row * share + j, col + v]
                    for v in T.unroll(LANES):
                        sums[v] += weight * T.cast(part[v], F32)
                for v in T.vectorized(LANES):
                    y0[row, col + v] = T.cast(sums[v], BF16)

    if base:

        @T.prim_func
        def combine_sum_base(
            s0: T.Tensor((m * share, n), BF16),
            x4: T.Tensor((m, share), F32),
            x5: T.Tensor((m, n), BF16),
            y0: T.Tensor((m, n), BF16),
        ):
            body(s0, x4, x5, y0)

        return combine_sum_base

    @T.prim_func
    def combine_sum(
        s0: T.Tensor((m * share, n), BF16), x4: T.Tensor((m, share), F32), y0: T.Tensor((m, n), BF16)
    ):
        body(s0, x4, x4, y0)

    return combine_sum


def split_sum(kernel: Kernel, t: Tiles) -> Any:
    """y0 [m, width] = the sum of s0 f32 [split, m, parts*width] over parts of k (+ x2, or SwiGLU of it)."""
    lanes, width, m = 4, t.width, T.dynamic("m")
    residual, paired = kernel.kind == "linear_add", t.parts == 2
    out = F32 if t.wide else BF16

    @T.macro
    def add_parts(s0, row, col, sums, part):
        for v in T.unroll(lanes):
            sums[v] = 0
        for p in T.unroll(t.split):
            for v in T.vectorized(lanes):
                part[v] = s0[p, row, col + v]
            for v in T.unroll(lanes):
                sums[v] += part[v]

    @T.macro
    def body(s0, extra, y0):
        with T.Kernel(T.ceildiv(m * (width // lanes), THREADS), threads=THREADS) as bx:
            sums = T.alloc_local((lanes,), F32)
            ups = T.alloc_local((lanes,), F32)
            part = T.alloc_local((lanes,), F32)
            old = T.alloc_local((lanes,), BF16)
            unit = bx * THREADS + T.get_thread_binding()
            T.pdl_sync()
            T.pdl_trigger()
            if unit < m * (width // lanes):
                row = unit // (width // lanes)
                col = unit % (width // lanes) * lanes
                add_parts(s0, row, col, sums, part)
                if paired:
                    add_parts(s0, row, width + col, ups, part)
                    for v in T.unroll(lanes):
                        sums[v] = sums[v] * T.fast_rcp(1 + T.__exp(-sums[v])) * ups[v]
                if residual:
                    for v in T.vectorized(lanes):
                        old[v] = extra[row, col + v]
                    for v in T.unroll(lanes):
                        sums[v] += T.cast(old[v], F32)
                for v in T.vectorized(lanes):
                    y0[row, col + v] = T.cast(sums[v], out)

    if residual:

        @T.prim_func
        def split_sum_add(
            s0: T.Tensor((t.split, m, width), F32),
            x2: T.Tensor((m, width), BF16),
            y0: T.Tensor((m, width), out),
        ):
            body(s0, x2, y0)

        return split_sum_add

    @T.prim_func
    def split_sum(s0: T.Tensor((t.split, m, t.parts * width), F32), y0: T.Tensor((m, width), out)):
        body(s0, s0, y0)

    return split_sum
