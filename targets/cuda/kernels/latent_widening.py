"""The absorbed attention over latents as e4m3 codes, by warpgroups with roles.

    one widens       codes to bf16, which has room for each as it is, and asks for the tiles ahead
    one or two       scores = (Q codes^T) * scales + Qr keys^T;  R += (softmax * scales) codes

A scale is a key's, so what it multiplies are scores and chances, not numbers of the cache. Rows, tiles, parts
and pages are as in latent_attend.
"""

from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..sm import Sm
from .latent_pages import checked, first_seen, is_page, line_of, nothing, origin, partly, settled, slot_of
from .latent_parts import parts
from .latent_shared import BF16, E4M3, F32, LOG2E, LOWEST, PRELUDE, exp2, grid_blocks

GROUP = 128
COLUMNS = T.int32(8)  # bf16 of a 16-byte store
WIDENING, MULTIPLYING = 72, 216  # registers of a thread, where two warpgroups multiply


def attention(kernel: Kernel, schedule: Schedule, sm: Sm, split: bool) -> Any:
    """As latent_attend.attention, with `factors`, the scales."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    rows, keys, stages = int(schedule["a_rows"]), int(schedule["a_keys"]), int(schedule["a_stages"])
    many = int(schedule["a_threads"])  # that multiply
    early = many == GROUP  # whether registers hold a widened tile until there is room for it

    @T.macro
    def ask(cache, table, b, at, tile, to, ready):
        # at: first key, tiles, end
        if tile < at[1]:
            first = at[0] + tile * keys
            slot = slot_of(table, b, first, at[2])
            line = line_of(table, first, T.min(first, at[2] - keys), at[2])
            T.tma_copy(
                cache[slot, 0, line : line + keys, :], to[tile % stages, :, :], barrier=ready[tile % stages]
            )
            T.barrier_arrive(ready[tile % stages])

    @T.macro
    def widen(
        latents,
        rotated,
        table,
        b,
        at,
        codes,
        turned,
        cache,
        codes_ready,
        turned_ready,
        codes_read,
        cache_ready,
        cache_free,
    ):
        held = T.alloc_fragment((keys, latent), BF16)
        for tile in T.serial(stages):
            ask(latents, table, b, at, tile, codes, codes_ready)
            ask(rotated, table, b, at, tile, turned, turned_ready)
        for tile in T.serial(at[1]):
            T.barrier_wait(codes_ready[tile % stages], tile // stages % 2)
            if early:
                for i, j in T.Parallel(keys, latent, coalesced_width=COLUMNS):
                    held[i, j] = T.cast(codes[tile % stages, i, j], BF16)
                T.barrier_arrive(codes_read)
                T.barrier_wait(codes_read, tile % 2)
                ask(latents, table, b, at, tile + stages, codes, codes_ready)
            T.barrier_wait(cache_free, (tile + 1) % 2)
            if tile > 0:  # they are done with the tile before
                ask(rotated, table, b, at, tile + stages - 1, turned, turned_ready)
            if early:
                T.copy(held, cache)
            else:
                for i, j in T.Parallel(keys, latent):
                    cache[i, j] = T.cast(codes[tile % stages, i, j], BF16)
            T.fence_proxy_async()
            T.barrier_arrive(cache_ready)
            if not early:
                T.barrier_arrive(codes_read)
                T.barrier_wait(codes_read, tile % 2)
                ask(latents, table, b, at, tile + stages, codes, codes_ready)

    @T.macro
    def body(q, latents, rotated, span, table, pages, mixed, weights, scale, batch, tokens, seen, factors):
        with T.Kernel(
            parts(schedule, heads, sm, batch, tokens, seen) if split else 1,
            T.ceildiv(tokens * heads, rows),
            batch,
            threads=GROUP + many,
            prelude=PRELUDE,
        ) as (
            part,
            tile,
            b,
        ):
            q_latent = T.alloc_shared((rows, latent), BF16)
            q_rotated = T.alloc_shared((rows, rope), BF16)
            codes = T.alloc_shared((stages, keys, latent), E4M3)
            turned = T.alloc_shared((stages, keys, rope), BF16)
            cache = T.alloc_shared((keys, latent), BF16)
            chances = T.alloc_shared((rows, keys), BF16)
            q_ready = T.alloc_barrier(arrive_count=GROUP)
            codes_ready = T.alloc_barrier(arrive_count=[GROUP] * stages)
            turned_ready = T.alloc_barrier(arrive_count=[GROUP] * stages)
            codes_read = T.alloc_barrier(arrive_count=GROUP)
            cache_ready = T.alloc_barrier(arrive_count=GROUP)
            cache_free = T.alloc_barrier(arrive_count=many)
            at = T.alloc_local((3,), "int32")
            thread = T.get_thread_binding()
            count = grid_blocks() if split else 1
            T.pdl_sync()
            T.pdl_trigger()
            row = b * tokens * heads + tile * rows
            end = T.cast(span[b, 1], "int32")
            old = end - tokens  # keys that the first new token has before itself
            last = T.min(tile * rows + rows, tokens * heads) - 1  # of the tile's rows
            stop = old + last // heads + 1
            blocks = T.ceildiv(T.max(stop - origin(table, T.cast(span[b, 0], "int32")), 0), keys)
            share = T.ceildiv(blocks, count)
            at[0] = settled(table, origin(table, T.cast(span[b, 0], "int32")) + part * share * keys)
            # At least one, masked where there is none, so that all blocks go the same way.
            at[1] = settled(table, T.max(T.min(share, blocks - part * share), 1))
            at[2] = end
            if thread < GROUP:
                if not early:
                    T.dec_max_nreg(WIDENING)
                T.tma_copy(q[row : row + rows, 0:latent], q_latent, barrier=q_ready)
                T.tma_copy(q[row : row + rows, latent : latent + rope], q_rotated, barrier=q_ready)
                T.barrier_arrive(q_ready)
                widen(
                    latents,
                    rotated,
                    table,
                    b,
                    at,
                    codes,
                    turned,
                    cache,
                    codes_ready,
                    turned_ready,
                    codes_read,
                    cache_ready,
                    cache_free,
                )
            else:
                if not early:
                    T.inc_max_nreg(MULTIPLYING)
                logarithms = T.alloc_shared((rows,), F32, scope="shared")
                scores = T.alloc_fragment((rows, keys), F32)
                factor = T.alloc_fragment((keys,), F32)
                result = T.alloc_fragment((rows, latent), F32)
                top = T.alloc_fragment((rows,), F32)
                before = T.alloc_fragment((rows,), F32)
                shrink = T.alloc_fragment((rows,), F32)
                sums = T.alloc_fragment((rows,), F32)
                total = T.alloc_fragment((rows,), F32)
                T.fill(result, 0)
                T.fill(total, 0)
                T.fill(top, LOWEST)
                T.barrier_wait(q_ready, 0)
                for k in T.serial(at[1]):
                    first = at[0] + k * keys
                    slot = slot_of(table, b, first, end)
                    here = T.min(first, end - keys)
                    line = line_of(table, first, here, end)
                    for j in T.Parallel(keys):
                        factor[j] = T.if_then_else(
                            T.And(line + j >= 0, is_page(table, slot, pages)),
                            factors[slot, 0, line + j, 0],
                            0,
                        )
                    T.barrier_wait(cache_ready, k % 2)
                    T.gemm(
                        q_latent,
                        cache,
                        scores,
                        transpose_B=True,
                        clear_accum=True,
                        policy=T.GemmWarpPolicy.FullCol,
                    )
                    for i, j in T.Parallel(rows, keys):
                        scores[i, j] *= factor[j]
                    T.barrier_wait(turned_ready[k % stages], k // stages % 2)
                    T.gemm(
                        q_rotated,
                        turned[k % stages, :, :],
                        scores,
                        transpose_B=True,
                        policy=T.GemmWarpPolicy.FullCol,
                    )
                    if partly(table, first, keys, T.cast(span[b, 0], "int32"), old):
                        for i, j in T.Parallel(rows, keys):
                            scores[i, j] = T.if_then_else(
                                T.And(
                                    here + j >= first_seen(table, first, T.cast(span[b, 0], "int32")),
                                    here + j <= old + (tile * rows + i) // heads,
                                ),
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
                    for i, j in T.Parallel(rows, keys):
                        scores[i, j] *= factor[j]
                    T.copy(scores, chances)
                    for i in T.Parallel(rows):
                        total[i] = total[i] * shrink[i] + checked(table, sums[i], b, first, end, pages)
                    for i, j in T.Parallel(rows, latent):
                        result[i, j] *= shrink[i]
                    T.gemm(chances, cache, result, policy=T.GemmWarpPolicy.FullCol)
                    T.barrier_arrive(cache_free)
                for i in T.Parallel(rows):
                    shrink[i] = T.if_then_else(total[i] > 0, 1 / total[i], nothing(table, total[i]))
                for i, j in T.Parallel(rows, latent):
                    result[i, j] *= shrink[i]
                T.copy(result, q_latent)  # which all have read
                T.sync_threads(1, many)
                for i, j in T.Parallel(rows, latent):
                    if tile * rows + i < tokens * heads:
                        if split:
                            mixed[(row + i) * count + part, j] = q_latent[i, j]
                        else:
                            mixed[row + i, j] = q_latent[i, j]
                if split:
                    for i in T.Parallel(rows):
                        total[i] = T.if_then_else(
                            total[i] > 0, T.log2(total[i]) + top[i] * (scale * LOG2E), -T.infinity(F32)
                        )
                    T.copy(total, logarithms)
                    T.sync_threads(1, many)
                    for i in T.Parallel(rows):
                        if tile * rows + i < tokens * heads:
                            weights[(row + i) * count + part] = logarithms[i]

    return body
