"""Products for few tokens (see gemv_stream.py); of these here linear, linear_add and linear_swiglu.

Weights are asked for before pdl_sync where their place does not depend on what the step before writes. All
functions trigger the next one behind their own pdl_sync: when a function starts, everything but the step
right before it is done.
"""

from collections.abc import Mapping, Sequence

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Builder, Step
from ..sm import Sm
from . import gemv_stay
from .gemv_combine import grouped_combine
from .gemv_stream import BF16, F32, I32, VECTOR, finished, plan_of, registers, share_sums, step, streams
from .plain import PLAIN


def linear(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """linear, linear_add and linear_swiglu."""
    return (gemv_stay.linear if schedule["v_stay"] else once)(kernel, schedule, sm)


def once(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """A block takes rows of the weight and up to 16 tokens."""
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
        ("grouped_swiglu", gemv_stay.grouped_swiglu),
        ("grouped_combine", grouped_combine),
    )
}
