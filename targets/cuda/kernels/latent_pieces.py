"""What a warpgroup of the seesaw does with a tile of keys: loads it in pieces, scores it, hides keys."""

from typing import Any

import tilelang.language as T

from .latent_pages import first_seen, partly
from .latent_shared import F32

ROWS = KEYS = 64
PIECE = 64  # columns of a tile that are waited for together


def tools(heads: int, half: int) -> tuple[Any, Any, Any]:
    """Macros load, score and hide; half: columns of a tile that a warpgroup loads and scores at a time.

    slot, at: the tile's place in the cache, see latent_pages.
    """
    pieces = half // PIECE

    @T.macro
    def load(cache, slot, at, column, to, ready):
        """Columns of one half of a tile, piece by piece; by a warpgroup."""
        for j in T.unroll(pieces):
            T.tma_copy(
                cache[slot, 0, at : at + KEYS, column + j * PIECE : column + (j + 1) * PIECE],
                to[:, j * PIECE : (j + 1) * PIECE],
                barrier=ready[j],
            )
            T.barrier_arrive(ready[j])

    @T.macro
    def score(q, tile, ready, phase, scores, fresh):
        """scores += q tile^T over one half, as its pieces arrive."""
        for j in T.unroll(pieces):
            T.barrier_wait(ready[j], phase)
            T.wgmma_gemm(
                q[:, j * PIECE : (j + 1) * PIECE],
                tile[:, j * PIECE : (j + 1) * PIECE],
                scores,
                transpose_B=True,
                clear_accum=(fresh and j == 0),
            )

    @T.macro
    def hide(table, scores, first, at, row, begin, old):
        """Keys of the tile before, or that a row must not see."""
        if partly(table, first, KEYS, begin, old):
            for i, j in T.Parallel(ROWS, KEYS):
                scores[i, j] = T.if_then_else(
                    T.And(at + j >= first_seen(table, first, begin), at + j <= old + (row + i) // heads),
                    scores[i, j],
                    -T.infinity(F32),
                )

    return load, score, hide
