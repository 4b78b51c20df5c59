"""What comes after a product of codes whose rows or parts of k were written apart: sums, in a fixed order."""

from typing import Any

import tilelang.language as T

from ...base import Kernel
from ..gemm_tiles import Tiles
from ..widths import widest

BF16, F32 = T.bfloat16, T.float32
THREADS = 128


def combine_sum(kernel: Kernel) -> Any:
    """y0 bf16 [m, n] = (x6 base +) the sum over a token's rows of x5 weight * s2 bf16 [m * share, n]."""
    n, share = kernel["n"], kernel["share"]
    lanes, m = widest(n), T.dynamic("m")

    @T.macro
    def body(rows, weights, base, y):
        with T.Kernel(T.ceildiv(m * (n // lanes), THREADS), threads=THREADS) as block:
            sums = T.alloc_local((lanes,), F32)
            part = T.alloc_local((lanes,), BF16)
            unit = block * THREADS + T.get_thread_binding()
            T.pdl_sync()
            T.pdl_trigger()
            if unit < m * (n // lanes):
                row = unit // (n // lanes)
                col = unit % (n // lanes) * lanes
                T.clear(sums)
                if base is not None:
                    for v in T.vectorized(lanes):
                        part[v] = base[row, col + v]
                    for v in T.unroll(lanes):
                        sums[v] = T.cast(part[v], F32)
                for j in T.unroll(share):
                    for v in T.vectorized(lanes):
                        part[v] = rows[row * share + j, col + v]
                    for v in T.unroll(lanes):
                        sums[v] += weights[row, j] * T.cast(part[v], F32)
                for v in T.vectorized(lanes):
                    y[row, col + v] = T.cast(sums[v], BF16)

    # Each operand needs a tensor of its own: the same one twice would be one operand.
    products, weights = T.Tensor((m * share, n), BF16), T.Tensor((m, share), F32)
    base, result = T.Tensor((m, n), BF16), T.Tensor((m, n), BF16)
    if kernel["base"]:

        @T.prim_func
        def fp8_combine_base(s2: products, x5: weights, x6: base, y0: result):
            body(s2, x5, x6, y0)

        return fp8_combine_base

    @T.prim_func
    def fp8_combine(s2: products, x5: weights, y0: result):
        body(s2, x5, None, y0)

    return fp8_combine


def split_sum(kernel: Kernel, t: Tiles) -> Any:
    """y0 [m, width] = the sum of s2 f32 [split, m, parts*width] over parts of k (+ x3, or SwiGLU of it)."""
    lanes, width, m = min(widest(t.width), 4), t.width, T.dynamic("m")
    out = F32 if t.wide else BF16

    @T.macro
    def add_parts(products, row, col, sums, part):
        T.clear(sums)
        for p in T.unroll(t.split):
            for v in T.vectorized(lanes):
                part[v] = products[p, row, col + v]
            for v in T.unroll(lanes):
                sums[v] += part[v]

    @T.macro
    def body(products, residual, y):
        with T.Kernel(T.ceildiv(m * (width // lanes), THREADS), threads=THREADS) as block:
            sums = T.alloc_local((lanes,), F32)
            ups = T.alloc_local((lanes,), F32)
            part = T.alloc_local((lanes,), F32)
            unit = block * THREADS + T.get_thread_binding()
            T.pdl_sync()
            T.pdl_trigger()
            if unit < m * (width // lanes):
                row = unit // (width // lanes)
                col = unit % (width // lanes) * lanes
                add_parts(products, row, col, sums, part)
                if t.parts == 2:
                    add_parts(products, row, width + col, ups, part)
                    for v in T.unroll(lanes):
                        sums[v] = sums[v] * T.fast_rcp(1 + T.__exp(-sums[v])) * ups[v]
                if residual is not None:
                    for v in T.unroll(lanes):
                        sums[v] += T.cast(residual[row, col + v], F32)
                for v in T.vectorized(lanes):
                    y[row, col + v] = T.cast(sums[v], out)

    products, result = T.Tensor((t.split, m, t.parts * width), F32), T.Tensor((m, width), out)
    if kernel.kind == "linear_add":

        @T.prim_func
        def fp8_split_sum_add(s2: products, x3: T.Tensor((m, width), BF16), y0: result):
            body(s2, x3, y0)

        return fp8_split_sum_add

    @T.prim_func
    def fp8_split_sum(s2: products, y0: result):
        body(s2, None, y0)

    return fp8_split_sum
