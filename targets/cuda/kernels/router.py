"""The router's product x w^T in f32, [parts, m, experts]: by rows of w for few tokens, by tiles for many.

Tiles share k among `parts` blocks whose sums lie side by side: nothing has to be zero before; the gate adds.
"""

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Step
from ..widths import LANES, TILE_K, TILE_M, widest


def parts_of(kernel: Kernel, schedule: Schedule) -> int:
    """Of how many sums a logit is the total."""
    return int(schedule["parts"]) if tiled(kernel, schedule) else 1


def tiled(kernel: Kernel, schedule: Schedule) -> bool:
    """Whether by tiles: where the schedule says so and rows lie as the copy engine needs them."""
    return schedule["product"] == "tiles" and kernel["k"] % 8 == 0 and kernel["n"] % 8 == 0


def product(kernel: Kernel, schedule: Schedule) -> Step:
    """s0 from x0 and x1."""
    return by_tiles(kernel, schedule) if tiled(kernel, schedule) else by_rows(kernel, schedule)


def by_rows(kernel: Kernel, schedule: Schedule) -> Step:
    """A block holds the weights of `columns` experts in registers, read before what precedes is done, and
    multiplies `rows` tokens.
    """
    k, n, threads = kernel["k"], kernel["n"], int(schedule["threads"])
    columns, rows = int(schedule["columns"]), int(schedule["rows"])
    vector, warps = widest(k), threads // LANES
    held = -(-k // (threads * vector))
    m = T.dynamic("m")

    @T.prim_func
    def router_rows(
        x0: T.Tensor((m, k), "bfloat16"), x1: T.Tensor((n, k), "bfloat16"), s0: T.Tensor((1, m, n), "float32")
    ):
        with T.Kernel(T.ceildiv(n, columns), T.ceildiv(m, rows), threads=threads) as (tile, part):
            t = T.get_thread_binding(0)
            w = T.alloc_local((columns, held, vector), "bfloat16")
            x = T.alloc_local((rows, vector), "bfloat16")
            sums = T.alloc_local((columns, rows), "float32")
            totals = T.alloc_shared((columns * rows, warps), "float32")
            total = T.alloc_var("float32")
            for c in T.unroll(columns):
                for h in T.unroll(held):
                    if tile * columns + c < n and (h * threads + t) * vector < k:
                        for v in T.vectorized(vector):
                            w[c, h, v] = x1[tile * columns + c, (h * threads + t) * vector + v]
                    else:
                        for v in T.vectorized(vector):
                            w[c, h, v] = T.bfloat16(0)
            for c in T.unroll(columns):
                for r in T.unroll(rows):
                    sums[c, r] = 0.0
            T.pdl_trigger()
            T.pdl_sync()
            for h in T.unroll(held):
                for r in T.unroll(rows):
                    if part * rows + r < m and (h * threads + t) * vector < k:
                        for v in T.vectorized(vector):
                            x[r, v] = x0[part * rows + r, (h * threads + t) * vector + v]
                    else:
                        for v in T.vectorized(vector):
                            x[r, v] = T.bfloat16(0)
                for r in T.unroll(rows):
                    for c in T.unroll(columns):
                        for v in T.unroll(vector):
                            sums[c, r] += T.cast(w[c, h, v], "float32") * T.cast(x[r, v], "float32")
            for c in T.unroll(columns):
                for r in T.unroll(rows):
                    sums[c, r] = T.warp_reduce_sum(sums[c, r])
                    if t % LANES == 0:
                        totals[c * rows + r, t // LANES] = sums[c, r]
            T.sync_threads()
            if t < columns * rows:
                if tile * columns + t // rows < n and part * rows + t % rows < m:
                    total = 0.0
                    for i in T.unroll(warps):
                        total += totals[t, i]
                    s0[0, part * rows + t % rows, tile * columns + t // rows] = total

    return Step(router_rows, overlap=True)


def by_tiles(kernel: Kernel, schedule: Schedule) -> Step:
    """Tiles of TILE_M tokens and `columns` experts; what lies outside x and w comes as zeros."""
    k, n, columns = kernel["k"], kernel["n"], int(schedule["width"])
    parts, stages = int(schedule["parts"]), int(schedule["stages"])
    steps = -(-k // (TILE_K * parts))
    m = T.dynamic("m")

    @T.prim_func
    def router_tiles(
        x0: T.Tensor((m, k), "bfloat16"),
        x1: T.Tensor((n, k), "bfloat16"),
        s0: T.Tensor((parts, m, n), "float32"),
    ):
        with T.Kernel(T.ceildiv(n, columns), T.ceildiv(m, TILE_M), parts, threads=128) as (right, down, part):
            x = T.alloc_shared((TILE_M, TILE_K), "bfloat16")
            w = T.alloc_shared((columns, TILE_K), "bfloat16")
            sums = T.alloc_fragment((TILE_M, columns), "float32")
            T.clear(sums)
            T.pdl_trigger()
            T.pdl_sync()
            for i in T.Pipelined(steps, num_stages=stages):
                T.copy(x0[down * TILE_M, (part * steps + i) * TILE_K], x)
                T.copy(x1[right * columns, (part * steps + i) * TILE_K], w)
                T.gemm(x, w, sums, transpose_B=True)
            T.copy(sums, s0[part, down * TILE_M, right * columns])

    return Step(router_tiles, overlap=True)
