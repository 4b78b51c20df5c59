"""Products for few tokens: linear, linear_add, linear_swiglu and grouped_swiglu (see gemv_stream.py).

Weights are asked for before pdl_sync where their place does not depend on what the step before writes. All
functions trigger the next one behind their own pdl_sync: when a function starts, everything but the step
right before it is done.
"""

from collections.abc import Mapping, Sequence

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Builder, Step
from ..sm import Sm
from .gemv_combine import grouped_combine
from .gemv_stream import (
    BF16,
    F32,
    I32,
    I64,
    U32,
    VECTOR,
    below,
    finished,
    plan_of,
    registers,
    share_sums,
    step,
    streams,
)
from .plain import PLAIN


def linear(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """linear, linear_add and linear_swiglu: a block takes rows of the weight and up to 16 tokens."""
    plan = plan_of(kernel, schedule)
    k, n, width, kind = kernel["k"], kernel["n"], plan.width, kernel.kind
    dtype = F32 if kernel["wide"] else BF16
    m = T.dynamic("m")
    weights, _, _, through = streams(plan)

    @T.macro
    def body(x0, x1, x2, y0, block, first, thread):
        T.annotate_min_blocks_per_sm(plan.fit)
        warp, lane = thread // 32, thread % 32
        sums, ws, xs, a = registers(plan)
        rows = T.alloc_local((plan.columns,), I32)
        result, base = T.alloc_local((1,), F32), T.alloc_local((plan.turns,), F32)
        shared = T.alloc_shared((plan.split, plan.sums * 32), F32)
        T.clear(sums)
        for slot in T.unroll(plan.slots):
            weights(ws, x1, 0, block, warp, lane, slot, slot, True)
        for q in T.unroll(plan.columns):
            rows[q] = T.if_then_else(first + q * 8 + lane // 4 < m, first + q * 8 + lane // 4, -1)
        T.pdl_sync()
        T.pdl_trigger()
        for turn in T.unroll(plan.turns):
            _, column, token = plan.place(turn * plan.threads + thread)
            base[turn] = 0.0
            if x2 is not None:
                if block * plan.block + column < width and first + token < m:
                    base[turn] = T.cast(x2[first + token, block * plan.block + column], F32)
        through(sums, ws, xs, a, x1, 0, x0, rows, block, warp, lane)
        share_sums(shared, sums, warp, lane, plan.sums)
        for turn in T.unroll(plan.turns):
            e = turn * plan.threads + thread
            at, column, token = plan.place(e)
            if e < plan.results and block * plan.block + column < width and first + token < m:
                finished(result, shared, at, plan.split, plan.paired)
                y0[first + token, block * plan.block + column] = T.cast(result[0] + base[turn], dtype)

    @T.prim_func
    def gemv_linear(x0: T.Tensor((m, k), BF16), x1: T.Tensor((n, k), BF16), y0: T.Tensor((m, width), dtype)):
        with T.Kernel(plan.blocks, T.ceildiv(m, plan.tokens), threads=plan.threads) as (block, part):
            body(x0, x1, None, y0, block, part * plan.tokens, T.get_thread_binding(0))

    @T.prim_func
    def gemv_linear_add(
        x0: T.Tensor((m, k), BF16),
        x1: T.Tensor((n, k), BF16),
        x2: T.Tensor((m, n), BF16),
        y0: T.Tensor((m, width), dtype),
    ):
        with T.Kernel(plan.blocks, T.ceildiv(m, plan.tokens), threads=plan.threads) as (block, part):
            body(x0, x1, x2, y0, block, part * plan.tokens, T.get_thread_binding(0))

    return [step(gemv_linear_add if kind == "linear_add" else gemv_linear)]


def grouped_swiglu(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """A block takes rows of one expert that has tokens, and all of these; those past the last end at once."""
    plan = plan_of(kernel, schedule)
    k, n, half, experts, share = kernel["k"], kernel["n"], plan.width, kernel["experts"], kernel["share"]
    chunks = -(-experts // 32)
    m = T.dynamic("m")
    weights, _, _, through = streams(plan)

    @T.macro
    def find(x2, wanted, lane, found):
        """found: the expert that is the wanted one of those with rows, or -1, its first row and its end."""
        starts, ends = T.alloc_local((chunks,), I32), T.alloc_local((chunks,), I32)
        before = T.alloc_local((1,), I32)
        for c in T.unroll(chunks):
            e = T.min(c * 32 + lane, experts - 1)
            ends[c] = T.cast(x2[e], I32)
            starts[c] = T.cast(x2[T.max(e - 1, 0)], I32)
            if e == 0:
                starts[c] = 0
        before[0] = 0
        found[0] = -1
        found[1] = 0
        found[2] = 0
        for c in T.unroll(chunks):
            present = T.And(c * 32 + lane < experts, ends[c] > starts[c])
            mask = T.cast(T.ballot(present), U32)
            rank = before[0] + T.cast(T.popcount(mask & below(lane)), I32)
            if present and rank == wanted:
                found[0] = c * 32 + lane
                found[1] = starts[c]
                found[2] = ends[c]
            before[0] += T.cast(T.popcount(mask), I32)
        whose = T.cast(T.ballot(found[0] >= 0), U32)
        source = T.cast(T.__ffs(T.cast(whose, I32)), I32) - 1
        if whose != T.uint32(0):
            for i in T.unroll(3):
                found[i] = T.shfl_sync(found[i], source)

    @T.prim_func
    def gemv_grouped_swiglu(
        x0: T.Tensor((m, k), BF16),
        x1: T.Tensor((m * share,), I64),
        x2: T.Tensor((experts,), I64),
        x3: T.Tensor((experts * n, k), BF16),
        y0: T.Tensor((m * share, half), BF16),
    ):
        with T.Kernel(plan.blocks, T.min(experts, m * share), threads=plan.threads) as (block, wanted):
            thread = T.get_thread_binding(0)
            T.annotate_min_blocks_per_sm(plan.fit)
            warp, lane = thread // 32, thread % 32
            sums, ws, xs, a = registers(plan)
            rows, found = T.alloc_local((plan.columns,), I32), T.alloc_local((3,), I32)
            result = T.alloc_local((1,), F32)
            shared = T.alloc_shared((plan.split, plan.sums * 32), F32)
            T.pdl_sync()
            T.pdl_trigger()
            find(x2, wanted, lane, found)
            if found[0] >= 0:
                for turn in T.serial(T.ceildiv(found[2] - found[1], plan.tokens)):
                    first = found[1] + turn * plan.tokens
                    for slot in T.unroll(plan.slots):
                        weights(ws, x3, T.cast(found[0], I64) * n, block, warp, lane, slot, slot, True)
                    for q in T.unroll(plan.columns):
                        row = first + q * 8 + lane // 4
                        rows[q] = -1
                        if row < found[2]:
                            rows[q] = T.cast(x1[row], I32) // share
                    T.clear(sums)
                    through(sums, ws, xs, a, x3, T.cast(found[0], I64) * n, x0, rows, block, warp, lane)
                    share_sums(shared, sums, warp, lane, plan.sums)
                    for part in T.unroll(plan.turns):
                        e = part * plan.threads + thread
                        at, column, token = plan.place(e)
                        if (
                            e < plan.results
                            and block * plan.block + column < half
                            and first + token < found[2]
                        ):
                            finished(result, shared, at, plan.split, True)
                            y0[first + token, block * plan.block + column] = T.cast(result[0], BF16)
                    T.sync_threads()

    return [step(gemv_grouped_swiglu)]


def fitting(builder: Builder, kind: str) -> Builder:
    """The builder, but one number at a time where rows are no whole 16 bytes."""

    def build(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
        return (PLAIN[kind] if kernel["k"] % VECTOR else builder)(kernel, schedule, sm)

    return build


BUILDERS: Mapping[str, Builder] = {
    kind: fitting(builder, kind)
    for kind, builder in (
        ("linear", linear),
        ("linear_add", linear),
        ("linear_swiglu", linear),
        ("grouped_swiglu", grouped_swiglu),
        ("grouped_combine", grouped_combine),
    )
}
