"""Latent attention of any sizes, on plain cores: for models too small or too odd for the tensor cores' tiles.

A block takes a head of a token: the query goes into the space of latents, meets 128 keys at a time (a thread
each), and what it mixed comes back through the value rows of w. All in f32.
"""

from typing import Any

import tilelang.language as T

from ...base import Kernel
from .latent_pages import PAGE, checked, is_page, line_of, nothing, slot_of
from .latent_shared import BF16, E4M3, F32, I64, LOG2E, LOWEST, NONE, PRELUDE, exp2, place, sizes

THREADS = 128
WARPS = THREADS // 32


def plain(kernel: Kernel) -> Any:
    """latent_attention as one launch, no scratch."""
    heads, nope, rope, latent, value = (kernel[n] for n in ("heads", "nope", "rope", "latent", "value"))
    batch, tokens, _, room, _ = sizes()
    body = attending(kernel)

    @T.prim_func
    def latent_plain(
        x0: T.Tensor((batch, tokens, kernel["width"]), BF16),
        x1: T.Tensor((batch, tokens, rope // 2), F32),
        x2: T.Tensor((batch, tokens, rope // 2), F32),
        x3: T.Tensor((batch, 1, room, latent), BF16),
        x4: T.Tensor((batch, 1, room, rope), BF16),
        x6: T.Tensor((batch, 2), I64),
        x7: T.Tensor((heads * (nope + value), latent), BF16),
        y0: T.Tensor((batch, tokens, heads * value), BF16),
        scale: T.float32,
    ):
        body(x0, x1, x2, x3, x4, x6, x7, None, None, y0, scale, batch, tokens)

    return latent_plain


def plain_paged(kernel: Kernel) -> Any:
    """latent_attention_paged as one launch, no scratch."""
    heads, nope, rope, latent, value = (kernel[n] for n in ("heads", "nope", "rope", "latent", "value"))
    batch, tokens, _, room, _ = sizes()
    pages = T.dynamic("pages")
    body = attending(kernel)

    @T.prim_func
    def latent_plain_paged(
        x0: T.Tensor((batch, tokens, kernel["width"]), BF16),
        x1: T.Tensor((batch, tokens, rope // 2), F32),
        x2: T.Tensor((batch, tokens, rope // 2), F32),
        x3: T.Tensor((pages, 1, PAGE, latent), BF16),
        x4: T.Tensor((pages, 1, PAGE, rope), BF16),
        x6: T.Tensor((batch, 2), I64),
        x7: T.Tensor((heads * (nope + value), latent), BF16),
        x8: T.Tensor((batch, room), I64),
        y0: T.Tensor((batch, tokens, heads * value), BF16),
        scale: T.float32,
    ):
        body(x0, x1, x2, x3, x4, x6, x7, x8, pages, y0, scale, batch, tokens)

    return latent_plain_paged


def plain_coded(kernel: Kernel) -> Any:
    """latent_attention over e4m3 codes x3 and their scales x8."""
    heads, nope, rope, latent, value = (kernel[n] for n in ("heads", "nope", "rope", "latent", "value"))
    batch, tokens, _, room, _ = sizes()
    body = attending(kernel)

    @T.prim_func
    def latent_plain_coded(
        x0: T.Tensor((batch, tokens, kernel["width"]), BF16),
        x1: T.Tensor((batch, tokens, rope // 2), F32),
        x2: T.Tensor((batch, tokens, rope // 2), F32),
        x3: T.Tensor((batch, 1, room, latent), E4M3),
        x4: T.Tensor((batch, 1, room, rope), BF16),
        x6: T.Tensor((batch, 2), I64),
        x7: T.Tensor((heads * (nope + value), latent), BF16),
        x8: T.Tensor((batch, 1, room, 1), F32),
        y0: T.Tensor((batch, tokens, heads * value), BF16),
        scale: T.float32,
    ):
        body(x0, x1, x2, x3, x4, x6, x7, None, None, y0, scale, batch, tokens, x8)

    return latent_plain_coded


def plain_coded_paged(kernel: Kernel) -> Any:
    """The same in pages of the table x9."""
    heads, nope, rope, latent, value = (kernel[n] for n in ("heads", "nope", "rope", "latent", "value"))
    batch, tokens, _, room, _ = sizes()
    pages = T.dynamic("pages")
    body = attending(kernel)

    @T.prim_func
    def latent_plain_coded_paged(
        x0: T.Tensor((batch, tokens, kernel["width"]), BF16),
        x1: T.Tensor((batch, tokens, rope // 2), F32),
        x2: T.Tensor((batch, tokens, rope // 2), F32),
        x3: T.Tensor((pages, 1, PAGE, latent), E4M3),
        x4: T.Tensor((pages, 1, PAGE, rope), BF16),
        x6: T.Tensor((batch, 2), I64),
        x7: T.Tensor((heads * (nope + value), latent), BF16),
        x8: T.Tensor((pages, 1, PAGE, 1), F32),
        x9: T.Tensor((batch, room), I64),
        y0: T.Tensor((batch, tokens, heads * value), BF16),
        scale: T.float32,
    ):
        body(x0, x1, x2, x3, x4, x6, x7, x9, pages, y0, scale, batch, tokens, x8)

    return latent_plain_coded_paged


def attending(kernel: Kernel) -> Any:
    """What all do; factors: scales of rows, where latents are codes."""
    heads, nope, rope, latent, value = (kernel[n] for n in ("heads", "nope", "rope", "latent", "value"))
    start, half = kernel["start"], kernel["rope"] // 2
    pairs_in, pairs_out = kernel["pairs_in"], kernel["pairs_out"]
    columns = -(-latent // THREADS)

    @T.macro
    def body(x0, x1, x2, x3, x4, x6, x7, table, pages, y0, scale, batch, tokens, factors=None):
        with T.Kernel(heads, tokens, batch, threads=THREADS, prelude=PRELUDE) as (h, t, b):
            thread = T.get_thread_binding()
            query = T.alloc_shared((latent + rope,), F32, scope="shared")
            chances = T.alloc_shared((THREADS,), F32, scope="shared")
            partial = T.alloc_shared((WARPS,), F32, scope="shared")
            mixed = T.alloc_local((columns,), F32)
            top = T.alloc_var(F32, init=LOWEST)
            before = T.alloc_var(F32, init=0.0)
            total = T.alloc_var(F32, init=0.0)
            sum_ = T.alloc_var(F32, init=0.0)
            T.pdl_sync()
            T.pdl_trigger()
            at = start + h * (nope + rope)
            for i in T.unroll(columns):
                mixed[i] = 0
                if i * THREADS + thread < latent:
                    sum_ = 0.0
                    for k in T.serial(nope):
                        sum_ += T.cast(x0[b, t, at + k], F32) * T.cast(
                            x7[h * (nope + value) + k, i * THREADS + thread], F32
                        )
                    query[i * THREADS + thread] = sum_
            for i in T.unroll(-(-half // THREADS)):
                pair = i * THREADS + thread
                if pair < half:
                    low = T.cast(x0[b, t, at + nope + place(pairs_in, half, pair, 0)], F32)
                    high = T.cast(x0[b, t, at + nope + place(pairs_in, half, pair, 1)], F32)
                    cos = 1.0 if pairs_in == NONE else x1[b, t, pair]
                    sin = 0.0 if pairs_in == NONE else x2[b, t, pair]
                    query[latent + place(pairs_out, half, pair, 0)] = low * cos - high * sin
                    query[latent + place(pairs_out, half, pair, 1)] = low * sin + high * cos
            T.sync_threads()
            first = T.cast(x6[b, 0], "int32")
            stop = T.cast(x6[b, 1], "int32") - tokens + t + 1
            for block in T.serial(T.ceildiv(T.max(stop - first, 0), THREADS)):
                row = first + block * THREADS + thread
                sum_ = -T.infinity(F32)
                if row < stop:
                    slot = slot_of(table, b, row, stop)
                    line = line_of(table, row, row, stop)
                    sum_ = checked(table, 0.0, b, row, stop, pages)
                    if is_page(table, slot, pages):
                        for k in T.serial(latent):
                            sum_ += query[k] * T.cast(x3[slot, 0, line, k], F32)
                        if factors is not None:
                            sum_ = sum_ * factors[slot, 0, line, 0]
                        for k in T.serial(rope):
                            sum_ += query[latent + k] * T.cast(x4[slot, 0, line, k], F32)
                    sum_ = sum_ * (scale * LOG2E)
                before = T.warp_reduce_max(sum_)
                if thread % 32 == 0:
                    partial[thread // 32] = before
                T.sync_threads()
                before = top
                for i in T.unroll(WARPS):
                    top = T.max(top, partial[i])
                before = exp2(before - top)
                chances[thread] = exp2(sum_ - top)
                T.sync_threads()
                total = total * before
                for i in T.unroll(columns):
                    mixed[i] = mixed[i] * before
                for k in T.serial(T.min(THREADS, stop - first - block * THREADS)):
                    total += chances[k]
                    at_key = first + block * THREADS + k
                    slot_k = slot_of(table, b, at_key, stop)
                    for i in T.unroll(columns):
                        if T.And(is_page(table, slot_k, pages), i * THREADS + thread < latent):
                            if factors is None:
                                mixed[i] += chances[k] * T.cast(
                                    x3[slot_k, 0, line_of(table, at_key, at_key, stop), i * THREADS + thread],
                                    F32,
                                )
                            else:
                                line_k = line_of(table, at_key, at_key, stop)
                                mixed[i] += (chances[k] * factors[slot_k, 0, line_k, 0]) * T.cast(
                                    x3[slot_k, 0, line_k, i * THREADS + thread], F32
                                )
                T.sync_threads()
            for i in T.unroll(columns):
                if i * THREADS + thread < latent:
                    query[i * THREADS + thread] = T.if_then_else(
                        total > 0, mixed[i] / total, nothing(table, total)
                    )
            T.sync_threads()
            for i in T.unroll(-(-value // THREADS)):
                if i * THREADS + thread < value:
                    sum_ = 0.0
                    for k in T.serial(latent):
                        sum_ += query[k] * T.cast(
                            x7[h * (nope + value) + nope + i * THREADS + thread, k], F32
                        )
                    y0[b, t, h * value + i * THREADS + thread] = T.cast(sum_, BF16)

    return body
