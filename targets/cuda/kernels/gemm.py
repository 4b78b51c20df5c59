"""Matrix products for many rows: tiles of weights come by TMA, wgmma multiplies them, f32 sums.

A block is a loop over output tiles: its last warpgroup only loads (a ring of `stages` tiles in shared memory,
running ahead over the borders of tiles), the others only multiply and write. A tile is `rows` of x by `cols`
of each weight part; a SwiGLU has two parts, gate and up, whose tiles lie n/2 rows of the weight apart.
With swap the weight is wgmma's left operand (64 rows at once) and x its right one, of 16 or more.
"""

# Annotations are read when a function is made, so they cannot be strings here.
from collections.abc import Mapping, Sequence
from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..gemm_tiles import tiles_of
from ..program import Builder, Step
from ..sm import Sm
from .gemm_body import make
from .sums import combine_sum, split_sum

BF16, F32, I32, I64 = T.bfloat16, T.float32, T.int32, T.int64
# Barriers and fences are placed by hand, as are the bounds of every access.
CONFIG = {"tl.disable_thread_storage_sync": True, "tl.disable_safe_memory_legalize": True}


def dense(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """linear, linear_add, linear_swiglu: x0 [m,k], x1 w [n,k], (x2 residual [m,n]) -> y0 [m, width]."""
    t = tiles_of(kernel, schedule, sm)
    body, m, n = make(t), T.dynamic("m"), kernel["n"]
    out = F32 if t.plain else BF16
    if t.split > 1:

        @T.prim_func
        def linear_parts(
            x0: T.Tensor((m, t.k), BF16), x1: T.Tensor((n, t.k), BF16), s0: T.Tensor((t.split, m, n), F32)
        ):
            body(x0, x0, x0, x1, x0, s0, None, m)

        return [step(linear_parts), step(split_sum(kernel, t))]
    if t.residual:

        @T.prim_func
        def linear_add(
            x0: T.Tensor((m, t.k), BF16),
            x1: T.Tensor((n, t.k), BF16),
            x2: T.Tensor((m, n), BF16),
            y0: T.Tensor((m, n), out),
        ):
            body(x0, x0, x0, x1, x2, y0, None, m)

        return [step(linear_add)]

    @T.prim_func
    def linear(x0: T.Tensor((m, t.k), BF16), x1: T.Tensor((n, t.k), BF16), y0: T.Tensor((m, t.width), out)):
        body(x0, x0, x0, x1, x0, y0, None, m)

    return [step(linear)]


def grouped_swiglu(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """y0 [m*share, n/2]: row r is SwiGLU of row order[r]//share of x0 by its expert's weight."""
    t = tiles_of(kernel, schedule, sm)
    body, m = make(t), T.dynamic("m")
    x = T.Tensor((m, t.k), BF16)
    order = T.Tensor((m * t.share,), I64)
    ends = T.Tensor((t.experts,), I64)
    w = T.Tensor((t.experts, kernel["n"], t.k), BF16)
    y = T.Tensor((m * t.share, t.width), BF16)
    if t.queue:

        @T.prim_func
        def grouped_swiglu_queue(x0: x, x1: order, x2: ends, x3: w, s0: T.Tensor((1,), I32), y0: y):
            body(x0, x1, x2, x3, x0, y0, s0, m)

        return [step(start_queue(0)), step(grouped_swiglu_queue)]

    @T.prim_func
    def grouped_swiglu(x0: x, x1: order, x2: ends, x3: w, y0: y):
        body(x0, x1, x2, x3, x0, y0, None, m)

    return [step(grouped_swiglu)]


def grouped_combine(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """Products in the order of tokens to scratch, then each token's weighted sum (in a fixed order)."""
    t = tiles_of(kernel, schedule, sm)
    body, m = make(t), T.dynamic("m")
    x = T.Tensor((m * t.share, t.k), BF16)
    order = T.Tensor((m * t.share,), I64)
    ends = T.Tensor((t.experts,), I64)
    w = T.Tensor((t.experts, t.width, t.k), BF16)
    products = T.Tensor((m * t.share, t.width), BF16)
    if t.queue:

        @T.prim_func
        def grouped_rows_queue(x0: x, x1: order, x2: ends, x3: w, s0: products, s1: T.Tensor((1,), I32)):
            body(x0, x1, x2, x3, x0, s0, s1, m)

        return [step(start_queue(1)), step(grouped_rows_queue), step(combine_sum(kernel))]

    @T.prim_func
    def grouped_rows(x0: x, x1: order, x2: ends, x3: w, s0: products):
        body(x0, x1, x2, x3, x0, s0, None, m)

    return [step(grouped_rows), step(combine_sum(kernel))]


def start_queue(scratch: int) -> Any:
    """Sets the count of tiles that blocks have taken, s0 or s1 i32 [1], to zero."""

    @T.macro
    def body(count):
        with T.Kernel(1, threads=32) as _:
            T.pdl_sync()
            T.pdl_trigger()
            if T.get_thread_binding() == 0:
                count[0] = 0

    if scratch == 1:

        @T.prim_func
        def start_queue_1(s1: T.Tensor((1,), I32)):
            body(s1)

        return start_queue_1

    @T.prim_func
    def start_queue(s0: T.Tensor((1,), I32)):
        body(s0)

    return start_queue


def step(function: Any) -> Step:
    """Every function here waits for what comes before it, so all may start early."""
    return Step(function.with_attr("tilelang_pass_configs", CONFIG), overlap=True)


BUILDERS: Mapping[str, Builder] = {
    "linear": dense,
    "linear_add": dense,
    "linear_swiglu": dense,
    "grouped_swiglu": grouped_swiglu,
    "grouped_combine": grouped_combine,
}
