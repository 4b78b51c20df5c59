"""Products of e4m3 with e4m3: weights in blocks of 128 x 128 and tokens in groups of 128 have a scale each.

First a step rounds activations, in the order of experts where there are some. Then a block is a loop over
output tiles as in gemm.py: a warp loads a ring of stages, 128 of k each, which wgmma multiplies and sums;
those sums join others in f32 by their scales. Weights are wgmma's left operand (64 rows at once), tokens its
right one, so that few tokens need few columns. A ring's weights are asked for before the step in front ends.
"""

# Annotations are read when a function is made, so they cannot be strings here.
from collections.abc import Mapping, Sequence
from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..fp8_tiles import inline, tiles_of
from ..program import Builder, Step
from ..sm import Sm
from . import fp8_codes
from .fp8_body import make
from .fp8_sums import combine_sum, split_sum

BF16, F32, I64, E4M3 = T.bfloat16, T.float32, T.int64, T.float8_e4m3fn
# Barriers and fences are placed by hand, as are the bounds of every access.
CONFIG = {"tl.disable_thread_storage_sync": True, "tl.disable_safe_memory_legalize": True}


def linear(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """linear, linear_add, linear_swiglu: x0 [m, k], x1 w [n, k], x2 its scales, (x3 residual) -> y0."""
    t = tiles_of(kernel, schedule, sm)
    body, m, k, n = make(t, False), T.dynamic("m"), kernel["k"], kernel["n"]
    x, xs = T.Tensor((m, k), E4M3), fp8_codes.scales(k, m)
    w, ws = T.Tensor((n, k), E4M3), T.Tensor((fp8_codes.groups(n), fp8_codes.groups(k)), F32)
    codes = fp8_codes.plain(k, m)
    if t.split > 1:

        @T.prim_func
        def fp8_parts(s0: x, s1: xs, x1: w, x2: ws, s2: T.Tensor((t.split, m, n), F32)):
            body(s0, s1, s0, s0, x1, x2, s0, s2, m)

        return steps(codes, fp8_parts, split_sum(kernel, t))
    y = T.Tensor((m, t.width), F32 if t.plain else BF16)
    if t.residual:

        @T.prim_func
        def fp8_linear_add(s0: x, s1: xs, x1: w, x2: ws, x3: T.Tensor((m, n), BF16), y0: y):
            body(s0, s1, s0, s0, x1, x2, x3, y0, m)

        return steps(codes, fp8_linear_add)

    @T.prim_func
    def fp8_linear(s0: x, s1: xs, x1: w, x2: ws, y0: y):
        body(s0, s1, s0, s0, x1, x2, s0, y0, m)

    return steps(codes, fp8_linear)


def grouped_swiglu(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """y0 [m*share, n/2]: row r is SwiGLU of row order[r]//share of x0 by its expert's weight."""
    t = tiles_of(kernel, schedule, sm)
    whole = inline(schedule)
    body, m, k, n = make(t, whole), T.dynamic("m"), kernel["k"], kernel["n"]
    rows = m * t.share
    x, xs = T.Tensor((rows, k), E4M3), fp8_codes.scales(k, rows)
    w, ws = weights(t.experts, n, k)
    ends, y = T.Tensor((t.experts,), I64), T.Tensor((rows, t.width), BF16)
    if whole:

        @T.prim_func
        def fp8_grouped_swiglu_whole(
            x0: T.Tensor((m, k), BF16), x1: T.Tensor((rows,), I64), x2: ends, x3: w, x4: ws, y0: y
        ):
            body(x0, x0, x1, x2, x3, x4, x0, y0, m)

        return steps(fp8_grouped_swiglu_whole)

    @T.prim_func
    def fp8_grouped_swiglu(s0: x, s1: xs, x2: ends, x3: w, x4: ws, y0: y):
        body(s0, s1, s0, x2, x3, x4, s0, y0, m)

    return steps(fp8_codes.sorted_rows(k, m, t.share), fp8_grouped_swiglu)


def grouped_combine(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """Products in the order of tokens to scratch, then each token's weighted sum (in a fixed order)."""
    t = tiles_of(kernel, schedule, sm)
    whole = inline(schedule)
    body, m, k, n = make(t, whole), T.dynamic("m"), kernel["k"], kernel["n"]
    rows = m * t.share
    x, xs = T.Tensor((rows, k), E4M3), fp8_codes.scales(k, rows)
    w, ws = weights(t.experts, n, k)
    order, ends = T.Tensor((rows,), I64), T.Tensor((t.experts,), I64)
    products = T.Tensor((rows, n), BF16)
    if whole:

        @T.prim_func
        def fp8_grouped_rows_whole(
            x0: T.Tensor((rows, k), BF16), x1: order, x2: ends, x3: w, x4: ws, s2: products
        ):
            body(x0, x0, x1, x2, x3, x4, x0, s2, m)

        return steps(fp8_grouped_rows_whole, combine_sum(kernel))

    @T.prim_func
    def fp8_grouped_rows(s0: x, s1: xs, x1: order, x2: ends, x3: w, x4: ws, s2: products):
        body(s0, s1, x1, x2, x3, x4, s0, s2, m)

    return steps(fp8_codes.plain(k, rows), fp8_grouped_rows, combine_sum(kernel))


def weights(experts: int, n: int, k: int) -> tuple[Any, Any]:
    """Codes of all experts' weights, and their scales."""
    return T.Tensor((experts, n, k), E4M3), T.Tensor((experts, fp8_codes.groups(n), fp8_codes.groups(k)), F32)


def steps(*functions: Any) -> list[Step]:
    """Every function here waits for what comes before it, so all may start early."""
    return [Step(each.with_attr("tilelang_pass_configs", CONFIG), overlap=True) for each in functions]


BUILDERS: Mapping[str, Builder] = {
    **dict.fromkeys(("linear fp8", "linear_add fp8", "linear_swiglu fp8"), linear),
    "grouped_swiglu fp8": grouped_swiglu,
    "grouped_combine fp8": grouped_combine,
}
