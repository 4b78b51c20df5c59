"""Triton functions: products of rows with the weights of their experts.

Rows lie in the order of experts: those of expert e are ends[e-1]..ends[e]. A tile is at most BM rows of one
expert. The table of tiles is i32 [4, slots]: of each its expert, its first row and the end of its expert's
rows, then how many tiles there are. A line is 64 bytes, so that no two cores write into the same.
"""

import triton
import triton.language as tl

from .matmul import gated, product, write

LINE: tl.constexpr = tl.constexpr(16)  # i32
PART: tl.constexpr = tl.constexpr(64)  # experts at once


@triton.jit
def tabulate(ends, table, slots, E: tl.constexpr, BM: tl.constexpr):
    """Writes the table, LINE tiles at a time. Numbers of rows are exact in f32 up to 2**24."""
    near = tl.arange(0, PART)
    earlier = (near[:, None] < near[None, :]).to(tl.float32)
    until = (near[:, None] <= near[None, :]).to(tl.float32)
    for start in range(tl.program_id(0) * LINE, slots, tl.num_programs(0) * LINE):
        tile = start + tl.arange(0, LINE)
        number = tile.to(tl.float32)
        expert = tl.zeros((LINE,), tl.float32)
        passed = tl.zeros((LINE,), tl.float32)
        first = tl.zeros((LINE,), tl.float32)
        end = tl.full((LINE,), 1 << 24, tl.float32)
        total = 0.0
        last = 0.0
        for e in range(0, E, PART):
            part = e + near
            mine = tl.load(ends + part, mask=part < E, other=1 << 24).to(tl.float32)
            before = tl.maximum(tl.max(earlier * mine[:, None], axis=0), last)
            tiles = tl.where(part < E, (mine - before).to(tl.int32) + (BM - 1), 0) // BM
            upto = total + tl.sum(until * tiles.to(tl.float32)[:, None], axis=0)
            over = upto[:, None] <= number[None, :]
            expert += tl.sum(over.to(tl.float32), axis=0)
            passed = tl.maximum(passed, tl.max(tl.where(over, upto[:, None], 0.0), axis=0))
            first = tl.maximum(first, tl.max(tl.where(over, mine[:, None], 0.0), axis=0))
            end = tl.minimum(end, tl.min(tl.where(over, 1 << 24, mine[:, None]), axis=0))
            total = tl.max(upto, axis=0)
            last = tl.max(mine, axis=0)
        inside = tile < slots
        tl.store(table + tile, expert.to(tl.int32), mask=inside)
        tl.store(table + slots + tile, (first + (number - passed) * BM).to(tl.int32), mask=inside)
        tl.store(table + 2 * slots + tile, end.to(tl.int32), mask=inside)
        tl.store(table + 3 * slots + tile, (tl.zeros((LINE,), tl.float32) + total).to(tl.int32), mask=inside)


@triton.jit
def gather(x, order, own, rows, K: tl.constexpr, SHARE: tl.constexpr, BLOCK: tl.constexpr):
    """Row i of `own` [rows, K] is row order[i] / SHARE of x."""
    for i in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.load(order + i).to(tl.int32) // SHARE
        for start in range(0, K, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            values = tl.load(x + row * K + columns, mask=columns < K)
            tl.store(own + i * K + columns, values, mask=columns < K)


@triton.jit
def products(
    x, w, table, y, slots, K: tl.constexpr, N: tl.constexpr, GATED: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y [rows, N] = rows of x times their experts, or the SwiGLU of it, tile by tile of the table."""
    across: tl.constexpr = (N + BN - 1) // BN
    for item in range(tl.program_id(0), tl.load(table + 3 * slots) * across, tl.num_programs(0)):
        tile = item // across
        expert = tl.load(table + tile).to(tl.int64)
        end = tl.load(table + 2 * slots + tile)
        rows = tl.load(table + slots + tile) + tl.arange(0, BM)
        columns = item % across * BN + tl.arange(0, BN)
        if GATED:
            result = gated(x, w + expert * (2 * N * K), rows, end, columns, K, N, BM, BN, BK)
        else:
            result = product(x, w + expert * (N * K), rows, end, columns, K, N, BM, BN, BK)
        write(y, result, rows, end, columns, N)
