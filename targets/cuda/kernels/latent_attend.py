"""The absorbed attention proper, all heads sharing each loaded tile of the cache.

A row is a head of a token; rows of a batch lie token by token. No tile reads past the last valid row of the
cache: the last tile is moved back to end there, and what it has twice is masked. With a table of pages the
cache is a pool of so many pages (see latent_pages); without, both are None.
"""

from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..sm import Sm
from .latent_early import early
from .latent_pages import checked, first_seen, line_of, nothing, origin, partly, settled, slot_of
from .latent_parts import parts
from .latent_seesaw import seesaw
from .latent_shared import BF16, F32, LOG2E, LOWEST, PRELUDE, exp2, grid_blocks

WAYS = {"seesaw": seesaw, "early": early}  # besides the one here


def attention(kernel: Kernel, schedule: Schedule, sm: Sm, split: bool) -> Any:
    """Rows of q' over a part of the cache each. With one part the result is the mixed latents themselves;
    with more, `parts` holds each part's and `scales` the logarithm of its weight (base 2, -inf for no key).
    """
    if schedule["a_way"] in WAYS:
        return WAYS[str(schedule["a_way"])](kernel, schedule, sm, split, parts)
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    rows, keys, stages = int(schedule["a_rows"]), int(schedule["a_keys"]), int(schedule["a_stages"])
    threads = int(schedule["a_threads"])

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
            blocks = T.ceildiv(T.max(stop - origin(table, T.cast(span[b, 0], "int32")), 0), keys)
            share = T.ceildiv(blocks, count)
            start = settled(table, origin(table, T.cast(span[b, 0], "int32")) + part * share * keys)
            # At least one, masked where there is none: no copy is under way when its buffer is used again.
            turns = settled(table, T.max(T.min(share, blocks - part * share), 1))
            T.copy(q[row : row + rows, 0:latent], q_latent)
            T.copy(q[row : row + rows, latent : latent + rope], q_rotated)
            T.fill(result, 0)
            T.fill(total, 0)
            T.fill(top, LOWEST)
            for k in T.Pipelined(turns, num_stages=stages):
                first = start + k * keys
                at = T.min(first, end - keys)
                slot = slot_of(table, b, first, end)
                line = line_of(table, first, at, end)
                T.copy(latents[slot, 0, line : line + keys, :], cache)
                T.copy(rotated[slot, 0, line : line + keys, :], turned)
                T.gemm(
                    q_latent,
                    cache,
                    scores,
                    transpose_B=True,
                    clear_accum=True,
                    policy=T.GemmWarpPolicy.FullCol,
                )
                T.gemm(q_rotated, turned, scores, transpose_B=True, policy=T.GemmWarpPolicy.FullCol)
                if partly(table, first, keys, T.cast(span[b, 0], "int32"), old):
                    for i, j in T.Parallel(rows, keys):
                        scores[i, j] = T.if_then_else(
                            T.And(
                                at + j >= first_seen(table, first, T.cast(span[b, 0], "int32")),
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
                T.gemm(chances, cache, result, policy=T.GemmWarpPolicy.FullCol)
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
