"""grouped_combine for few tokens (see gemv_stream.py)."""

from collections.abc import Sequence

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Step
from ..sm import Sm
from .gemv_stream import BF16, F32, I32, I64, U32, added, below, plan_of, registers, share_sums, step, streams


def grouped_combine(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """A block owns columns of the result and goes through all experts with rows, so every sum has one order.
    Groups of warps take an expert each; an mma's column is a token, zero where it did not choose the expert.

    Where experts and rows lie was written before the step in front of this one, which a function of this
    family, triggering behind its own pdl_sync, ended: with v_early=1 they are read, and weights asked for,
    before pdl_sync, past the first cache, which no one has told of what was written.
    """
    plan, early = plan_of(kernel, schedule), bool(schedule["v_early"])
    k, n, experts, share = kernel["k"], kernel["n"], kernel["experts"], kernel["share"]
    chunks, warps, tokens_ = -(-experts // 32), plan.threads // 32, plan.tokens
    owned = -(-chunks // warps)
    m = T.dynamic("m")
    weights, tokens, multiply, _ = streams(plan)

    def fresh(element):
        return T.atomic_load(element, memory_order="relaxed") if early else element

    def start_of(x2, e):
        """An expert's first row; past the last expert, where all rows end."""
        return T.Select(e > 0, T.cast(fresh(x2[T.max(T.min(e, experts) - 1, 0)]), I32), 0)

    def end_of(x2, e):
        """Where an expert's rows end."""
        return T.cast(fresh(x2[T.min(e, experts - 1)]), I32)

    @T.macro
    def list_experts(x2, ends, ranks, list_, rows, scales, count, warp, lane):
        """Into shared memory: ends and ranks of all experts, and by rank those with rows; no token has one
        yet. count[0]: how many have. Every warp counts all, and writes the experts of its own chunks of 32.
        """
        starts, stops = T.alloc_local((chunks,), I32), T.alloc_local((chunks,), I32)
        first, last = T.alloc_local((owned,), I32), T.alloc_local((owned,), I32)
        before = T.alloc_local((owned,), I32)
        for c in T.unroll(chunks):
            starts[c] = start_of(x2, c * 32 + lane)
            stops[c] = end_of(x2, c * 32 + lane)
        for c in T.unroll(owned):
            first[c] = start_of(x2, (c * warps + warp) * 32 + lane)
            last[c] = end_of(x2, (c * warps + warp) * 32 + lane)
        count[0] = 0
        for c in T.unroll(chunks):
            if c % warps == warp:
                before[c // warps] = count[0]
            count[0] += T.cast(T.popcount(T.cast(T.ballot(stops[c] > starts[c]), U32)), I32)
        for c in T.unroll(owned):
            e = (c * warps + warp) * 32 + lane
            present = last[c] > first[c]
            mask = T.cast(T.ballot(present), U32)
            rank = before[c] + T.cast(T.popcount(mask & below(lane)), I32)
            if e < experts:
                ends[e] = last[c]
                ranks[e] = rank
                if present:
                    list_[rank] = e
                    for t in T.unroll(tokens_):
                        rows[rank, t] = -1
                        scales[rank, t] = 0.0
        T.sync_threads()

    @T.macro
    def enter(row, slot, scale, first, ends, ranks, rows, scales):
        """A sorted row's place in the table of experts by tokens, if its token is of this block."""
        token = slot // share - first
        if token >= 0 and token < tokens_:
            low, high = T.alloc_local((1,), I32), T.alloc_local((1,), I32)
            low[0] = 0
            high[0] = experts - 1
            for _ in T.unroll((experts - 1).bit_length()):
                middle = (low[0] + high[0]) // 2
                if ends[middle] > row:
                    high[0] = middle
                else:
                    low[0] = T.min(middle + 1, high[0])
            rows[ranks[low[0]], token] = row
            scales[ranks[low[0]], token] = scale

    @T.macro
    def body(x0, x1, x2, x3, x4, x5, y0, block, first, thread):
        T.annotate_min_blocks_per_sm(plan.fit)
        warp, lane = thread // 32, thread % 32
        group, part = warp // plan.split, warp % plan.split
        sums, ws, xs, a = registers(plan)
        totals = T.alloc_local((plan.sums,), F32)
        count, expert = T.alloc_local((1,), I32), T.alloc_local((1,), I32)
        chosen = T.alloc_local((plan.columns,), I32)
        result, base = T.alloc_local((1,), F32), T.alloc_local((plan.turns,), F32)
        slot_, scale_ = T.alloc_local((1,), I32), T.alloc_local((1,), F32)
        ends, ranks = T.alloc_shared((experts,), I32), T.alloc_shared((experts,), I32)
        list_ = T.alloc_shared((experts,), I32)
        rows = T.alloc_shared((experts, tokens_), I32)
        scales = T.alloc_shared((experts, tokens_), F32)
        shared = T.alloc_shared((warps, plan.sums * 32), F32)
        T.clear(totals)
        if not early:
            T.pdl_sync()
            T.pdl_trigger()
        slot_[0] = -share
        scale_[0] = 0.0
        if thread < m * share:
            slot_[0] = T.cast(fresh(x1[thread]), I32)
            scale_[0] = fresh(x4[slot_[0]])
        list_experts(x2, ends, ranks, list_, rows, scales, count, warp, lane)
        expert[0] = list_[T.min(group, count[0] - 1)]
        for batch in T.unroll(plan.slots):
            weights(ws, x3, T.cast(expert[0], I64) * n, block, part, lane, batch, batch, group < count[0])
        if thread < m * share:
            enter(thread, slot_[0], scale_[0], first, ends, ranks, rows, scales)
        for turn in T.serial(T.max(m * share - 1, 0) // plan.threads):
            row = (turn + 1) * plan.threads + thread
            if row < m * share:
                slot_[0] = T.cast(fresh(x1[row]), I32)
                scale_[0] = fresh(x4[slot_[0]])
                enter(row, slot_[0], scale_[0], first, ends, ranks, rows, scales)
        T.sync_threads()
        if early:
            T.pdl_sync()
            T.pdl_trigger()
        for turn in T.unroll(plan.turns):
            _, column, token = plan.place(turn * plan.threads + thread)
            base[turn] = 0.0
            if x5 is not None:
                if block * plan.block + column < n and first + token < m:
                    base[turn] = T.cast(x5[first + token, block * plan.block + column], F32)
        for q in T.unroll(plan.columns):
            chosen[q] = -1
            if group < count[0]:
                chosen[q] = rows[group, q * 8 + lane // 4]
        for batch in T.unroll(plan.slots):
            tokens(xs, x0, chosen, part, lane, batch, batch)
        for turn in T.serial(T.ceildiv(count[0] - group, plan.groups)):
            rank = turn * plan.groups + group
            T.clear(sums)
            for batch in T.unroll(plan.batches):
                multiply(sums, ws, xs, a, batch % plan.slots)
                ahead = batch + plan.slots
                if ahead == plan.batches:
                    expert[0] = list_[T.min(rank + plan.groups, count[0] - 1)]
                    for q in T.unroll(plan.columns):
                        chosen[q] = -1
                        if rank + plan.groups < count[0]:
                            chosen[q] = rows[rank + plan.groups, q * 8 + lane // 4]
                more = T.Or(ahead < plan.batches, rank + plan.groups < count[0])
                step, slot = ahead % plan.batches, batch % plan.slots
                weights(ws, x3, T.cast(expert[0], I64) * n, block, part, lane, step, slot, more)
                tokens(xs, x0, chosen, part, lane, step, slot)
            for i in T.unroll(plan.sums):
                totals[i] += sums[i] * scales[rank, plan.token(i // 4, lane, i % 2)]
        share_sums(shared, totals, warp, lane, plan.sums)
        for turn in T.unroll(plan.turns):
            e = turn * plan.threads + thread
            at, column, token = plan.place(e)
            if e < plan.results and block * plan.block + column < n and first + token < m:
                added(result, shared, at, warps)
                y0[first + token, block * plan.block + column] = T.cast(result[0] + base[turn], BF16)

    @T.prim_func
    def gemv_grouped_combine(
        x0: T.Tensor((m * share, k), BF16),
        x1: T.Tensor((m * share,), I64),
        x2: T.Tensor((experts,), I64),
        x3: T.Tensor((experts * n, k), BF16),
        x4: T.Tensor((m * share,), F32),
        y0: T.Tensor((m, n), BF16),
    ):
        with T.Kernel(plan.blocks, T.ceildiv(m, tokens_), threads=plan.threads) as (block, part):
            body(x0, x1, x2, x3, x4, None, y0, block, part * tokens_, T.get_thread_binding(0))

    @T.prim_func
    def gemv_grouped_combine_onto(
        x0: T.Tensor((m * share, k), BF16),
        x1: T.Tensor((m * share,), I64),
        x2: T.Tensor((experts,), I64),
        x3: T.Tensor((experts * n, k), BF16),
        x4: T.Tensor((m * share,), F32),
        x5: T.Tensor((m, n), BF16),
        y0: T.Tensor((m, n), BF16),
    ):
        with T.Kernel(plan.blocks, T.ceildiv(m, tokens_), threads=plan.threads) as (block, part):
            body(x0, x1, x2, x3, x4, x5, y0, block, part * tokens_, T.get_thread_binding(0))

    return [step(gemv_grouped_combine_onto if kernel["base"] else gemv_grouped_combine)]
