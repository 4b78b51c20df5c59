"""Attention of a prefill by warpgroups with roles: one loads, two multiply and soften 64 tokens each.

A warpgroup has the next tile's scores multiplied while it softens those it has:

    S = Q K0^T;  m, P = soften S
    for each next tile k:   S = Q Kk^T;  R += P Vk-1     both begin
                            S is there: P', m = soften S
                            R is there: R shrinks by m, P = P'
    R += P V of the last

`turns`: the two begin their products in turns, so that one softens while the other multiplies.
"""

from math import gcd
from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from .latent_shared import BF16, F32, LOG2E, LOWEST, NEAR, PRELUDE, exp2

GROUP, GROUPS = 128, 2
LINES = 64  # tokens of a warpgroup
LOADING, MULTIPLYING = 24, 240  # registers of a thread


def ahead(kernel: Kernel, schedule: Schedule) -> Any:
    """As latent_prefill.attention, for 128 tokens a block."""
    heads, nope, rope, value = (kernel[n] for n in ("heads", "nope", "rope", "value"))
    start = kernel["start"]
    keys, stages = int(schedule["p_keys"]), int(schedule["p_stages"])
    rows, near, in_turns = LINES * GROUPS, gcd(heads, NEAR), schedule["p_way"] == "turns"

    @T.macro
    def load(x0, x4, s0, s1, q, q_turned, k, k_turned, v, q_ready, k_ready, v_ready, k_free, v_free, at, end):
        # at: batch, head, first token, first key, tiles
        stage = T.alloc_var("int32", init=0)
        phase = T.alloc_var("int32", init=1)
        b, h, row = at[0], at[1], at[2]
        at_q, at_k = start + h * (nope + rope), h * (nope + value)
        T.tma_copy(x0[b, row : row + rows, at_q : at_q + nope], q, barrier=q_ready, leader_scope_threads=32)
        T.tma_copy(
            s1[b, row : row + rows, h * rope : h * rope + rope],
            q_turned,
            barrier=q_ready,
            leader_scope_threads=32,
        )
        T.barrier_arrive(q_ready)
        for tile in T.serial(at[4]):
            key = T.min(at[3] + tile * keys, end - keys)
            T.barrier_wait(k_free[stage], phase)
            T.tma_copy(
                s0[b, key : key + keys, at_k : at_k + nope],
                k[stage, :, :],
                barrier=k_ready[stage],
                leader_scope_threads=32,
            )
            T.tma_copy(
                x4[b, 0, key : key + keys, :],
                k_turned[stage, :, :],
                barrier=k_ready[stage],
                leader_scope_threads=32,
            )
            T.barrier_arrive(k_ready[stage])
            T.barrier_wait(v_free[stage], phase)
            T.tma_copy(
                s0[b, key : key + keys, at_k + nope : at_k + nope + value],
                v[stage, :, :],
                barrier=v_ready[stage],
                leader_scope_threads=32,
            )
            T.barrier_arrive(v_ready[stage])
            stage += 1
            if stage == stages:
                stage = 0
                phase = phase ^ 1

    @T.macro
    def score(g, q, q_turned, k, k_turned, stage, scores):
        T.wgmma_gemm(
            q[g * LINES : (g + 1) * LINES, :], k[stage, :, :], scores, transpose_B=True, clear_accum=True
        )
        T.wgmma_gemm(
            q_turned[g * LINES : (g + 1) * LINES, :], k_turned[stage, :, :], scores, transpose_B=True
        )

    @T.macro
    def soften(scores, top, shrink, total, sums, first, end, line, scale):
        # line: the last key that the warpgroup's first token sees
        if first + keys - 1 > line:
            key = T.min(first, end - keys)
            for i, j in T.Parallel(LINES, keys):
                scores[i, j] = T.if_then_else(
                    T.And(key + j >= first, key + j <= line + i), scores[i, j], -T.infinity(F32)
                )
        T.copy(top, shrink)
        T.reduce_max(scores, top, dim=1, clear=False)
        for i in T.Parallel(LINES):
            shrink[i] = exp2((shrink[i] - top[i]) * (scale * LOG2E))
        for i, j in T.Parallel(LINES, keys):
            scores[i, j] = exp2(scores[i, j] * (scale * LOG2E) - top[i] * (scale * LOG2E))
        T.reduce_sum(scores, sums, dim=1)
        for i in T.Parallel(LINES):
            total[i] = total[i] * shrink[i] + sums[i]

    @T.macro
    def release(free, stage, lane):
        if lane % 32 == 0:
            T.barrier_arrive(free[stage])

    @T.macro
    def await_turn(g, mine, turn):
        if in_turns:
            T.barrier_wait(mine[g], turn)

    @T.macro
    def give_turn(g, mine):
        if in_turns:
            T.barrier_arrive(mine[1 - g])

    @T.macro
    def attend(
        g,
        y0,
        q,
        q_turned,
        k,
        k_turned,
        v,
        q_ready,
        k_ready,
        v_ready,
        k_free,
        v_free,
        mine,
        at,
        end,
        old,
        scale,
        lane,
        tokens,
    ):
        scores = T.alloc_fragment((LINES, keys), F32)
        chances = T.alloc_fragment((LINES, keys), BF16)
        result = T.alloc_fragment((LINES, value), F32)
        top = T.alloc_fragment((LINES,), F32)
        shrink = T.alloc_fragment((LINES,), F32)
        sums = T.alloc_fragment((LINES,), F32)
        total = T.alloc_fragment((LINES,), F32)
        stage = T.alloc_var("int32", init=0)
        before = T.alloc_var("int32", init=0)
        phase = T.alloc_var("int32", init=0)
        phase_before = T.alloc_var("int32", init=0)
        b, h, begin, turns = at[0], at[1], at[3], at[4]
        row = at[2] + g * LINES
        T.fill(result, 0)
        T.fill(total, 0)
        T.fill(top, LOWEST)
        if g == 1:
            give_turn(g, mine)
        T.barrier_wait(q_ready, 0)
        T.barrier_wait(k_ready[0], 0)
        await_turn(g, mine, 0)
        score(g, q, q_turned, k, k_turned, 0, scores)
        give_turn(g, mine)
        T.wait_wgmma(0)
        release(k_free, 0, lane)
        soften(scores, top, shrink, total, sums, begin, end, old + row, scale)
        T.copy(scores, chances)
        for tile in T.serial(turns - 1):
            stage = before + 1
            phase = phase_before
            if stage == stages:
                stage = 0
                phase = phase ^ 1
            T.barrier_wait(k_ready[stage], phase)
            await_turn(g, mine, (tile + 1) % 2)
            score(g, q, q_turned, k, k_turned, stage, scores)
            T.barrier_wait(v_ready[before], phase_before)
            T.wgmma_gemm(chances, v[before, :, :], result)
            give_turn(g, mine)
            T.wait_wgmma(1)
            release(k_free, stage, lane)
            soften(scores, top, shrink, total, sums, begin + (tile + 1) * keys, end, old + row, scale)
            # Compilers would move the next wait up, in front of all that it is to overlap with: not over a
            # branch, and this wait, long over, is one.
            T.warpgroup_fence_operand(scores, num_regs=LINES * keys // GROUP)
            T.barrier_wait(q_ready, 0)
            T.wait_wgmma(0)
            release(v_free, before, lane)
            for i, j in T.Parallel(LINES, value):
                result[i, j] *= shrink[i]
            T.copy(scores, chances)
            before = stage
            phase_before = phase
        T.barrier_wait(v_ready[before], phase_before)
        T.wgmma_gemm(chances, v[before, :, :], result)
        T.wait_wgmma(0)
        for i in T.Parallel(LINES):
            shrink[i] = T.if_then_else(total[i] > 0, 1 / total[i], 0)
        for i, j in T.Parallel(LINES, value):
            result[i, j] *= shrink[i]
        # Nobody else reads these rows of q, and the warpgroup has.
        for i, j in T.Parallel(LINES, value):
            q[g * LINES + i, j] = T.cast(result[i, j], BF16)
        T.sync_threads(g + 1, GROUP)
        for i, j in T.Parallel(LINES, value):
            if row + i < tokens:
                y0[b, row + i, h * value + j] = q[g * LINES + i, j]

    @T.macro
    def body(x0, x4, x6, s0, s1, y0, scale, batch, tokens):
        with T.Kernel(
            near,
            T.ceildiv(tokens, rows),
            batch * (heads // near),
            threads=GROUP * (GROUPS + 1),
            prelude=PRELUDE,
        ) as (
            h,
            late,
            others,
        ):
            q = T.alloc_shared((rows, nope), BF16)
            q_turned = T.alloc_shared((rows, rope), BF16)
            k = T.alloc_shared((stages, keys, nope), BF16)
            k_turned = T.alloc_shared((stages, keys, rope), BF16)
            v = T.alloc_shared((stages, keys, value), BF16)
            q_ready = T.alloc_barrier(arrive_count=32)
            k_ready = T.alloc_barrier(arrive_count=[32] * stages)
            v_ready = T.alloc_barrier(arrive_count=[32] * stages)
            k_free = T.alloc_barrier(arrive_count=[4 * GROUPS] * stages)
            v_free = T.alloc_barrier(arrive_count=[4 * GROUPS] * stages)
            mine = T.alloc_barrier(arrive_count=[GROUP] * GROUPS)
            at = T.alloc_local((5,), "int32")
            thread = T.get_thread_binding()
            T.pdl_sync()
            T.pdl_trigger()
            at[0] = others // (heads // near)
            at[1] = others % (heads // near) * near + h
            at[2] = (T.ceildiv(tokens, rows) - 1 - late) * rows
            at[3] = T.cast(x6[at[0], 0], "int32")
            end = T.cast(x6[at[0], 1], "int32")
            old = end - tokens
            at[4] = T.max(T.ceildiv(old + T.min(at[2] + rows, tokens) - at[3], keys), 1)
            if thread >= GROUP * GROUPS:
                T.dec_max_nreg(LOADING)
                if thread < GROUP * GROUPS + 32:
                    load(
                        x0,
                        x4,
                        s0,
                        s1,
                        q,
                        q_turned,
                        k,
                        k_turned,
                        v,
                        q_ready,
                        k_ready,
                        v_ready,
                        k_free,
                        v_free,
                        at,
                        end,
                    )
            else:
                T.inc_max_nreg(MULTIPLYING)
                if thread < GROUP:
                    attend(
                        0, y0, q, q_turned, k, k_turned, v, q_ready, k_ready, v_ready, k_free, v_free,
                        mine, at, end, old, scale, thread, tokens,
                    )  # fmt: skip
                else:
                    attend(
                        1, y0, q, q_turned, k, k_turned, v, q_ready, k_ready, v_ready, k_free, v_free,
                        mine, at, end, old, scale, thread, tokens,
                    )  # fmt: skip

    return body
