"""Products for few tokens by blocks that stay: linear, linear_add, linear_swiglu and grouped_swiglu.

A multiprocessor gets v_stay blocks, and each takes one piece of the result after another.
A block asks for the next piece's weights and tokens as it multiplies the last of this one's, so that memory
stays busy while sums are added up and written, and no last wave of blocks leaves multiprocessors idle.
"""

from collections.abc import Sequence
from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Step
from ..sm import Sm
from .gemv_stream import BF16, F32, I32, I64, Plan, finished, plan_of, registers, share_sums, step, streams


def onward(plan: Plan) -> Any:
    """A macro that multiplies a piece and asks for the first of the next one, which there is if `more`."""
    weights, tokens, multiply, _ = streams(plan)

    @T.macro
    def through(sums, ws, xs, a, w, x, part, lane, base, block, rows, base_, block_, rows_, more):
        T.clear(sums)
        for batch in T.unroll(plan.batches):
            multiply(sums, ws, xs, a, batch % plan.slots)
            ahead, slot = batch + plan.slots, batch % plan.slots
            if ahead < plan.batches:
                weights(ws, w, base, block, part, lane, ahead, slot, True)
                tokens(xs, x, rows, part, lane, ahead, slot)
            else:
                weights(ws, w, base_, block_, part, lane, ahead - plan.batches, slot, more)
                tokens(xs, x, rows_, part, lane, ahead - plan.batches, slot)

    return through


def linear(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """linear, linear_add and linear_swiglu: a piece is rows of the weight, for up to 16 tokens."""
    plan, grid = plan_of(kernel, schedule), sm.multiprocessors * int(schedule["v_stay"])
    k, n, width, kind = kernel["k"], kernel["n"], plan.width, kernel.kind
    dtype = F32 if kernel["wide"] else BF16
    m = T.dynamic("m")
    weights, tokens, _, _ = streams(plan)
    through = onward(plan)

    @T.macro
    def rows_of(rows, piece, lane):
        """The tokens of a lane in a piece; none past the last piece."""
        for q in T.unroll(plan.columns):
            row = piece // plan.blocks * plan.tokens + q * 8 + lane // 4
            rows[q] = T.if_then_else(row < m, row, -1)

    @T.macro
    def body(x0, x1, x2, y0, first, thread):
        T.annotate_min_blocks_per_sm(plan.fit)
        warp, lane = thread // 32, thread % 32
        sums, ws, xs, a = registers(plan)
        rows, coming = T.alloc_local((plan.columns,), I32), T.alloc_local((plan.columns,), I32)
        result, base = T.alloc_local((1,), F32), T.alloc_local((plan.turns,), F32)
        shared = T.alloc_shared((plan.split, plan.sums * 32), F32)
        pieces = plan.blocks * T.ceildiv(m, plan.tokens)
        for slot in T.unroll(plan.slots):
            weights(ws, x1, 0, first % plan.blocks, warp, lane, slot, slot, first < pieces)
        T.pdl_sync()
        T.pdl_trigger()
        rows_of(coming, first, lane)
        for slot in T.unroll(plan.slots):
            tokens(xs, x0, coming, warp, lane, slot, slot)
        for turn in T.serial(T.ceildiv(T.max(pieces - first, 0), grid)):
            piece = first + turn * grid
            for q in T.unroll(plan.columns):
                rows[q] = coming[q]
            rows_of(coming, piece + grid, lane)
            block, head = piece % plan.blocks, piece // plan.blocks * plan.tokens
            for part in T.unroll(plan.turns):
                _, column, token = plan.place(part * plan.threads + thread)
                at, row = block * plan.block + column, head + token
                base[part] = 0.0
                if x2 is not None:
                    if at < width and row < m:
                        base[part] = T.cast(x2[row, at], F32)
            through(
                *(sums, ws, xs, a, x1, x0, warp, lane),
                *(0, block, rows),
                *(0, (piece + grid) % plan.blocks, coming, piece + grid < pieces),
            )
            share_sums(shared, sums, warp, lane, plan.sums)
            for part in T.unroll(plan.turns):
                e = part * plan.threads + thread
                from_, column, token = plan.place(e)
                at, row = block * plan.block + column, head + token
                if e < plan.results and at < width and row < m:
                    finished(result, shared, from_, plan.split, plan.paired)
                    y0[row, at] = T.cast(result[0] + base[part], dtype)
            T.sync_threads()

    @T.prim_func
    def gemv_stay_linear(
        x0: T.Tensor((m, k), BF16), x1: T.Tensor((n, k), BF16), y0: T.Tensor((m, width), dtype)
    ):
        with T.Kernel(grid, threads=plan.threads) as first:
            body(x0, x1, None, y0, first, T.get_thread_binding(0))

    @T.prim_func
    def gemv_stay_linear_add(
        x0: T.Tensor((m, k), BF16),
        x1: T.Tensor((n, k), BF16),
        x2: T.Tensor((m, n), BF16),
        y0: T.Tensor((m, width), dtype),
    ):
        with T.Kernel(grid, threads=plan.threads) as first:
            body(x0, x1, x2, y0, first, T.get_thread_binding(0))

    return [step(gemv_stay_linear_add if kind == "linear_add" else gemv_stay_linear)]


def grouped_swiglu(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """A piece is rows of one expert's weight, for up to 16 of the tokens that chose it.

    In a chain of V2-Lite's layers at one token, of 62 us each, these did not pay: two pieces asked for at
    once, in 254 registers (0.4 us more), and the second cache asking for 2 to 6 pieces (1.6 to 9.8 more).
    Weights of shared experts, which every token has, asked for before pdl_sync saved 1.1 us. It is not here:
    alone it saves nothing, so no race would choose it, and the kernel is not told which experts are shared.
    """
    plan, grid = plan_of(kernel, schedule), sm.multiprocessors * int(schedule["v_stay"])
    k, n, half, experts, share = kernel["k"], kernel["n"], plan.width, kernel["experts"], kernel["share"]
    chunks = -(-experts // 32)
    m = T.dynamic("m")
    weights, tokens, _, _ = streams(plan)
    through = onward(plan)

    @T.macro
    def count(x2, starts, ends, before, total, lane):
        """Of a lane's experts: their rows, and how many groups of up to 16 rows come before theirs."""
        mine, other = T.alloc_local((1,), I32), T.alloc_local((1,), I32)
        total[0] = 0
        for c in T.unroll(chunks):
            e = c * 32 + lane
            ends[c] = T.cast(x2[T.min(e, experts - 1)], I32)
            starts[c] = T.Select(e > 0, T.cast(x2[T.max(T.min(e, experts) - 1, 0)], I32), 0)
        for c in T.unroll(chunks):
            mine[0] = T.ceildiv(ends[c] - starts[c], plan.tokens)
            before[c] = total[0] - mine[0]
            for power in T.unroll(5):
                other[0] = T.shfl_up(mine[0], 1 << power)
                if lane >= 1 << power:
                    mine[0] += other[0]
            before[c] += mine[0]
            total[0] += T.shfl_sync(mine[0], 31)

    @T.macro
    def find(found, wanted, starts, ends, before, lane):
        """found: of the wanted group its expert, first row and the expert's end; all 0 past the last."""
        for i in T.unroll(3):
            found[i] = 0
        for c in T.unroll(chunks):
            row = starts[c] + (wanted - before[c]) * plan.tokens
            if wanted >= before[c] and row < ends[c]:
                found[0] = c * 32 + lane
                found[1] = row
                found[2] = ends[c]
        source = T.cast(T.__ffs(T.cast(T.ballot(found[2] > 0), I32)), I32) - 1
        if source >= 0:
            for i in T.unroll(3):
                found[i] = T.shfl_sync(found[i], source)

    @T.macro
    def rows_of(rows, x1, found, lane):
        """The tokens of a lane in the found group."""
        for q in T.unroll(plan.columns):
            row = found[1] + q * 8 + lane // 4
            rows[q] = -1
            if row < found[2]:
                rows[q] = T.cast(x1[row], I32) // share

    @T.prim_func
    def gemv_stay_grouped_swiglu(
        x0: T.Tensor((m, k), BF16),
        x1: T.Tensor((m * share,), I64),
        x2: T.Tensor((experts,), I64),
        x3: T.Tensor((experts * n, k), BF16),
        y0: T.Tensor((m * share, half), BF16),
    ):
        with T.Kernel(grid, threads=plan.threads) as first:
            thread = T.get_thread_binding(0)
            T.annotate_min_blocks_per_sm(plan.fit)
            warp, lane = thread // 32, thread % 32
            sums, ws, xs, a = registers(plan)
            starts, ends = T.alloc_local((chunks,), I32), T.alloc_local((chunks,), I32)
            before, total = T.alloc_local((chunks,), I32), T.alloc_local((1,), I32)
            found, coming = T.alloc_local((3,), I32), T.alloc_local((3,), I32)
            rows, rows_ = T.alloc_local((plan.columns,), I32), T.alloc_local((plan.columns,), I32)
            result = T.alloc_local((1,), F32)
            shared = T.alloc_shared((plan.split, plan.sums * 32), F32)
            T.pdl_sync()
            T.pdl_trigger()
            count(x2, starts, ends, before, total, lane)
            pieces = total[0] * plan.blocks
            find(coming, first // plan.blocks, starts, ends, before, lane)
            for slot in T.unroll(plan.slots):
                weights(
                    *(ws, x3, T.cast(coming[0], I64) * n, first % plan.blocks),
                    *(warp, lane, slot, slot, first < pieces),
                )
            rows_of(rows_, x1, coming, lane)
            for slot in T.unroll(plan.slots):
                tokens(xs, x0, rows_, warp, lane, slot, slot)
            for turn in T.serial(T.ceildiv(T.max(pieces - first, 0), grid)):
                piece = first + turn * grid
                for i in T.unroll(3):
                    found[i] = coming[i]
                for q in T.unroll(plan.columns):
                    rows[q] = rows_[q]
                find(coming, (piece + grid) // plan.blocks, starts, ends, before, lane)
                rows_of(rows_, x1, coming, lane)
                through(
                    *(sums, ws, xs, a, x3, x0, warp, lane),
                    *(T.cast(found[0], I64) * n, piece % plan.blocks, rows),
                    *(T.cast(coming[0], I64) * n, (piece + grid) % plan.blocks, rows_, piece + grid < pieces),
                )
                share_sums(shared, sums, warp, lane, plan.sums)
                for part in T.unroll(plan.turns):
                    e = part * plan.threads + thread
                    at, column, token = plan.place(e)
                    column = piece % plan.blocks * plan.block + column
                    if e < plan.results and column < half and found[1] + token < found[2]:
                        finished(result, shared, at, plan.split, True)
                        y0[found[1] + token, column] = T.cast(result[0], BF16)
                T.sync_threads()

    return [step(gemv_stay_grouped_swiglu)]
