"""Latent attention, materialised: every cached latent becomes a key and a value of each head.

    expand   s0 = latents w^T             [batch, seen, heads*(nope+value)]
    turn     s1 = rope(q)                 [m, heads*rope]
    attend   causal, a block for each tile of tokens of a head

No tile reads past the last valid row of the cache: the last tile is moved back to end there, and what it has
twice is masked.
"""

from collections.abc import Sequence
from math import gcd
from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Step
from .latent_ahead import ahead
from .latent_shared import BF16, F32, I64, LOG2E, LOWEST, NEAR, NONE, PRELUDE, exp2, place, sizes

EXPAND_ROWS, EXPAND_DEPTH = 128, 64


def expand(kernel: Kernel, schedule: Schedule) -> Any:
    """s0 [batch, seen, heads*(nope+value)]: rows 0..end-1, the rest is undefined."""
    latent, width = kernel["latent"], kernel["heads"] * (kernel["nope"] + kernel["value"])
    batch, _, seen, room, _ = sizes()
    body = expansion(kernel, schedule)

    @T.prim_func
    def latent_expand(
        x3: T.Tensor((batch, 1, room, latent), BF16),
        x6: T.Tensor((batch, 2), I64),
        x7: T.Tensor((width, latent), BF16),
        s0: T.Tensor((batch, seen, width), BF16),
    ):
        body(x3, x6, x7, s0, batch, seen)

    return latent_expand


def expansion(kernel: Kernel, schedule: Schedule) -> Any:
    """What expand does."""
    latent, width = kernel["latent"], kernel["heads"] * (kernel["nope"] + kernel["value"])
    rows, columns, depth = EXPAND_ROWS, int(schedule["p_columns"]), EXPAND_DEPTH

    @T.macro
    def body(x3, x6, x7, s0, batch, seen):
        with T.Kernel(-(-width // columns), T.ceildiv(seen, rows), batch, threads=256) as (c, r, b):
            a = T.alloc_shared((rows, depth), BF16)
            w = T.alloc_shared((columns, depth), BF16)
            out = T.alloc_shared((rows, columns), BF16)
            product = T.alloc_fragment((rows, columns), F32)
            T.pdl_sync()
            T.pdl_trigger()
            needed = r * rows < T.cast(x6[b, 1], "int32")
            T.fill(product, 0)
            for k in T.Pipelined(T.if_then_else(needed, latent // depth, 0), num_stages=4):
                T.copy(x3[b, 0, r * rows : r * rows + rows, k * depth : k * depth + depth], a)
                T.copy(x7[c * columns : c * columns + columns, k * depth : k * depth + depth], w)
                T.gemm(a, w, product, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
            if needed:
                T.copy(product, out)
                T.copy(out, s0[b, r * rows : r * rows + rows, c * columns : c * columns + columns])

    return body


def turn(kernel: Kernel) -> Any:
    """s1 [m, heads*rope]: the rotated part of each query, turned."""
    heads, nope, rope = (kernel[n] for n in ("heads", "nope", "rope"))
    width, start, half = kernel["width"], kernel["start"], kernel["rope"] // 2
    pairs_in, pairs_out = kernel["pairs_in"], kernel["pairs_out"]
    m, threads = T.dynamic("m"), 256

    @T.prim_func
    def latent_turn(
        x0: T.Tensor((m, width), BF16),
        x1: T.Tensor((m, half), F32),
        x2: T.Tensor((m, half), F32),
        s1: T.Tensor((m, heads * rope), BF16),
    ):
        with T.Kernel(m, T.ceildiv(heads * half, threads), threads=threads) as (row, part):
            index = part * threads + T.get_thread_binding()
            head, pair = index // half, index % half
            T.pdl_sync()
            T.pdl_trigger()
            if head < heads:
                at = start + head * (nope + rope) + nope
                low = T.cast(x0[row, at + place(pairs_in, half, pair, 0)], F32)
                high = T.cast(x0[row, at + place(pairs_in, half, pair, 1)], F32)
                cos = 1.0 if pairs_in == NONE else x1[row, pair]
                sin = 0.0 if pairs_in == NONE else x2[row, pair]
                s1[row, head * rope + place(pairs_out, half, pair, 0)] = T.cast(low * cos - high * sin, BF16)
                s1[row, head * rope + place(pairs_out, half, pair, 1)] = T.cast(low * sin + high * cos, BF16)

    return latent_turn


def attend(kernel: Kernel, schedule: Schedule) -> Any:
    """y0 [batch, tokens, heads*value]."""
    heads, rope, value = (kernel[n] for n in ("heads", "rope", "value"))
    batch, tokens, seen, room, _ = sizes()
    wide, body = heads * (kernel["nope"] + value), attention(kernel, schedule)

    @T.prim_func
    def latent_prefill(
        x0: T.Tensor((batch, tokens, kernel["width"]), BF16),
        x4: T.Tensor((batch, 1, room, rope), BF16),
        x6: T.Tensor((batch, 2), I64),
        s0: T.Tensor((batch, seen, wide), BF16),
        s1: T.Tensor((batch, tokens, heads * rope), BF16),
        y0: T.Tensor((batch, tokens, heads * value), BF16),
        scale: T.float32,
    ):
        body(x0, x4, x6, s0, s1, y0, scale, batch, tokens)

    return latent_prefill.with_attr("global_symbol", f"latent_prefill{way(schedule)}")


def way(schedule: Schedule) -> str:
    """What sets apart the name of the function that attends."""
    return "" if schedule["p_way"] == "plain" else "_ahead"


def attention(kernel: Kernel, schedule: Schedule) -> Any:
    """What attend does."""
    return plainly(kernel, schedule) if schedule["p_way"] == "plain" else ahead(kernel, schedule)


def plainly(kernel: Kernel, schedule: Schedule) -> Any:
    """Tiles with the most keys go first."""
    heads, nope, rope, value = (kernel[n] for n in ("heads", "nope", "rope", "value"))
    start, near = kernel["start"], gcd(heads, NEAR)
    rows, keys, stages = int(schedule["p_rows"]), int(schedule["p_keys"]), int(schedule["p_stages"])

    @T.macro
    def body(x0, x4, x6, s0, s1, y0, scale, batch, tokens):
        with T.Kernel(
            near, T.ceildiv(tokens, rows), batch * (heads // near), threads=rows * 2, prelude=PRELUDE
        ) as (
            of_near,
            late,
            others,
        ):
            b, h = others // (heads // near), others % (heads // near) * near + of_near
            q_plain = T.alloc_shared((rows, nope), BF16)
            q_turned = T.alloc_shared((rows, rope), BF16)
            k_plain = T.alloc_shared((keys, nope), BF16)
            k_turned = T.alloc_shared((keys, rope), BF16)
            values = T.alloc_shared((keys, value), BF16)
            out = T.alloc_shared((rows, value), BF16)
            scores = T.alloc_fragment((rows, keys), F32)
            chances = T.alloc_fragment((rows, keys), BF16)
            result = T.alloc_fragment((rows, value), F32)
            top = T.alloc_fragment((rows,), F32)
            before = T.alloc_fragment((rows,), F32)
            shrink = T.alloc_fragment((rows,), F32)
            sums = T.alloc_fragment((rows,), F32)
            total = T.alloc_fragment((rows,), F32)
            T.pdl_sync()
            T.pdl_trigger()
            tile = T.ceildiv(tokens, rows) - 1 - late
            end = T.cast(x6[b, 1], "int32")
            begin = T.cast(x6[b, 0], "int32")
            old = end - tokens
            stop = old + T.min(tile * rows + rows, tokens)
            at_q = start + h * (nope + rope)
            at_k = h * (nope + value)
            T.copy(x0[b, tile * rows : tile * rows + rows, at_q : at_q + nope], q_plain)
            T.copy(s1[b, tile * rows : tile * rows + rows, h * rope : h * rope + rope], q_turned)
            T.fill(result, 0)
            T.fill(total, 0)
            T.fill(top, LOWEST)
            for k in T.Pipelined(T.max(T.ceildiv(stop - begin, keys), 1), num_stages=stages):
                first = begin + k * keys
                at = T.min(first, end - keys)
                T.copy(s0[b, at : at + keys, at_k : at_k + nope], k_plain)
                T.copy(x4[b, 0, at : at + keys, :], k_turned)
                T.gemm(
                    q_plain,
                    k_plain,
                    scores,
                    transpose_B=True,
                    clear_accum=True,
                    policy=T.GemmWarpPolicy.FullRow,
                )
                T.gemm(q_turned, k_turned, scores, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                if first + keys > old + tile * rows:
                    for i, j in T.Parallel(rows, keys):
                        scores[i, j] = T.if_then_else(
                            T.And(at + j >= first, at + j <= old + tile * rows + i),
                            scores[i, j],
                            -T.infinity(F32),
                        )
                T.copy(top, before)
                T.reduce_max(scores, top, dim=1, clear=False)
                for i in T.Parallel(rows):
                    shrink[i] = exp2((before[i] - top[i]) * (scale * LOG2E))
                for i, j in T.Parallel(rows, keys):
                    scores[i, j] = exp2(scores[i, j] * (scale * LOG2E) - top[i] * (scale * LOG2E))
                T.reduce_sum(scores, sums, dim=1)
                for i in T.Parallel(rows):
                    total[i] = total[i] * shrink[i] + sums[i]
                T.copy(scores, chances)
                for i, j in T.Parallel(rows, value):
                    result[i, j] *= shrink[i]
                T.copy(s0[b, at : at + keys, at_k + nope : at_k + nope + value], values)
                T.gemm(chances, values, result, policy=T.GemmWarpPolicy.FullRow)
            for i in T.Parallel(rows):
                shrink[i] = T.if_then_else(total[i] > 0, 1 / total[i], 0)
            for i, j in T.Parallel(rows, value):
                result[i, j] *= shrink[i]
            T.copy(result, out)
            T.copy(out, y0[b, tile * rows : tile * rows + rows, h * value : h * value + value])

    return body


def materialised(kernel: Kernel, schedule: Schedule, when: str) -> Sequence[Step]:
    """latent_attention where `when` holds."""
    return [
        Step(expand(kernel, schedule), when, overlap=True),
        Step(turn(kernel), when, overlap=True),
        Step(attend(kernel, schedule), when, overlap=True),
    ]
