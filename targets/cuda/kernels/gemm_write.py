"""How a warpgroup writes its part of a tile: from registers, or through shared memory."""

from typing import Any

import tilelang.language as T

from ..gemm_tiles import STAGED, Tiles

BF16, F32, I32 = T.bfloat16, T.float32, T.int32
LANES = 8  # numbers that a thread stores at once: 16 bytes


def lines(t: Tiles) -> int:
    """Rows of y that one warpgroup writes."""
    return t.rows if t.swap else 64


def staged(t: Tiles) -> tuple[int, int, int]:
    """The shared memory that tiles go out through, padded so that rows lie in different banks."""
    return t.groups, lines(t), STAGED + LANES


def writers(t: Tiles) -> tuple[Any, Any]:
    """The macros write_plain (f32) and write_staged (bf16)."""
    frame = (64, t.rows) if t.swap else (64, t.cols)
    whole = t.width % t.cols == 0  # no tile has columns to leave out

    @T.macro
    def write_plain(sums, y, at, g, extra, offset):
        # Straight from registers: f32 rows, whole sectors of 32 bytes.
        for i, j in T.Parallel(*frame):
            row = at[1] + (j if t.swap else g * 64 + i)
            col = at[3] * t.cols + (g * 64 + i if t.swap else j)
            if row < at[2] and (whole or col // 2 * 2 < t.width):
                if t.split > 1:
                    y[at[4], row, offset + col] = sums[i, j]
                elif t.residual:
                    y[row, col] = sums[i, j] + T.cast(extra[row, col], F32)
                else:
                    y[row, col] = sums[i, j]

    @T.macro
    def write_staged(sums, y, C, g, row0, col0, end, extra, order, lane):
        # Through shared memory, so that y's rows are written 16 bytes at once.
        if t.residual:
            for i, j in T.Parallel(*frame):
                row = row0 + (j if t.swap else i)
                col = col0 + (i if t.swap else j)
                if row < end and (whole or col < t.width):
                    sums[i, j] += T.cast(extra[row, col], F32)
        for part in T.unroll(1 if t.swap else t.cols // STAGED, explicit=True):
            T.sync_threads(g + 1, 128)
            for i, j in T.Parallel(64, t.rows if t.swap else STAGED):
                if t.swap:
                    C[g, j, i] = T.cast(sums[i, j], BF16)
                else:
                    C[g, i, j] = T.cast(sums[i, part * STAGED + j], BF16)
            T.sync_threads(g + 1, 128)
            for u in T.unroll(lines(t) * STAGED // (128 * LANES)):
                row = row0 + (u * 128 + lane) // (STAGED // LANES)
                at_c = (u * 128 + lane) % (STAGED // LANES) * LANES
                col = col0 + part * STAGED + at_c
                if row < end and (whole or col < t.width):
                    if t.scatter:
                        T.stg128(y[T.cast(order[row], I32), col], T.lds128(C[g, row - row0, at_c]))
                    else:
                        T.stg128(y[row, col], T.lds128(C[g, row - row0, at_c]))

    return write_plain, write_staged
