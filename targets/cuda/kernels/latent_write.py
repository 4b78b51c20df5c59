"""New rows of the latent cache: the latent normed, the shared key rotated, written in place.

A block of 128 threads a token: one row is a few hundred numbers, and what matters is that it starts early.
"""

from collections.abc import Sequence
from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Step
from ..sm import Sm
from .latent_pages import PAGE, is_page, line_of, slot_of
from .latent_shared import BF16, E4M3, F32, I64, NONE, place, sizes

THREADS = 128
WARPS = THREADS // 32
LARGEST, NOTHING = 448, 2.0**-10  # of e4m3; what is no larger becomes 0


def latent_write(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """x0 [batch,tokens,width] -> rows end-tokens..end-1 of y0 [batch,1,room,c] and y1 [batch,1,room,r]."""
    return [Step((write_coded if kernel.cache == "fp8" else write)(kernel), overlap=True)]


def latent_write_paged(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """The same into pages of pools, by the table x8 [batch,room]; a row for what is no page is left out."""
    return [Step((write_coded_paged if kernel.cache == "fp8" else write_paged)(kernel), overlap=True)]


def write(kernel: Kernel) -> Any:
    """Into caches of a sequence's own."""
    c, r, width = kernel["c"], kernel["r"], kernel["width"]
    batch, tokens, _, room, _ = sizes()
    body = writing(kernel)

    @T.prim_func
    def latent_write(
        x0: T.Tensor((batch, tokens, width), BF16),
        x1: T.Tensor((c,), F32),
        x2: T.Tensor((batch, tokens, r // 2), F32),
        x3: T.Tensor((batch, tokens, r // 2), F32),
        x7: T.Tensor((batch, 2), I64),
        y0: T.Tensor((batch, 1, room, c), BF16),
        y1: T.Tensor((batch, 1, room, r), BF16),
        eps: T.float32,
    ):
        body(x0, x1, x2, x3, x7, None, None, y0, y1, eps, batch, tokens)

    return latent_write


def write_paged(kernel: Kernel) -> Any:
    """Into pages of pools."""
    c, r, width = kernel["c"], kernel["r"], kernel["width"]
    batch, tokens, _, room, _ = sizes()
    pages = T.dynamic("pages")
    body = writing(kernel)

    @T.prim_func
    def latent_write_paged(
        x0: T.Tensor((batch, tokens, width), BF16),
        x1: T.Tensor((c,), F32),
        x2: T.Tensor((batch, tokens, r // 2), F32),
        x3: T.Tensor((batch, tokens, r // 2), F32),
        x7: T.Tensor((batch, 2), I64),
        x8: T.Tensor((batch, room), I64),
        y0: T.Tensor((pages, 1, PAGE, c), BF16),
        y1: T.Tensor((pages, 1, PAGE, r), BF16),
        eps: T.float32,
    ):
        body(x0, x1, x2, x3, x7, x8, pages, y0, y1, eps, batch, tokens)

    return latent_write_paged


def write_coded(kernel: Kernel) -> Any:
    """Into such caches, latents as e4m3 codes with their scales in y2."""
    c, r, width = kernel["c"], kernel["r"], kernel["width"]
    batch, tokens, _, room, _ = sizes()
    body = writing(kernel)

    @T.prim_func
    def latent_write_coded(
        x0: T.Tensor((batch, tokens, width), BF16),
        x1: T.Tensor((c,), F32),
        x2: T.Tensor((batch, tokens, r // 2), F32),
        x3: T.Tensor((batch, tokens, r // 2), F32),
        x7: T.Tensor((batch, 2), I64),
        y0: T.Tensor((batch, 1, room, c), E4M3),
        y1: T.Tensor((batch, 1, room, r), BF16),
        y2: T.Tensor((batch, 1, room, 1), F32),
        eps: T.float32,
    ):
        body(x0, x1, x2, x3, x7, None, None, y0, y1, eps, batch, tokens, y2)

    return latent_write_coded


def write_coded_paged(kernel: Kernel) -> Any:
    """The same into pages of pools."""
    c, r, width = kernel["c"], kernel["r"], kernel["width"]
    batch, tokens, _, room, _ = sizes()
    pages = T.dynamic("pages")
    body = writing(kernel)

    @T.prim_func
    def latent_write_coded_paged(
        x0: T.Tensor((batch, tokens, width), BF16),
        x1: T.Tensor((c,), F32),
        x2: T.Tensor((batch, tokens, r // 2), F32),
        x3: T.Tensor((batch, tokens, r // 2), F32),
        x7: T.Tensor((batch, 2), I64),
        x9: T.Tensor((batch, room), I64),
        y0: T.Tensor((pages, 1, PAGE, c), E4M3),
        y1: T.Tensor((pages, 1, PAGE, r), BF16),
        y2: T.Tensor((pages, 1, PAGE, 1), F32),
        eps: T.float32,
    ):
        body(x0, x1, x2, x3, x7, x9, pages, y0, y1, eps, batch, tokens, y2)

    return latent_write_coded_paged


def writing(kernel: Kernel) -> Any:
    """Norm and rotation in f32; the sum of squares goes through shared memory once, and so does the largest
    number of a row that becomes codes. factors: where their scales go.
    """
    c, width, start = (kernel[name] for name in ("c", "width", "start"))
    pairs_in, pairs_out, half = kernel["pairs_in"], kernel["pairs_out"], kernel["r"] // 2
    vector = 4 if not (c % 4 or start % 4 or width % 4) else 1
    rounds = -(-c // (THREADS * vector))

    @T.macro
    def body(x0, x1, x2, x3, x7, table, pages, y0, y1, eps, batch, tokens, factors=None):
        with T.Kernel(tokens, batch, threads=THREADS) as (t, b):
            thread = T.get_thread_binding()
            weight = T.alloc_local((rounds, vector), F32)
            latent = T.alloc_local((rounds, vector), F32)
            total = T.alloc_var(F32, init=0.0)
            partial = T.alloc_shared((WARPS,), F32, scope="shared")
            row = T.alloc_var("int32", init=0)
            for i in T.unroll(rounds):
                for j in T.vectorized(vector):
                    if (i * THREADS + thread) * vector < c:
                        weight[i, j] = x1[(i * THREADS + thread) * vector + j]
            T.pdl_sync()
            T.pdl_trigger()
            row = T.cast(x7[b, 1], "int32") - tokens + t
            slot = slot_of(table, b, row, row + 1)
            there = is_page(table, slot, pages)
            for i in T.unroll(rounds):
                if (i * THREADS + thread) * vector < c:
                    for j in T.vectorized(vector):
                        latent[i, j] = T.cast(x0[b, t, start + (i * THREADS + thread) * vector + j], F32)
                    for j in T.unroll(vector):
                        total += latent[i, j] * latent[i, j]
            total = T.warp_reduce_sum(total)
            if thread % 32 == 0:
                partial[thread // 32] = total
            T.sync_threads()
            total = partial[0] + partial[1] + partial[2] + partial[3]
            total = T.rsqrt(total / c + eps)
            if factors is not None:
                largest = T.alloc_var(F32, init=0.0)
                most = T.alloc_shared((WARPS,), F32, scope="shared")
                for i in T.unroll(rounds):
                    if (i * THREADS + thread) * vector < c:
                        for j in T.unroll(vector):
                            latent[i, j] = latent[i, j] * total * weight[i, j]
                            largest = T.max(largest, T.abs(latent[i, j]))
                largest = T.warp_reduce_max(largest)
                if thread % 32 == 0:
                    most[thread // 32] = largest
                T.sync_threads()
                total = T.max(T.max(most[0], most[1]), T.max(most[2], most[3])) / T.float32(LARGEST)
                if T.And(there, thread == 0):
                    factors[slot, 0, line_of(table, row, row, row + 1), 0] = total
                if total == 0:
                    total = 1.0
                for i in T.unroll(rounds):
                    for j in T.unroll(vector):
                        latent[i, j] = latent[i, j] / total
                        if T.abs(latent[i, j]) <= T.float32(NOTHING):
                            latent[i, j] = 0.0  # and no negative one
            for i in T.unroll(rounds):
                if T.And(there, (i * THREADS + thread) * vector < c):
                    for j in T.vectorized(vector):
                        y0[
                            slot, 0, line_of(table, row, row, row + 1), (i * THREADS + thread) * vector + j
                        ] = (
                            T.cast(latent[i, j] * total * weight[i, j], BF16)
                            if factors is None
                            else T.cast(latent[i, j], E4M3)
                        )
            for i in T.unroll(-(-half // THREADS)):
                if T.And(there, i * THREADS + thread < half):
                    pair = i * THREADS + thread
                    low = T.cast(x0[b, t, start + c + place(pairs_in, half, pair, 0)], F32)
                    high = T.cast(x0[b, t, start + c + place(pairs_in, half, pair, 1)], F32)
                    cos = 1.0 if pairs_in == NONE else x2[b, t, pair]
                    sin = 0.0 if pairs_in == NONE else x3[b, t, pair]
                    y1[slot, 0, line_of(table, row, row, row + 1), place(pairs_out, half, pair, 0)] = T.cast(
                        low * cos - high * sin, BF16
                    )
                    y1[slot, 0, line_of(table, row, row, row + 1), place(pairs_out, half, pair, 1)] = T.cast(
                        low * sin + high * cos, BF16
                    )

    return body
