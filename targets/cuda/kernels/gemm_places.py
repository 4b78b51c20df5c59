"""Which tile of a product a block computes next: the order of tiles, and whose rows they are."""

from typing import Any

import tilelang.language as T

from ..gemm_tiles import BAND, Tiles

I32 = T.int32


def most_units(t: Tiles, m: Any) -> Any:
    """Tiles for m tokens, times parts of k; of a ragged product no fewer than there are."""
    return (m * t.share if t.ragged else T.ceildiv(m, t.rows)) * t.across * t.split


def places(t: Tiles) -> tuple[Any, Any]:
    """The macros count_tiles (of each expert, to shared memory; once, by all threads) and find (a tile)."""
    bits = max(t.experts - 1, 1).bit_length()
    each = -(-t.experts // 32)

    @T.macro
    def count_tiles(ends, bounds, firsts, tx):
        # bounds[e]: first row of expert e; firsts[e]: its first tile of rows.
        if tx < 32:
            stop = T.alloc_local((each + 1,), I32)
            below = T.alloc_var(I32, init=0)
            got = T.alloc_var(I32, init=0)
            mine = T.alloc_var(I32, init=0)
            for i in T.unroll(each + 1):
                stop[i] = 0
                if tx * each + i > 0:
                    stop[i] = T.cast(ends[T.min(tx * each + i, t.experts) - 1], I32)
            for i in T.unroll(each):
                mine += (stop[i + 1] - stop[i] + t.rows - 1) // t.rows
            below = mine
            for s in T.unroll(5):
                got = T.shfl_up(below, 1 << s)
                if tx >= (1 << s):
                    below += got
            below = below - mine
            for i in T.unroll(each):
                if tx * each + i < t.experts:
                    firsts[tx * each + i] = below
                    bounds[tx * each + i] = stop[i]
                    below += (stop[i + 1] - stop[i] + t.rows - 1) // t.rows
            if tx == 31:
                firsts[t.experts] = below
                bounds[t.experts] = T.cast(ends[t.experts - 1], I32)

    @T.macro
    def find_dense(unit, m, at):
        tiles = T.alloc_var(I32)
        band = T.alloc_var(I32)
        tall = T.alloc_var(I32)
        rest = T.alloc_var(I32)
        tiles = T.ceildiv(m, t.rows)
        at[4] = T.truncdiv(unit, tiles * t.across)
        rest = unit - at[4] * tiles * t.across
        band = T.truncdiv(rest, BAND * t.across)
        rest = rest - band * BAND * t.across
        tall = T.min(BAND, tiles - band * BAND)
        at[0] = 0
        at[1] = (band * BAND + T.truncmod(rest, tall)) * t.rows
        at[2] = m
        at[3] = T.truncdiv(rest, tall)

    @T.macro
    def find_ragged(unit, bounds, firsts, at):
        e = T.alloc_var(I32)
        below = T.alloc_var(I32)
        tall = T.alloc_var(I32)
        e = 0
        for s in T.unroll(bits):
            if e + (1 << (bits - 1 - s)) < t.experts:
                below = firsts[e + (1 << (bits - 1 - s))]
                if below * t.across <= unit:
                    e += 1 << (bits - 1 - s)
        below = firsts[e]
        tall = firsts[e + 1] - below
        at[0] = e
        at[1] = bounds[e] + T.truncmod(unit - below * t.across, tall) * t.rows
        at[2] = bounds[e + 1]
        at[3] = T.truncdiv(unit - below * t.across, tall)
        at[4] = 0

    @T.macro
    def find(unit, m, bounds, firsts, at):
        # at: expert, first row, end of the rows, which tile of columns, which part of k.
        if t.ragged:
            find_ragged(unit, bounds, firsts, at)
        else:
            find_dense(unit, m, at)

    return count_tiles, find
