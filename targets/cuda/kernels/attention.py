"""Grouped attention over key and value caches, causal, of the rows that span says.

The query heads that share a key head are rows of one product: row r of a sequence's group is token r // share
and head r % share, so a decoded token reads each key once. Token t sees rows first..end-tokens+t; what lies
behind may hold anything, so scores there are selected away and values become zeros, never multiplied.
"""

from collections.abc import Sequence
from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Step
from ..sm import Sm
from ..widths import LANES

FEW = 16  # tokens up to which keys are split among blocks
LOG2E = 1.4426950408889634


def attention(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """By tiles where the widths are whole tiles, one row a warp where not."""
    if kernel["dk"] % 16 or kernel["dv"] % 16:
        return [Step(by_warps(kernel), overlap=True)]
    few, splits = f"tokens <= {FEW}", int(schedule["splits"])
    return [
        Step(by_tiles(kernel, schedule, splits), when=few, overlap=True),
        Step(merge(kernel, splits), when=few, overlap=True),
        Step(by_tiles(kernel, schedule, 0), when=f"tokens > {FEW}", overlap=True),
    ]


def by_tiles(kernel: Kernel, schedule: Schedule, splits: int) -> Any:
    """A block takes `rows` rows of a group, over all their keys into y0 or, with splits, over a part of them
    into s0 [splits, batch, heads * tokens, dv], not divided yet, and s1 [.., 2]: their highest score, times
    log2(e), and their sum of weights.
    """
    heads, groups, dk, dv = (kernel[name] for name in ("heads", "groups", "dk", "dv"))
    share, rows, keys = heads // groups, int(schedule["rows"]), int(schedule["keys"])
    batch, tokens, room = (T.dynamic(name) for name in ("batch", "tokens", "room"))
    parts, threads, lowest = max(splits, 1), int(schedule["threads"]), -T.infinity("float32")

    def head_of(down: Any, bg: Any, i: Any) -> Any:
        return bg % groups * share + (down * rows + i) % share

    @T.macro
    def body(x0, x1, x2, x4, scale, down, split, bg, mixed, top, total):
        b = bg // groups
        g = bg % groups
        q = T.alloc_shared((rows, dk), "bfloat16")
        k = T.alloc_shared((keys, dk), "bfloat16")
        v = T.alloc_shared((keys, dv), "bfloat16")
        scores = T.alloc_fragment((rows, keys), "float32")
        weights = T.alloc_fragment((rows, keys), "bfloat16")
        before = T.alloc_fragment((rows,), "float32")
        shrink = T.alloc_fragment((rows,), "float32")
        part = T.alloc_fragment((rows,), "float32")
        T.pdl_trigger()
        T.pdl_sync()
        first = T.cast(x4[b, 0], "int32")
        cached = T.cast(x4[b, 1], "int32") - tokens
        last = T.min(down * rows + rows, tokens * share) - 1
        stop = T.min(cached + last // share + 1, room)
        length = T.ceildiv(T.ceildiv(T.max(stop - first, 0), parts), keys) * keys
        start = first + split * length
        end = T.min(start + length, stop)
        for i, j in T.Parallel(rows, dk):
            q[i, j] = T.if_then_else(
                down * rows + i <= last,
                x0[b, head_of(down, bg, i), T.min((down * rows + i) // share, tokens - 1), j],
                T.bfloat16(0),
            )
        T.clear(mixed)
        T.clear(total)
        T.fill(top, lowest)
        for tile in T.serial(T.ceildiv(T.max(end - start, 0), keys)):
            for i, j in T.Parallel(keys, dk):
                k[i, j] = T.if_then_else(
                    start + tile * keys + i < end,
                    x1[b, g, T.min(start + tile * keys + i, room - 1), j],
                    T.bfloat16(0),
                )
            for i, j in T.Parallel(keys, dv):
                v[i, j] = T.if_then_else(
                    start + tile * keys + i < end,
                    x2[b, g, T.min(start + tile * keys + i, room - 1), j],
                    T.bfloat16(0),
                )
            # Tensor cores read what threads wrote.
            T.fence_proxy_async()
            T.sync_threads()
            T.gemm(q, k, scores, transpose_B=True, clear_accum=True, policy=T.GemmWarpPolicy.FullRow)
            for i, j in T.Parallel(rows, keys):
                at = start + tile * keys + j
                scores[i, j] = T.if_then_else(
                    at < end and at <= cached + (down * rows + i) // share,
                    scores[i, j] * (scale * LOG2E),
                    lowest,
                )
            T.copy(top, before)
            T.reduce_max(scores, top, dim=1, clear=False)
            for i in T.Parallel(rows):
                shrink[i] = T.if_then_else(top[i] == lowest, 1.0, T.exp2(before[i] - top[i]))
            for i, j in T.Parallel(rows, keys):
                scores[i, j] = T.if_then_else(top[i] == lowest, 0.0, T.exp2(scores[i, j] - top[i]))
            T.reduce_sum(scores, part, dim=1)
            for i in T.Parallel(rows):
                total[i] = total[i] * shrink[i] + part[i]
            for i, j in T.Parallel(rows, dv):
                mixed[i, j] *= shrink[i]
            T.copy(scores, weights)
            T.gemm(weights, v, mixed, policy=T.GemmWarpPolicy.FullRow)

    @T.prim_func
    def attention_kernel(
        x0: T.Tensor((batch, heads, tokens, dk), "bfloat16"),
        x1: T.Tensor((batch, groups, room, dk), "bfloat16"),
        x2: T.Tensor((batch, groups, room, dv), "bfloat16"),
        x4: T.Tensor((batch, 2), "int64"),
        y0: T.Tensor((batch, heads, tokens, dv), "bfloat16"),
        scale: T.float32,
    ):
        with T.Kernel(T.ceildiv(tokens * share, rows), batch * groups, threads=threads) as (down, bg):
            mixed = T.alloc_fragment((rows, dv), "float32")
            top = T.alloc_fragment((rows,), "float32")
            total = T.alloc_fragment((rows,), "float32")
            body(x0, x1, x2, x4, scale, down, 0, bg, mixed, top, total)
            for i, j in T.Parallel(rows, dv):
                if down * rows + i < tokens * share:
                    y0[bg // groups, head_of(down, bg, i), (down * rows + i) // share, j] = T.cast(
                        mixed[i, j] / T.if_then_else(total[i] == 0.0, 1.0, total[i]), "bfloat16"
                    )

    @T.prim_func
    def attention_part(
        x0: T.Tensor((batch, heads, tokens, dk), "bfloat16"),
        x1: T.Tensor((batch, groups, room, dk), "bfloat16"),
        x2: T.Tensor((batch, groups, room, dv), "bfloat16"),
        x4: T.Tensor((batch, 2), "int64"),
        s0: T.Tensor((parts, batch, heads, tokens, dv), "float32"),
        s1: T.Tensor((parts, batch, heads, tokens, 2), "float32"),
        scale: T.float32,
    ):
        with T.Kernel(T.ceildiv(tokens * share, rows), batch * groups, parts, threads=threads) as (
            down,
            bg,
            part,
        ):
            mixed = T.alloc_fragment((rows, dv), "float32")
            top = T.alloc_fragment((rows,), "float32")
            total = T.alloc_fragment((rows,), "float32")
            body(x0, x1, x2, x4, scale, down, part, bg, mixed, top, total)
            for i, j in T.Parallel(rows, dv):
                if down * rows + i < tokens * share:
                    s0[part, bg // groups, head_of(down, bg, i), (down * rows + i) // share, j] = mixed[i, j]
            for i in T.Parallel(rows):
                if down * rows + i < tokens * share:
                    s1[part, bg // groups, head_of(down, bg, i), (down * rows + i) // share, 0] = top[i]
                    s1[part, bg // groups, head_of(down, bg, i), (down * rows + i) // share, 1] = total[i]

    return attention_part if splits else attention_kernel


def merge(kernel: Kernel, parts: int) -> Any:
    """A warp weighs the parts of one row and divides; parts without keys weigh nothing."""
    heads, dv = kernel["heads"], kernel["dv"]
    held = -(-dv // LANES)
    batch, tokens = (T.dynamic(name) for name in ("batch", "tokens"))

    @T.prim_func
    def attention_merge(
        s0: T.Tensor((parts, batch, heads, tokens, dv), "float32"),
        s1: T.Tensor((parts, batch, heads, tokens, 2), "float32"),
        y0: T.Tensor((batch, heads, tokens, dv), "bfloat16"),
    ):
        with T.Kernel(tokens, heads, batch, threads=LANES) as (t, h, b):
            lane = T.get_thread_binding(0)
            tops = T.alloc_local((parts,), "float32")
            mixed = T.alloc_local((held,), "float32")
            top = T.alloc_var("float32", init=-T.infinity("float32"))
            total = T.alloc_var("float32", init=0.0)
            T.pdl_trigger()
            T.pdl_sync()
            for p in T.unroll(parts):
                tops[p] = s1[p, b, h, t, 0]
                top = T.max(top, tops[p])
            for j in T.unroll(held):
                mixed[j] = 0.0
            for p in T.unroll(parts):
                tops[p] = T.if_then_else(tops[p] == -T.infinity("float32"), 0.0, T.exp2(tops[p] - top))
                total += tops[p] * s1[p, b, h, t, 1]
                for j in T.unroll(held):
                    if j * LANES + lane < dv:
                        mixed[j] += tops[p] * s0[p, b, h, t, j * LANES + lane]
            for j in T.unroll(held):
                if j * LANES + lane < dv:
                    y0[b, h, t, j * LANES + lane] = T.cast(
                        mixed[j] / T.if_then_else(total == 0.0, 1.0, total), "bfloat16"
                    )

    return attention_merge


def by_warps(kernel: Kernel) -> Any:
    """A warp a row, whatever the widths: a lane scores one key of 32, then mixes its columns of values."""
    heads, groups, dk, dv = (kernel[name] for name in ("heads", "groups", "dk", "dv"))
    share, held = heads // groups, -(-dv // LANES)
    batch, tokens, room = (T.dynamic(name) for name in ("batch", "tokens", "room"))
    lowest = -T.infinity("float32")

    @T.prim_func
    def attention_rows(
        x0: T.Tensor((batch, heads, tokens, dk), "bfloat16"),
        x1: T.Tensor((batch, groups, room, dk), "bfloat16"),
        x2: T.Tensor((batch, groups, room, dv), "bfloat16"),
        x4: T.Tensor((batch, 2), "int64"),
        y0: T.Tensor((batch, heads, tokens, dv), "bfloat16"),
        scale: T.float32,
    ):
        with T.Kernel(tokens, heads, batch, threads=LANES) as (t, h, b):
            lane = T.get_thread_binding(0)
            mixed = T.alloc_local((held,), "float32")
            score = T.alloc_var("float32")
            top = T.alloc_var("float32", init=lowest)
            before = T.alloc_var("float32")
            total = T.alloc_var("float32", init=0.0)
            weight = T.alloc_var("float32")
            key = T.alloc_var("int32")
            T.pdl_trigger()
            T.pdl_sync()
            first = T.cast(x4[b, 0], "int32")
            stop = T.min(T.cast(x4[b, 1], "int32") - tokens + t + 1, room)
            for j in T.unroll(held):
                mixed[j] = 0.0
            for tile in T.serial(T.ceildiv(T.max(stop - first, 0), LANES)):
                key = first + tile * LANES + lane
                score = lowest
                if key < stop:
                    score = 0.0
                    for d in T.serial(dk):
                        score += T.cast(x0[b, h, t, d], "float32") * T.cast(
                            x1[b, h // share, key, d], "float32"
                        )
                    score = score * scale
                before = top
                top = T.max(top, T.warp_reduce_max(score))
                weight = T.if_then_else(key < stop, T.exp(score - top), 0.0)
                total = total * T.exp(before - top) + T.warp_reduce_sum(weight)
                for j in T.unroll(held):
                    mixed[j] *= T.exp(before - top)
                for i in T.serial(T.min(stop - first - tile * LANES, LANES)):
                    score = T.shfl_sync(weight, i)
                    for j in T.unroll(held):
                        if j * LANES + lane < dv:
                            mixed[j] += score * T.cast(
                                x2[b, h // share, first + tile * LANES + i, j * LANES + lane], "float32"
                            )
            for j in T.unroll(held):
                if j * LANES + lane < dv:
                    y0[b, h, t, j * LANES + lane] = T.cast(
                        mixed[j] / T.if_then_else(total == 0.0, 1.0, total), "bfloat16"
                    )

    return attention_rows
