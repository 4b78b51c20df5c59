"""The absorbed attention for a few rows of queries, where nothing but latency counts.

A block asks for its first tiles of the cache before the step in front of this one, which makes the queries,
has ended: that step waited for what had written the cache before it let this one begin. All warps then share
each tile, and the block itself asks for the tile that takes its place.
"""

from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..sm import Sm
from .latent_pages import checked, first_seen, line_of, nothing, origin, partly, settled, slot_of
from .latent_shared import BF16, F32, LOG2E, LOWEST, PRELUDE, exp2, grid_blocks


def fresh(element: Any) -> Any:
    """What is in memory, past the first cache, which no one has told of what was written meanwhile."""
    return T.atomic_load(element, memory_order="relaxed")


def early(kernel: Kernel, schedule: Schedule, sm: Sm, split: bool, parts: Any) -> Any:
    """As latent_attend.attention."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    rows, keys, stages = int(schedule["a_rows"]), int(schedule["a_keys"]), int(schedule["a_stages"])
    threads = int(schedule["a_threads"])

    @T.macro
    def ask(latents, rotated, table, b, first, end, cache, turned, slot, ready):
        """For a tile of the cache, into a slot."""
        at = T.min(first, end - keys)
        place = slot_of(table, b, first, end)
        line = line_of(table, first, at, end)
        T.tma_copy(latents[place, 0, line : line + keys, :], cache[slot, :, :], barrier=ready[slot])
        T.tma_copy(rotated[place, 0, line : line + keys, :], turned[slot, :, :], barrier=ready[slot])
        T.barrier_arrive(ready[slot])

    @T.macro
    def body(q, latents, rotated, span, table, pages, mixed, weights, scale, batch, tokens, seen):
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
            cache = T.alloc_shared((stages, keys, latent), BF16)
            turned = T.alloc_shared((stages, keys, rope), BF16)
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
            ready = T.alloc_barrier(arrive_count=[threads] * stages)
            asked = T.alloc_barrier(arrive_count=threads)
            count = grid_blocks() if split else 1
            begin, end = T.alloc_var("int32"), T.alloc_var("int32")
            start, turns = T.alloc_var("int32"), T.alloc_var("int32")
            begin = T.cast(fresh(span[b, 0]), "int32")
            end = T.cast(fresh(span[b, 1]), "int32")
            row = b * tokens * heads + tile * rows
            old = end - tokens  # keys that the first new token has before itself
            last = T.min(tile * rows + rows, tokens * heads) - 1  # of the tile's rows
            stop = old + last // heads + 1
            blocks = T.ceildiv(T.max(stop - origin(table, begin), 0), keys)
            share = T.ceildiv(blocks, count)
            start = settled(table, origin(table, begin) + part * share * keys)
            # At least one, masked where there is none: no copy is under way when its buffer is used again.
            turns = settled(table, T.max(T.min(share, blocks - part * share), 1))
            for slot in T.unroll(stages):
                if slot < turns:
                    ask(latents, rotated, table, b, start + slot * keys, end, cache, turned, slot, ready)
            T.fill(result, 0)
            T.fill(total, 0)
            T.fill(top, LOWEST)
            T.pdl_sync()
            T.pdl_trigger()
            T.tma_copy(q[row : row + rows, 0:latent], q_latent, barrier=asked)
            T.tma_copy(q[row : row + rows, latent : latent + rope], q_rotated, barrier=asked)
            T.barrier_arrive(asked)
            T.barrier_wait(asked, 0)
            for k in T.serial(turns):
                first = start + k * keys
                at = T.min(first, end - keys)
                slot = k % stages
                T.barrier_wait(ready[slot], k // stages % 2)
                T.gemm(
                    q_latent,
                    cache[slot, :, :],
                    scores,
                    transpose_B=True,
                    clear_accum=True,
                    policy=T.GemmWarpPolicy.FullCol,
                )
                T.gemm(
                    q_rotated, turned[slot, :, :], scores, transpose_B=True, policy=T.GemmWarpPolicy.FullCol
                )
                if partly(table, first, keys, begin, old):
                    for i, j in T.Parallel(rows, keys):
                        scores[i, j] = T.if_then_else(
                            T.And(
                                at + j >= first_seen(table, first, begin),
                                at + j <= old + (tile * rows + i) // heads,
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
                T.copy(scores, chances)
                for i in T.Parallel(rows):
                    total[i] = total[i] * shrink[i] + checked(table, sums[i], b, first, end, pages)
                for i, j in T.Parallel(rows, latent):
                    result[i, j] *= shrink[i]
                T.gemm(chances, cache[slot, :, :], result, policy=T.GemmWarpPolicy.FullCol)
                T.sync_threads()
                if k + stages < turns:
                    ask(latents, rotated, table, b, first + stages * keys, end, cache, turned, slot, ready)
            for i in T.Parallel(rows):
                shrink[i] = T.if_then_else(total[i] > 0, 1 / total[i], nothing(table, total[i]))
            for i, j in T.Parallel(rows, latent):
                result[i, j] *= shrink[i]
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
