"""What stands before and behind the absorbed attention: into the space of latents, and out of it.

A block takes a head of some tokens; a weight tile is asked for before the step before has ended.
"""

from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from .latent_shared import BF16, F32, NONE, place


def absorb(kernel: Kernel, schedule: Schedule) -> Any:
    """s0 [m*heads, latent+rope]: each head's unrotated part times its key rows of w, and its part turned."""
    heads, nope, rope, latent, value = (kernel[n] for n in ("heads", "nope", "rope", "latent", "value"))
    width, start, half = kernel["width"], kernel["start"], kernel["rope"] // 2
    rows, columns, threads = int(schedule["a_project"]), min(128, latent), 128
    m = T.dynamic("m")

    @T.prim_func
    def latent_absorb(
        x0: T.Tensor((m, width), BF16),
        x1: T.Tensor((m, half), F32),
        x2: T.Tensor((m, half), F32),
        x7: T.Tensor((heads * (nope + value), latent), BF16),
        s0: T.Tensor((m * heads, latent + rope), BF16),
    ):
        with T.Kernel(latent // columns, heads, T.ceildiv(m, rows), threads=threads) as (c, h, r):
            w = T.alloc_shared((nope, columns), BF16)
            q = T.alloc_shared((rows, nope), BF16)
            out = T.alloc_shared((rows, columns), BF16)
            product = T.alloc_fragment((rows, columns), F32)
            loaded = T.alloc_barrier(arrive_count=threads)
            T.tma_copy(x7[h * (nope + value), c * columns], w, barrier=loaded)
            T.barrier_arrive(loaded)
            T.pdl_sync()
            T.pdl_trigger()
            for i, k in T.Parallel(rows, nope):
                q[i, k] = T.if_then_else(
                    r * rows + i < m, x0[r * rows + i, start + h * (nope + rope) + k], T.cast(0, BF16)
                )
            T.fence_proxy_async()
            T.barrier_wait(loaded, 0)
            T.gemm(q, w, product, clear_accum=True)
            T.copy(product, out)
            for i, k in T.Parallel(rows, columns):
                if r * rows + i < m:
                    s0[(r * rows + i) * heads + h, c * columns + k] = out[i, k]
            if c == 0:
                for i, pair in T.Parallel(rows, half):
                    if r * rows + i < m:
                        at = start + h * (nope + rope) + nope
                        row = r * rows + i
                        low = T.cast(x0[row, at + place(kernel["pairs_in"], half, pair, 0)], F32)
                        high = T.cast(x0[row, at + place(kernel["pairs_in"], half, pair, 1)], F32)
                        cos = 1.0 if kernel["pairs_in"] == NONE else x1[row, pair]
                        sin = 0.0 if kernel["pairs_in"] == NONE else x2[row, pair]
                        to = latent + place(kernel["pairs_out"], half, pair, 0)
                        s0[row * heads + h, to] = T.cast(low * cos - high * sin, BF16)
                        to_high = latent + place(kernel["pairs_out"], half, pair, 1)
                        s0[row * heads + h, to_high] = T.cast(low * sin + high * cos, BF16)

    return latent_absorb


def project(kernel: Kernel, schedule: Schedule) -> Any:
    """y0 [m, heads*value]: each head's mixed latents times its value rows of w."""
    heads, nope, latent, value = (kernel[n] for n in ("heads", "nope", "latent", "value"))
    rows, threads = int(schedule["a_project"]), 128
    columns = min(64, value)
    m = T.dynamic("m")

    @T.prim_func
    def latent_project(
        x7: T.Tensor((heads * (nope + value), latent), BF16),
        s1: T.Tensor((m, heads, latent), BF16),
        y0: T.Tensor((m, heads * value), BF16),
    ):
        with T.Kernel(value // columns, heads, T.ceildiv(m, rows), threads=threads) as (c, h, r):
            w = T.alloc_shared((columns, latent), BF16)
            mixed = T.alloc_shared((rows, latent), BF16)
            out = T.alloc_shared((rows, columns), BF16)
            product = T.alloc_fragment((rows, columns), F32)
            loaded = T.alloc_barrier(arrive_count=threads)
            ready = T.alloc_barrier(arrive_count=threads)
            T.tma_copy(x7[h * (nope + value) + nope + c * columns, 0], w, barrier=loaded)
            T.barrier_arrive(loaded)
            T.pdl_sync()
            T.pdl_trigger()
            T.tma_copy(s1[r * rows : (r + 1) * rows, h, :], mixed, barrier=ready)
            T.barrier_arrive(ready)
            T.barrier_wait(loaded, 0)
            T.barrier_wait(ready, 0)
            T.gemm(mixed, w, product, transpose_B=True, clear_accum=True)
            T.copy(product, out)
            for i, k in T.Parallel(rows, columns):
                if r * rows + i < m:
                    y0[r * rows + i, h * value + c * columns + k] = out[i, k]

    return latent_project
