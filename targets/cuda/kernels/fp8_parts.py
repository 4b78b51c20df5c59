"""Parts of a block of a product of e4m3 codes (see fp8_body.py): tokens that it rounds, and results."""

from typing import Any

import tilelang.language as T

from ..fp8_tiles import DEPTH, LANES, staged
from ..gemm_tiles import Tiles
from . import gemm_write
from .fp8_codes import TEAM, encode

BF16, F32, I32, E4M3 = T.bfloat16, T.float32, T.int32, T.float8_e4m3fn


def rounding(t: Tiles) -> Any:
    """The macro that writes a tile's tokens, all of a part of k, to shared memory as codes with scales."""
    first = 128 * t.groups
    gather = t.ragged and t.parts == 2  # x has a row for each token, not for each expert of one

    @T.macro
    def round_rows(x, order, X, XS, at, thread):
        # A team takes 128 numbers of a row. What lies behind the tile's last row stays, and spoils no other.
        code = T.alloc_local((LANES,), E4M3)
        factor = T.alloc_local((1,), F32)
        row = T.alloc_var(I32)
        step = T.alloc_var(I32)
        source = T.alloc_var(I32)
        count = T.min(t.chunks, t.steps - at[4] * t.chunks)
        units = T.min(t.rows, at[2] - at[1]) * count
        for turn in T.serial(T.ceildiv(units, first // TEAM)):
            step = T.min(turn * (first // TEAM) + thread // TEAM, units - 1)
            row = T.truncdiv(step, count)
            step = step - row * count
            source = at[1] + row
            if gather:
                source = T.cast(order[at[1] + row], I32) // t.share
            encode(x, t.k, source, (at[4] * t.chunks + step) * DEPTH + thread % TEAM * LANES, code, factor)
            if thread % TEAM == 0:
                XS[step, 0, row] = factor[0]
            for v in T.vectorized(LANES):
                X[step, row, thread % TEAM * LANES + v] = code[v]

    return round_rows


def writing(t: Tiles) -> Any:
    """The macro that writes what a warpgroup summed of a tile: y bf16, or f32 where it is wide or split."""
    frame, out = (64, t.rows), F32 if t.plain else BF16
    whole = t.width % t.cols == 0
    _, write_staged = gemm_write.writers(t)

    @T.macro
    def write(sums, y, C, g, at, offset, extra, order, lane):
        if staged(t):
            col0 = at[3] * t.cols + g * 64
            write_staged(sums, y, C, g, at[1], col0, at[2], extra, order, lane % 128)
        else:
            for i, j in T.Parallel(*frame):
                row = at[1] + j
                col = at[3] * t.cols + g * 64 + i
                if row < at[2] and (whole or col < t.width):
                    if t.split > 1:
                        y[at[4], row, offset + col] = sums[i, j]
                    elif t.residual:
                        y[row, col] = T.cast(sums[i, j] + T.cast(extra[row, col], F32), out)
                    elif t.scatter:
                        y[T.cast(order[row], I32), col] = T.cast(sums[i, j], out)
                    else:
                        y[row, col] = T.cast(sums[i, j], out)

    return write
