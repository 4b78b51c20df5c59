"""What goes row by row: embedding, the angles of positions, RMSNorm.

All use the widest loads that sizes allow, and begin before what precedes them is done: weights are read
first, everything else behind pdl_sync.
"""

from collections.abc import Callable, Mapping, Sequence

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Step
from ..sm import Sm
from ..widths import LANES, norm_vector, widest
from . import sample

ANGLE_TOKENS = 32  # tokens of a sequence whose angles one block makes


def embedding(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """Rows of the table, a block each. An id outside the table reads the row nearest to it."""
    rows, n, threads = kernel["v"], kernel["n"], int(schedule["threads"])
    vector = widest(n)
    parts = -(-n // (threads * vector))
    m = T.dynamic("m")

    @T.prim_func
    def embedding_kernel(
        x0: T.Tensor((m,), "int64"), x1: T.Tensor((rows, n), "bfloat16"), y0: T.Tensor((m, n), "bfloat16")
    ):
        with T.Kernel(m, threads=threads) as row:
            t = T.get_thread_binding(0)
            copied = T.alloc_local((vector,), "bfloat16")
            T.pdl_trigger()
            T.pdl_sync()
            at = T.max(T.min(x0[row], T.int64(rows - 1)), T.int64(0))
            for p in T.unroll(parts):
                if (p * threads + t) * vector < n:
                    for v in T.vectorized(vector):
                        copied[v] = x1[at, (p * threads + t) * vector + v]
                    for v in T.vectorized(vector):
                        y0[row, (p * threads + t) * vector + v] = copied[v]

    return [Step(embedding_kernel, overlap=True)]


def angles(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """cos and sin of each new token's position, and where the real tokens of each sequence are.

    The mask is 0..0 1..1 0..0, so its ones are found in two looks: at one column in `stride`, then at those
    around the first and the last 1 seen. Where no column looked at is 1, the second look is at all. Positions
    count from the first real token; cosf and sinf are exact to 2 units in the last place for any f32.
    """
    f, threads = kernel["f"], int(schedule["threads"])
    warps = threads // LANES
    batch, tokens, seen = (T.dynamic(name) for name in ("batch", "tokens", "seen"))

    @T.macro
    def over_block(found, lows, highs, t):
        """found: the smallest and the largest of the block's; lows and highs hold those of its warps."""
        found[0] = T.warp_reduce_min(found[0])
        found[1] = T.warp_reduce_max(found[1])
        if t % LANES == 0:
            lows[t // LANES] = found[0]
            highs[t // LANES] = found[1]
        T.sync_threads()
        for i in T.unroll(warps):
            found[0] = T.min(found[0], lows[i])
            found[1] = T.max(found[1], highs[i])

    @T.macro
    def look(mask, b, column, found):
        """found, with this column where it is 1."""
        if mask[b, column] != 0:
            found[0] = T.min(found[0], column)
            found[1] = T.max(found[1], column)

    @T.prim_func
    def angles_kernel(
        x0: T.Tensor((batch, seen), "int64"),
        x2: T.Tensor((f,), "float32"),
        y0: T.Tensor((batch, tokens, f), "float32"),
        y1: T.Tensor((batch, tokens, f), "float32"),
        y2: T.Tensor((batch, 2), "int64"),
    ):
        with T.Kernel(T.ceildiv(tokens, ANGLE_TOKENS), batch, threads=threads) as (part, b):
            t = T.get_thread_binding(0)
            lows = T.alloc_shared((warps,), "int32")
            highs = T.alloc_shared((warps,), "int32")
            found = T.alloc_local((2,), "int32")
            place = T.alloc_var("int32")
            T.pdl_trigger()
            T.pdl_sync()
            stride = T.ceildiv(seen, threads)
            found[0] = seen
            found[1] = -1
            if t * stride < seen:
                look(x0, b, t * stride, found)
            over_block(found, lows, highs, t)
            # The ones begin within the stride before the first found and end within that behind the last.
            none = found[1] < 0
            start = T.if_then_else(none, 0, T.max(found[0] - stride, 0))
            stop = T.if_then_else(none, seen, found[0])
            last = found[1]
            for i in T.serial(T.ceildiv(stop - start, threads)):
                place = start + i * threads + t
                if place < stop:
                    look(x0, b, place, found)
            for i in T.serial(T.if_then_else(none, 0, T.ceildiv(stride, threads))):
                place = last + i * threads + t
                if i * threads + t < stride and place < seen:
                    look(x0, b, place, found)
            T.sync_threads()
            over_block(found, lows, highs, t)
            # Nothing real: the new tokens take the first rows, and none is looked at.
            end = T.if_then_else(found[1] < 0, tokens, found[1] + 1)
            first = T.min(found[0], end)
            if part == 0 and t == 0:
                y2[b, 0] = first
                y2[b, 1] = end
            for i in T.serial(T.ceildiv(ANGLE_TOKENS * f, threads)):
                token = part * ANGLE_TOKENS + (i * threads + t) // f
                if i * threads + t < ANGLE_TOKENS * f and token < tokens:
                    turn = (
                        T.cast(T.max(end - tokens + token - first, 0), "float32") * x2[(i * threads + t) % f]
                    )
                    y0[b, token, (i * threads + t) % f] = T.cos(turn)
                    y1[b, token, (i * threads + t) % f] = T.sin(turn)

    return [Step(angles_kernel, overlap=True)]


def rms_norm(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """Columns start..start+n of each row, by a warp where they are few, by a block where not.

    last_norm: of the last row alone of each sequence.
    """
    n, width, start = kernel["n"], kernel["width"], kernel["start"]
    vector, threads = norm_vector(kernel), int(schedule["threads"])
    team = LANES if n <= 2 * LANES * vector else threads  # threads of a row
    rows, warps, parts = threads // team, threads // LANES, -(-n // (team * vector))
    m = T.dynamic("m")
    tokens = T.dynamic("tokens") if kernel.kind == "last_norm" else 1  # rows of which one is read

    @T.prim_func
    def rms_norm_kernel(
        x0: T.Tensor((m, tokens, width), "bfloat16"),
        x1: T.Tensor((n,), "float32"),
        y0: T.Tensor((m, n), "bfloat16"),
        eps: T.float32,
    ):
        with T.Kernel(T.ceildiv(m, rows), threads=threads) as block:
            t = T.get_thread_binding(0) % team
            row = block * rows + T.get_thread_binding(0) // team
            x = T.alloc_local((parts, vector), "bfloat16")
            w = T.alloc_local((parts, vector), "float32")
            y = T.alloc_local((vector,), "bfloat16")
            total = T.alloc_var("float32", init=0.0)
            for p in T.unroll(parts):
                if (p * team + t) * vector < n:
                    for v in T.vectorized(vector):
                        w[p, v] = x1[(p * team + t) * vector + v]
            T.pdl_trigger()
            T.pdl_sync()
            for p in T.unroll(parts):
                if row < m and (p * team + t) * vector < n:
                    for v in T.vectorized(vector):
                        x[p, v] = x0[row, tokens - 1, start + (p * team + t) * vector + v]
            for p in T.unroll(parts):
                if row < m and (p * team + t) * vector < n:
                    for v in T.unroll(vector):
                        total += T.cast(x[p, v], "float32") * T.cast(x[p, v], "float32")
            total = T.warp_reduce_sum(total)
            if team > LANES:
                sums = T.alloc_shared((warps,), "float32")
                if t % LANES == 0:
                    sums[t // LANES] = total
                T.sync_threads()
                total = 0.0
                for i in T.unroll(warps):
                    total += sums[i]
            total = T.rsqrt(total / n + eps)
            for p in T.unroll(parts):
                if row < m and (p * team + t) * vector < n:
                    for v in T.unroll(vector):
                        y[v] = T.cast(T.cast(x[p, v], "float32") * total * w[p, v], "bfloat16")
                    for v in T.vectorized(vector):
                        y0[row, (p * team + t) * vector + v] = y[v]

    return [Step(rms_norm_kernel, overlap=True)]


BUILDERS: Mapping[str, Callable[[Kernel, Schedule, Sm], Sequence[Step]]] = {
    "embedding": embedding,
    "angles": angles,
    "rms_norm": rms_norm,
    "last_norm": rms_norm,
    "choose_token": sample.choose_token,
}
