"""Latent attention, absorbed: queries meet the cached latents themselves, all heads sharing each loaded tile.

    absorb   q' = rope(q), q W_UK         [m*heads, latent+rope]
    attend   softmax(q' cache^T) cache    over a part of the cache each, tiles of heads x keys
    combine  parts into one               where there are several
    project  y = mixed latents W_UV^T

A row is a head of a token; rows of a batch lie token by token. No tile reads past the last valid row of the
cache: the last tile is moved back to end there, and what it has twice is masked.
"""

from collections.abc import Sequence
from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Step
from ..sm import Sm
from .latent_seesaw import seesaw
from .latent_shared import BF16, F32, I64, LOG2E, LOWEST, NONE, PRELUDE, exp2, grid_blocks, place, sizes

MOST_SPLITS = 64
COLUMNS = 8  # bf16 of a 16-byte access


def parts(schedule: Schedule, heads: int, sm: Sm, batch: Any, tokens: Any, seen: Any) -> Any:
    """Into how many parts the cache is split: as many as give each multiprocessor a block, none too small."""
    blocks = batch * T.ceildiv(tokens * heads, schedule["a_rows"])
    wanted = sm.multiprocessors * schedule["a_waves"] // T.max(blocks, 1)
    return T.max(1, T.min(T.min(wanted, MOST_SPLITS), T.ceildiv(seen, schedule["a_least"])))


def one_part(schedule: Schedule, heads: int, sm: Sm, tokens: str, seen: str) -> str:
    """The C++ condition for parts() to be 1."""
    rows, wanted = int(schedule["a_rows"]), sm.multiprocessors * int(schedule["a_waves"])
    blocks = f"batch * (({tokens} * {heads} + {rows - 1}) / {rows})"
    return f"({wanted} < 2 * ({blocks}) || {seen} <= {schedule['a_least']})"


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


def attention(kernel: Kernel, schedule: Schedule, sm: Sm, split: bool) -> Any:
    """Rows of q' over a part of the cache each. With one part the result is the mixed latents themselves;
    with more, `parts` holds each part's and `scales` the logarithm of its weight (base 2, -inf for no key).
    """
    if schedule["a_way"] == "seesaw":
        return seesaw(kernel, schedule, sm, split, parts)
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    rows, keys, stages = int(schedule["a_rows"]), int(schedule["a_keys"]), int(schedule["a_stages"])
    threads = int(schedule["a_threads"])

    @T.macro
    def body(q, latents, rotated, span, mixed, weights, scale, batch, tokens, seen):
        with T.Kernel(
            parts(schedule, heads, sm, batch, tokens, seen) if split else 1,
            T.ceildiv(tokens * heads, rows),
            batch,
            threads=threads,
            prelude=PRELUDE,
        ) as (
            part,
            tile,
            b,
        ):
            q_latent = T.alloc_shared((rows, latent), BF16)
            q_rotated = T.alloc_shared((rows, rope), BF16)
            cache = T.alloc_shared((keys, latent), BF16)
            turned = T.alloc_shared((keys, rope), BF16)
            chances = T.alloc_shared((rows, keys), BF16)
            out = T.alloc_shared((rows, latent), BF16)
            logarithms = T.alloc_shared((rows,), F32, scope="shared")
            scores = T.alloc_fragment((rows, keys), F32)
            result = T.alloc_fragment((rows, latent), F32)
            top = T.alloc_fragment((rows,), F32)
            before = T.alloc_fragment((rows,), F32)
            shrink = T.alloc_fragment((rows,), F32)
            sums = T.alloc_fragment((rows,), F32)
            total = T.alloc_fragment((rows,), F32)
            count = grid_blocks() if split else 1
            T.pdl_sync()
            T.pdl_trigger()
            row = b * tokens * heads + tile * rows
            end = T.cast(span[b, 1], "int32")
            old = end - tokens  # keys that the first new token has before itself
            last = T.min(tile * rows + rows, tokens * heads) - 1  # of the tile's rows
            stop = old + last // heads + 1
            blocks = T.ceildiv(T.max(stop - T.cast(span[b, 0], "int32"), 0), keys)
            share = T.ceildiv(blocks, count)
            start = T.cast(span[b, 0], "int32") + part * share * keys
            # At least one, masked where there is none: no copy is under way when its buffer is used again.
            turns = T.max(T.min(share, blocks - part * share), 1)
            T.copy(q[row : row + rows, 0:latent], q_latent)
            T.copy(q[row : row + rows, latent : latent + rope], q_rotated)
            T.fill(result, 0)
            T.fill(total, 0)
            T.fill(top, LOWEST)
            for k in T.Pipelined(turns, num_stages=stages):
                first = start + k * keys
                at = T.min(first, end - keys)
                T.copy(latents[b, 0, at : at + keys, :], cache)
                T.copy(rotated[b, 0, at : at + keys, :], turned)
                T.gemm(
                    q_latent,
                    cache,
                    scores,
                    transpose_B=True,
                    clear_accum=True,
                    policy=T.GemmWarpPolicy.FullCol,
                )
                T.gemm(q_rotated, turned, scores, transpose_B=True, policy=T.GemmWarpPolicy.FullCol)
                if first + keys > old:
                    for i, j in T.Parallel(rows, keys):
                        scores[i, j] = T.if_then_else(
                            T.And(at + j >= first, at + j <= old + (tile * rows + i) // heads),
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
                T.copy(scores, chances)
                for i in T.Parallel(rows):
                    total[i] = total[i] * shrink[i] + sums[i]
                for i, j in T.Parallel(rows, latent):
                    result[i, j] *= shrink[i]
                T.gemm(chances, cache, result, policy=T.GemmWarpPolicy.FullCol)
            for i, j in T.Parallel(rows, latent):
                result[i, j] = T.if_then_else(total[i] > 0, result[i, j] / total[i], 0)
            T.copy(result, out)
            T.sync_threads()
            for i, j in T.Parallel(rows, latent):
                if tile * rows + i < tokens * heads:
                    if split:
                        mixed[(row + i) * count + part, j] = out[i, j]
                    else:
                        mixed[row + i, j] = out[i, j]
            if split:
                for i in T.Parallel(rows):
                    total[i] = T.if_then_else(
                        total[i] > 0, T.log2(total[i]) + top[i] * (scale * LOG2E), -T.infinity(F32)
                    )
                T.copy(total, logarithms)
                T.sync_threads()
                for i in T.Parallel(rows):
                    if tile * rows + i < tokens * heads:
                        weights[(row + i) * count + part] = logarithms[i]

    return body


def attend(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """For latent_attention, the whole cache in one part."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    batch, tokens, seen, room, m = sizes()
    body = attention(kernel, schedule, sm, split=False)

    @T.prim_func
    def latent_attend(
        x1: T.Tensor((batch, tokens, rope // 2), F32),  # says how many tokens there are
        x3: T.Tensor((batch, 1, room, latent), BF16),
        x4: T.Tensor((batch, 1, room, rope), BF16),
        x6: T.Tensor((batch, 2), I64),
        s0: T.Tensor((m * heads, latent + rope), BF16),
        s1: T.Tensor((m * heads, latent), BF16),
        scale: T.float32,
    ):
        body(s0, x3, x4, x6, s1, s1, scale, batch, tokens, seen)

    return latent_attend


def attend_split(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """For latent_attention, s2 and s3 for combine."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    batch, tokens, seen, room, m = sizes()
    count = parts(schedule, heads, sm, batch, tokens, seen)
    body = attention(kernel, schedule, sm, split=True)

    @T.prim_func
    def latent_attend_split(
        x1: T.Tensor((batch, tokens, rope // 2), F32),
        x3: T.Tensor((batch, 1, room, latent), BF16),
        x4: T.Tensor((batch, 1, room, rope), BF16),
        x5: T.Tensor((batch, seen), I64),
        x6: T.Tensor((batch, 2), I64),
        s0: T.Tensor((m * heads, latent + rope), BF16),
        s2: T.Tensor((m * heads * count, latent), BF16),
        s3: T.Tensor((m * heads * count,), F32),
        scale: T.float32,
    ):
        body(s0, x3, x4, x6, s2, s3, scale, batch, tokens, seen)

    return latent_attend_split


def combine(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """For latent_attention: s2 and s3 to s1."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    batch, tokens, seen, _, _ = sizes()
    m = batch * tokens
    count = parts(schedule, heads, sm, batch, tokens, seen)
    body = combination(latent)

    @T.prim_func
    def latent_combine(
        x1: T.Tensor((batch, tokens, rope // 2), F32),
        x5: T.Tensor((batch, seen), I64),
        s2: T.Tensor((m * heads * count, latent), BF16),
        s3: T.Tensor((m * heads * count,), F32),
        s1: T.Tensor((m * heads, latent), BF16),
    ):
        body(s2, s3, s1, m * heads, parts(schedule, heads, sm, batch, tokens, seen))

    return latent_combine


def combination(latent: int) -> Any:
    """Parts of rows by the weights that `scales` are logarithms of; 0 for a row without keys.

    A block takes a row: four groups of threads take every fourth part each, a thread eight columns.
    """
    groups, across = 4, latent // COLUMNS
    rounds = MOST_SPLITS // groups

    @T.macro
    def body(mixed, scales, out, rows, count):
        with T.Kernel(rows, threads=groups * across, prelude=PRELUDE) as row:
            thread = T.get_thread_binding()
            group, column = thread // across, thread % across * COLUMNS
            weight = T.alloc_shared((MOST_SPLITS,), F32, scope="shared")
            sums = T.alloc_shared((groups, latent), F32)
            part = T.alloc_local((COLUMNS,), BF16)
            sum_ = T.alloc_local((COLUMNS,), F32)
            low = T.alloc_var(F32, init=-T.infinity(F32))
            high = T.alloc_var(F32, init=-T.infinity(F32))
            top = T.alloc_var(F32, init=LOWEST)
            T.pdl_sync()
            T.pdl_trigger()
            if thread < 32:
                if thread < count:
                    low = scales[row * count + thread]
                if thread + 32 < count:
                    high = scales[row * count + thread + 32]
                top = T.max(T.warp_reduce_max(T.max(low, high)), LOWEST)
                low = exp2(low - top)
                high = exp2(high - top)
                top = T.warp_reduce_sum(low + high)
                weight[thread] = T.if_then_else(top > 0, low / top, 0)
                weight[thread + 32] = T.if_then_else(top > 0, high / top, 0)
            T.sync_threads()
            for j in T.unroll(COLUMNS):
                sum_[j] = 0
            for i in T.unroll(rounds):
                if i * groups + group < count:
                    for j in T.vectorized(COLUMNS):
                        part[j] = mixed[row * count + i * groups + group, column + j]
                    for j in T.unroll(COLUMNS):
                        sum_[j] += T.cast(part[j], F32) * weight[i * groups + group]
            for j in T.vectorized(COLUMNS):
                sums[group, column + j] = sum_[j]
            T.sync_threads()
            if group == 0:
                for j in T.vectorized(COLUMNS):
                    part[j] = T.cast(
                        sums[0, column + j] + sums[1, column + j] + sums[2, column + j] + sums[3, column + j],
                        BF16,
                    )
                for j in T.vectorized(COLUMNS):
                    out[row, column + j] = part[j]

    return body


def decode(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """For mla_decode, the whole cache in one part."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    batch, _, _, room, _ = sizes()
    body = attention(kernel, schedule, sm, split=False)

    @T.prim_func
    def mla_decode(
        x0: T.Tensor((batch * heads, latent + rope), BF16),
        x1: T.Tensor((batch, 1, room, latent), BF16),
        x2: T.Tensor((batch, 1, room, rope), BF16),
        x3: T.Tensor((batch, 2), I64),
        y0: T.Tensor((batch * heads, latent), BF16),
        scale: T.float32,
    ):
        body(x0, x1, x2, x3, y0, y0, scale, batch, 1, room)

    return mla_decode


def decode_split(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """For mla_decode, s0 and s1 for decode_combine."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    batch, _, _, room, _ = sizes()
    count = parts(schedule, heads, sm, batch, 1, room)
    body = attention(kernel, schedule, sm, split=True)

    @T.prim_func
    def mla_decode_split(
        x0: T.Tensor((batch * heads, latent + rope), BF16),
        x1: T.Tensor((batch, 1, room, latent), BF16),
        x2: T.Tensor((batch, 1, room, rope), BF16),
        x3: T.Tensor((batch, 2), I64),
        s0: T.Tensor((batch * heads * count, latent), BF16),
        s1: T.Tensor((batch * heads * count,), F32),
        scale: T.float32,
    ):
        body(x0, x1, x2, x3, s0, s1, scale, batch, 1, room)

    return mla_decode_split


def decode_combine(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """For mla_decode: s0 and s1 to y0."""
    heads, latent = kernel["heads"], kernel["latent"]
    batch, _, _, room, _ = sizes()
    count = parts(schedule, heads, sm, batch, 1, room)
    body = combination(latent)

    @T.prim_func
    def mla_decode_combine(
        x1: T.Tensor((batch, 1, room, latent), BF16),  # says how long the cache is
        s0: T.Tensor((batch * heads * count, latent), BF16),
        s1: T.Tensor((batch * heads * count,), F32),
        y0: T.Tensor((batch * heads, latent), BF16),
    ):
        body(s0, s1, y0, batch * heads, parts(schedule, heads, sm, batch, 1, room))

    return mla_decode_combine


def mla_decode(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """Attention proper, for benchmarks: x0 q' [batch,heads,latent+rope], x1 and x2 the caches, x3 span ->
    y0 [batch,heads,latent].
    """
    whole = one_part(schedule, kernel["heads"], sm, "1", "room")
    return [
        Step(decode(kernel, schedule, sm), whole, overlap=True),
        Step(decode_split(kernel, schedule, sm), f"!{whole}", overlap=True),
        Step(decode_combine(kernel, schedule, sm), f"!{whole}", overlap=True),
    ]


def absorbed(kernel: Kernel, schedule: Schedule, sm: Sm, when: str) -> Sequence[Step]:
    """latent_attention where `when` holds."""
    whole = one_part(schedule, kernel["heads"], sm, "tokens", "seen")
    return [
        Step(absorb(kernel, schedule), when, overlap=True),
        Step(attend(kernel, schedule, sm), f"{when} && {whole}", overlap=True),
        Step(attend_split(kernel, schedule, sm), f"{when} && !{whole}", overlap=True),
        Step(combine(kernel, schedule, sm), f"{when} && !{whole}", overlap=True),
        Step(project(kernel, schedule), when, overlap=True),
    ]
