"""The absorbed attention for 64 rows and more: two warpgroups, each with half of the latents' columns.

They take turns on pairs of tiles of 64 keys, so that one multiplies while the other softens:

    warpgroup 0                                 warpgroup 1
    S0 = Q K0^T                                 S1 = Q K1^T
    m0 = max(m, S0); P0 = 2^(S0 - m0)
    Ol = Ol a0 + P0 K0l                         m1 = max(m0, S1); P1 = 2^(S1 - m1)
    P0 a1 to shared memory                      Or = Or a0 a1 + P1 K1r
    Ol = Ol a1 + P1 K1l                         Or += (P0 a1) K0r

with a0 = 2^(m - m0), a1 = 2^(m0 - m1), l and r the halves. Whoever reads a piece of a tile last asks for its
successor; each warpgroup for its own rotated keys, which begin its scores. The rotated part of Q lives in
registers, and P1 where it was. (The schedule is FlashMLA's.)

On an H200, 64 sequences of 4096 keys and 128 heads take 129 us, 568 TFLOP/s, and 137 where rotated keys
came from the other warpgroup and last. Tensor cores were busy for 61 % of those 137, at 1.65 GHz, where
other kernels ran at 1.96. Asking the second cache for later tiles gained 1 % then and lost 5 % beside this,
together with leaving out scaling where no maximum had changed.
"""

from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..sm import Sm
from .latent_pages import NAN, line_of, nothing, origin, outside, settled, slot_of
from .latent_pieces import KEYS, PIECE, ROWS, tools
from .latent_shared import BF16, F32, LOG2E, LOWEST, PRELUDE, exp2, grid_blocks

GROUP = 128


def seesaw(kernel: Kernel, schedule: Schedule, sm: Sm, split: bool, parts: Any) -> Any:
    """As latent_decode.attention, for rows and keys of 64."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    half = latent // 2
    pieces = half // PIECE

    load, score, hide = tools(heads, half)

    @T.macro
    def turn(rotated, slot, line, to, ready):
        """Asks for a tile's rotated keys."""
        T.tma_copy(rotated[slot, 0, line : line + KEYS, :], to, barrier=ready)
        T.barrier_arrive(ready)

    @T.macro
    def body(q, latents, rotated, span, table, pages, mixed, weights, scale, batch, tokens, seen):
        with T.Kernel(
            parts(schedule, heads, sm, batch, tokens, seen) if split else 1,
            T.ceildiv(tokens * heads, ROWS),
            batch,
            threads=2 * GROUP,
            prelude=PRELUDE,
        ) as (
            part,
            tile,
            b,
        ):
            q_left = T.alloc_shared((ROWS, half), BF16)
            q_right = T.alloc_shared((ROWS, half), BF16)
            q_turned = T.alloc_shared((ROWS, rope), BF16)
            left0 = T.alloc_shared((KEYS, half), BF16)
            right0 = T.alloc_shared((KEYS, half), BF16)
            turned0 = T.alloc_shared((KEYS, rope), BF16)
            left1 = T.alloc_shared((KEYS, half), BF16)
            right1 = T.alloc_shared((KEYS, half), BF16)
            turned1 = T.alloc_shared((KEYS, rope), BF16)
            p0 = T.alloc_shared((ROWS, KEYS), BF16)
            p1 = q_turned
            top = T.alloc_shared((ROWS,), F32)
            shrink0 = T.alloc_shared((ROWS,), F32)
            shrink1 = T.alloc_shared((ROWS,), F32)
            totals = T.alloc_shared((ROWS,), F32)

            q_turned0 = T.alloc_fragment((ROWS, rope), BF16)
            q_turned1 = T.alloc_fragment((ROWS, rope), BF16)
            s0 = T.alloc_fragment((ROWS, KEYS), F32)
            s1 = T.alloc_fragment((ROWS, KEYS), F32)
            s0_narrow = T.alloc_fragment((ROWS, KEYS), BF16)
            s1_narrow = T.alloc_fragment((ROWS, KEYS), BF16)
            s0_shrunk = T.alloc_fragment((ROWS, KEYS), BF16)
            result_left = T.alloc_fragment((ROWS, half), F32)
            result_right = T.alloc_fragment((ROWS, half), F32)
            top0 = T.alloc_fragment((ROWS,), F32)
            top1 = T.alloc_fragment((ROWS,), F32)
            before0 = T.alloc_fragment((ROWS,), F32)
            before1 = T.alloc_fragment((ROWS,), F32)
            sums0 = T.alloc_fragment((ROWS,), F32)
            sums1 = T.alloc_fragment((ROWS,), F32)
            total0 = T.alloc_fragment((ROWS,), F32)
            total1 = T.alloc_fragment((ROWS,), F32)

            q_ready = T.alloc_barrier(arrive_count=2 * GROUP)
            left0_ready = T.alloc_barrier(arrive_count=[GROUP] * pieces)
            right0_ready = T.alloc_barrier(arrive_count=[GROUP] * pieces)
            turned0_ready = T.alloc_barrier(arrive_count=GROUP)
            left1_ready = T.alloc_barrier(arrive_count=[GROUP] * pieces)
            right1_ready = T.alloc_barrier(arrive_count=[GROUP] * pieces)
            turned1_ready = T.alloc_barrier(arrive_count=GROUP)
            top0_ready = T.alloc_barrier(arrive_count=GROUP)
            shrink1_ready = T.alloc_barrier(arrive_count=GROUP)
            p0_ready = T.alloc_barrier(arrive_count=GROUP)
            p1_ready = T.alloc_barrier(arrive_count=GROUP)
            total0_ready = T.alloc_barrier(arrive_count=GROUP)
            totals_ready = T.alloc_barrier(arrive_count=GROUP)

            if table is not None:
                lost = T.alloc_var("int32", init=0)  # whether a page is none of the pool

            thread = T.get_thread_binding()
            count = grid_blocks() if split else 1
            T.pdl_sync()
            T.pdl_trigger()
            line = tile * ROWS  # the block's first row of its batch
            row = b * tokens * heads + line
            end = T.cast(span[b, 1], "int32")
            begin = T.cast(span[b, 0], "int32")
            base = origin(table, begin)
            old = end - tokens  # keys that the first new token has before itself
            stop = old + (T.min(line + ROWS, tokens * heads) - 1) // heads + 1
            pairs = T.ceildiv(T.max(stop - base, 0), 2 * KEYS)
            share = T.ceildiv(pairs, count)
            start = settled(table, base + part * share * (2 * KEYS))
            # At least one, masked where there is none, so that all blocks go the same way.
            turns = settled(table, T.max(T.min(share, pairs - part * share), 1))
            last = end - KEYS  # no tile begins behind it

            T.tma_copy(q[row : row + ROWS, 0:half], q_left, barrier=q_ready)
            T.tma_copy(q[row : row + ROWS, half:latent], q_right, barrier=q_ready)
            T.tma_copy(q[row : row + ROWS, latent : latent + rope], q_turned, barrier=q_ready)
            T.fill(top, LOWEST)
            T.barrier_arrive(q_ready)

            if thread < GROUP:
                T.fill(result_left, 0)
                T.fill(total0, 0)
                slot1 = slot_of(table, b, start + KEYS, end)
                line1 = line_of(table, start + KEYS, T.min(start + KEYS, last), end)
                load(latents, slot1, line1, 0, left1, left1_ready)
                load(latents, slot1, line1, half, right1, right1_ready)
                turn(rotated, slot1, line1, turned1, turned1_ready)
                if table is not None:
                    slot0 = slot_of(table, b, start, end)
                    lost = outside(slot0, pages) | outside(slot1, pages)
                T.barrier_wait(q_ready, 0)
                T.copy(q_turned, q_turned0)
                score(q_left, left0, left0_ready, 0, s0, True)
                score(q_right, right0, right0_ready, 0, s0, False)
                T.barrier_wait(turned0_ready, 0)
                T.wgmma_gemm(q_turned0, turned0, s0, transpose_B=True)
                T.wait_wgmma(0)
                for k in T.serial(turns):
                    first0 = start + k * (2 * KEYS)
                    next0 = T.min(first0 + 2 * KEYS, last)
                    next1 = T.min(first0 + 3 * KEYS, last)
                    # Long before they are needed: a page's number is in memory.
                    next_slot0 = slot_of(table, b, first0 + 2 * KEYS, end)
                    next_slot1 = slot_of(table, b, first0 + 3 * KEYS, end)
                    next_line0 = line_of(table, first0 + 2 * KEYS, next0, end)
                    next_line1 = line_of(table, first0 + 3 * KEYS, next1, end)
                    if table is not None:
                        lost = lost | outside(next_slot0, pages) | outside(next_slot1, pages)
                    if k < turns - 1:
                        turn(rotated, next_slot0, next_line0, turned0, turned0_ready)
                    hide(table, s0, first0, T.min(first0, last), line, begin, old)
                    T.copy(top, top0)
                    T.copy(top0, before0)
                    T.reduce_max(s0, top0, dim=1, clear=False)
                    T.copy(top0, top)
                    for i in T.Parallel(ROWS):
                        before0[i] = exp2((before0[i] - top0[i]) * (scale * LOG2E))
                    T.copy(before0, shrink0)
                    T.barrier_arrive(top0_ready)
                    for i, j in T.Parallel(ROWS, KEYS):
                        s0[i, j] = exp2(s0[i, j] * (scale * LOG2E) - top0[i] * (scale * LOG2E))
                    T.copy(s0, s0_narrow)
                    for i, j in T.Parallel(ROWS, half):
                        result_left[i, j] *= before0[i]
                    T.wgmma_gemm(s0_narrow, left0, result_left)
                    T.reduce_sum(s0, sums0, dim=1)
                    for i in T.Parallel(ROWS):
                        total0[i] = total0[i] * before0[i] + sums0[i]
                    T.barrier_wait(shrink1_ready, k % 2)
                    T.copy(shrink1, before0)
                    for i, j in T.Parallel(ROWS, KEYS):
                        s0_shrunk[i, j] = s0[i, j] * before0[i]
                    T.copy(s0_shrunk, p0)
                    T.fence_proxy_async()
                    T.barrier_arrive(p0_ready)
                    T.wait_wgmma(0)
                    if k < turns - 1:
                        load(latents, next_slot0, next_line0, 0, left0, left0_ready)
                    for i, j in T.Parallel(ROWS, half):
                        result_left[i, j] *= before0[i]
                    for i in T.Parallel(ROWS):
                        total0[i] *= before0[i]
                    T.barrier_wait(p1_ready, k % 2)
                    T.wgmma_gemm(p1, left1, result_left)
                    if k < turns - 1:
                        T.barrier_wait(turned0_ready, (k + 1) % 2)
                        T.wgmma_gemm(q_turned0, turned0, s0, transpose_B=True, clear_accum=True)
                        score(q_left, left0, left0_ready, (k + 1) % 2, s0, False)
                        T.wait_wgmma(pieces + 1)  # all but those scores
                        load(latents, next_slot1, next_line1, 0, left1, left1_ready)
                        score(q_right, right0, right0_ready, (k + 1) % 2, s0, False)
                    T.wait_wgmma(0)
                if table is not None:
                    for i in T.Parallel(ROWS):
                        total0[i] *= T.if_then_else(lost != 0, NAN, T.cast(1, F32))
                T.copy(total0, totals)
                T.barrier_arrive(total0_ready)
                T.barrier_wait(totals_ready, 0)
                T.copy(totals, total0)
                for i in T.Parallel(ROWS):
                    before0[i] = T.if_then_else(total0[i] > 0, 1 / total0[i], nothing(table, total0[i]))
                for i, j in T.Parallel(ROWS, half):
                    result_left[i, j] *= before0[i]
                T.copy(result_left, q_left)
                T.sync_threads()
                for i, j in T.Parallel(ROWS, half):
                    if line + i < tokens * heads:
                        if split:
                            mixed[(row + i) * count + part, j] = q_left[i, j]
                        else:
                            mixed[row + i, j] = q_left[i, j]
                if split:
                    T.copy(top, top0)
                    for i in T.Parallel(ROWS):
                        top0[i] = T.if_then_else(
                            total0[i] > 0, T.log2(total0[i]) + top0[i] * (scale * LOG2E), -T.infinity(F32)
                        )
                    for i in T.Parallel(ROWS):
                        if line + i < tokens * heads:
                            weights[(row + i) * count + part] = top0[i]
            else:
                T.fill(result_right, 0)
                T.fill(total1, 0)
                slot0 = slot_of(table, b, start, end)
                line0 = line_of(table, start, T.min(start, last), end)
                load(latents, slot0, line0, 0, left0, left0_ready)
                load(latents, slot0, line0, half, right0, right0_ready)
                turn(rotated, slot0, line0, turned0, turned0_ready)
                T.barrier_wait(q_ready, 0)
                T.copy(q_turned, q_turned1)
                score(q_left, left1, left1_ready, 0, s1, True)
                score(q_right, right1, right1_ready, 0, s1, False)
                T.barrier_wait(turned1_ready, 0)
                T.wgmma_gemm(q_turned1, turned1, s1, transpose_B=True)
                T.wait_wgmma(0)
                for k in T.serial(turns):
                    first1 = start + k * (2 * KEYS) + KEYS
                    next0 = T.min(first1 + KEYS, last)
                    next1 = T.min(first1 + 2 * KEYS, last)
                    next_slot0 = slot_of(table, b, first1 + KEYS, end)
                    next_slot1 = slot_of(table, b, first1 + 2 * KEYS, end)
                    next_line0 = line_of(table, first1 + KEYS, next0, end)
                    next_line1 = line_of(table, first1 + 2 * KEYS, next1, end)
                    if k < turns - 1:
                        turn(rotated, next_slot1, next_line1, turned1, turned1_ready)
                    hide(table, s1, first1, T.min(first1, last), line, begin, old)
                    T.barrier_wait(top0_ready, k % 2)
                    T.copy(top, top1)
                    T.copy(top1, before1)
                    T.reduce_max(s1, top1, dim=1, clear=False)
                    T.copy(top1, top)
                    for i in T.Parallel(ROWS):
                        before1[i] = exp2((before1[i] - top1[i]) * (scale * LOG2E))
                    T.copy(before1, shrink1)
                    T.barrier_arrive(shrink1_ready)
                    for i, j in T.Parallel(ROWS, KEYS):
                        s1[i, j] = exp2(s1[i, j] * (scale * LOG2E) - top1[i] * (scale * LOG2E))
                    T.copy(s1, s1_narrow)
                    T.copy(s1_narrow, p1)
                    T.fence_proxy_async()
                    T.barrier_arrive(p1_ready)
                    T.copy(shrink0, top1)
                    for i in T.Parallel(ROWS):
                        before1[i] *= top1[i]
                    for i, j in T.Parallel(ROWS, half):
                        result_right[i, j] *= before1[i]
                    T.wgmma_gemm(s1_narrow, right1, result_right)
                    T.reduce_sum(s1, sums1, dim=1)
                    for i in T.Parallel(ROWS):
                        total1[i] = total1[i] * before1[i] + sums1[i]
                    T.barrier_wait(p0_ready, k % 2)
                    T.wgmma_gemm(p0, right0, result_right)
                    if k < turns - 1:
                        T.wait_wgmma(1)
                        load(latents, next_slot1, next_line1, half, right1, right1_ready)
                        T.wait_wgmma(0)
                        load(latents, next_slot0, next_line0, half, right0, right0_ready)
                        T.barrier_wait(turned1_ready, (k + 1) % 2)
                        T.wgmma_gemm(q_turned1, turned1, s1, transpose_B=True, clear_accum=True)
                        score(q_right, right1, right1_ready, (k + 1) % 2, s1, False)
                        score(q_left, left1, left1_ready, (k + 1) % 2, s1, False)
                    T.wait_wgmma(0)
                T.barrier_wait(total0_ready, 0)
                T.copy(totals, sums1)
                for i in T.Parallel(ROWS):
                    total1[i] += sums1[i]
                T.copy(total1, totals)
                T.barrier_arrive(totals_ready)
                for i in T.Parallel(ROWS):
                    before1[i] = T.if_then_else(total1[i] > 0, 1 / total1[i], nothing(table, total1[i]))
                for i, j in T.Parallel(ROWS, half):
                    result_right[i, j] *= before1[i]
                T.copy(result_right, q_right)
                T.sync_threads()
                for i, j in T.Parallel(ROWS, half):
                    if line + i < tokens * heads:
                        if split:
                            mixed[(row + i) * count + part, half + j] = q_right[i, j]
                        else:
                            mixed[row + i, half + j] = q_right[i, j]

    return body
