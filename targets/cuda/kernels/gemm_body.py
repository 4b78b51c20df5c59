"""A block of a tiled product: one warpgroup loads, the others multiply and write (see gemm.py)."""

from typing import Any

import tilelang.language as T

from ..gemm_tiles import STAGED, Tiles
from .gemm_places import most_units, places

BF16, F32, I32 = T.bfloat16, T.float32, T.int32
LANES = 8  # numbers that a thread stores at once: 16 bytes


def make(t: Tiles) -> Any:
    """The macro that computes all tiles: x [., k], order and ends (of a ragged product, else x again), w
    [(experts,) n, k], extra (a residual, else x again), y (bf16, or f32 where it is wide or split).
    """
    first, groups, stages, parts = 128 * t.groups, t.groups, t.stages, t.parts
    lines = t.rows if t.swap else 64  # of y that one warpgroup writes
    frame = (64, t.rows) if t.swap else (64, t.cols)
    whole = t.width % t.cols == 0  # no tile has columns to leave out

    count_tiles, find = places(t)

    @T.macro
    def load_weights(w, at, k0, W, stage, full, leaders):
        c0 = at[3] * t.cols
        for p in T.unroll(parts, explicit=True):
            if t.ragged:
                T.tma_copy(
                    w[at[0], c0 + p * t.width : c0 + p * t.width + t.cols, k0 : k0 + t.depth],
                    W[stage, p, :, :],
                    barrier=full[stage],
                    leader_scope_threads=leaders,
                )
            else:
                T.tma_copy(
                    w[c0 + p * t.width : c0 + p * t.width + t.cols, k0 : k0 + t.depth],
                    W[stage, p, :, :],
                    barrier=full[stage],
                    leader_scope_threads=leaders,
                )

    @T.macro
    def gather_rows(x, source, k0, X, stage, lane):
        # A thread's rows are 16 apart; a chunk is 8 numbers, 16 bytes.
        for u in T.unroll(t.rows // 16 * (t.depth // 64)):
            i = u // (t.depth // 64)
            if source[i] >= 0:
                column = u % (t.depth // 64) * 64 + lane % 8 * 8
                if t.k % t.depth == 0:
                    T.ptx_cp_async(
                        T.access_ptr(X[stage, i * 16 + lane // 8, column], "w", 8),
                        T.access_ptr(x[source[i], k0 + column], "r", 8),
                        8,
                    )
                else:
                    T.ptx_cp_async(
                        T.access_ptr(X[stage, i * 16 + lane // 8, column], "w", 8),
                        T.access_ptr(x[source[i], T.min(k0 + column, t.k - 8)], "r", 8),
                        8,
                        k0 + column < t.k,
                    )

    @T.macro
    def produce(x, order, w, X, W, bounds, firsts, full, empty, bx, total, m, lane):
        at = T.alloc_local((5,), I32)
        source = T.alloc_local((max(t.rows // 16, 1),), I32)
        stage = T.alloc_var(I32, init=0)
        phase = T.alloc_var(I32, init=1)
        for turn in T.serial(T.truncdiv(total - bx + t.blocks - 1, t.blocks)):
            find(bx + turn * t.blocks, m, bounds, firsts, at)
            if t.gather:
                for i in T.unroll(t.rows // 16):
                    source[i] = -1
                    if at[1] + i * 16 + lane // 8 < at[2]:
                        source[i] = T.cast(order[at[1] + i * 16 + lane // 8], I32) // t.share
            for ko in T.serial(T.min(t.chunks, t.steps - at[4] * t.chunks)):
                k0 = (at[4] * t.chunks + ko) * t.depth
                T.barrier_wait(empty[stage], phase)
                if t.gather:
                    load_weights(w, at, k0, W, stage, full, 128)
                    gather_rows(x, source, k0, X, stage, lane)
                    T.cp_async_barrier_noinc(full[stage])
                else:
                    load_weights(w, at, k0, W, stage, full, 32)
                    T.tma_copy(
                        x[at[1] : at[1] + t.rows, k0 : k0 + t.depth],
                        X[stage, :, :],
                        barrier=full[stage],
                        leader_scope_threads=32,
                    )
                    T.barrier_arrive(full[stage])
                stage += 1
                if stage == stages:
                    stage = 0
                    phase = phase ^ 1

    @T.macro
    def release(empty, stage, lane):
        if lane % 32 == 0:
            T.barrier_arrive(empty[stage])

    @T.macro
    def multiply(X, W, g, stage, p, sums, ko):
        if t.swap:
            T.wgmma_gemm(
                W[stage, p, g * 64 : (g + 1) * 64, :],
                X[stage, :, :],
                sums,
                transpose_B=True,
                clear_accum=ko == 0,
            )
        else:
            T.wgmma_gemm(
                X[stage, g * 64 : (g + 1) * 64, :],
                W[stage, p, :, :],
                sums,
                transpose_B=True,
                clear_accum=ko == 0,
            )

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
            for u in T.unroll(lines * STAGED // (128 * LANES)):
                row = row0 + (u * 128 + lane) // (STAGED // LANES)
                at_c = (u * 128 + lane) % (STAGED // LANES) * LANES
                col = col0 + part * STAGED + at_c
                if row < end and (whole or col < t.width):
                    if t.scatter:
                        T.stg128(y[T.cast(order[row], I32), col], T.lds128(C[g, row - row0, at_c]))
                    else:
                        T.stg128(y[row, col], T.lds128(C[g, row - row0, at_c]))

    @T.macro
    def consume(g, y, extra, order, X, W, C, bounds, firsts, full, empty, bx, total, m, lane):
        at = T.alloc_local((5,), I32)
        sums = T.alloc_fragment(frame, F32)
        ups = T.alloc_fragment(frame, F32) if parts == 2 else sums
        stage = T.alloc_var(I32, init=0)
        before = T.alloc_var(I32, init=0)
        phase = T.alloc_var(I32, init=0)
        row0 = T.alloc_var(I32)
        for turn in T.serial(T.truncdiv(total - bx + t.blocks - 1, t.blocks)):
            find(bx + turn * t.blocks, m, bounds, firsts, at)
            row0 = at[1] + (0 if t.swap else g * 64)
            col0 = at[3] * t.cols + (g * 64 if t.swap else 0)
            if row0 < at[2]:
                for ko in T.serial(T.min(t.chunks, t.steps - at[4] * t.chunks)):
                    T.barrier_wait(full[stage], phase)
                    if t.gather:
                        T.fence_proxy_async()
                    multiply(X, W, g, stage, 0, sums, ko)
                    if parts == 2:
                        multiply(X, W, g, stage, 1, ups, ko)
                    if ko > 0:
                        T.wait_wgmma(parts)
                        release(empty, before, lane)
                    before = stage
                    stage += 1
                    if stage == stages:
                        stage = 0
                        phase = phase ^ 1
                T.wait_wgmma(0)
                release(empty, before, lane)
                if parts == 2 and t.split == 1:
                    for i, j in T.Parallel(*frame):
                        sums[i, j] = sums[i, j] * T.fast_rcp(1 + T.__exp(-sums[i, j])) * ups[i, j]
                if t.plain:
                    write_plain(sums, y, at, g, extra, 0)
                    if parts == 2 and t.split > 1:
                        write_plain(ups, y, at, g, extra, t.width)
                else:
                    write_staged(sums, y, C, g, row0, col0, at[2], extra, order, lane % 128)
            else:
                # No rows left for this warpgroup: it only keeps the ring turning.
                for _ in T.serial(T.min(t.chunks, t.steps - at[4] * t.chunks)):
                    T.barrier_wait(full[stage], phase)
                    release(empty, stage, lane)
                    stage += 1
                    if stage == stages:
                        stage = 0
                        phase = phase ^ 1

    @T.macro
    def share_out(g, tx, y, extra, order, X, W, C, bounds, firsts, full, empty, bx, total, m):
        # Each warpgroup its own branch, so that each has its own sums.
        if g + 1 == groups:
            consume(g, y, extra, order, X, W, C, bounds, firsts, full, empty, bx, total, m, tx)
        else:
            if tx < (g + 1) * 128:
                consume(g, y, extra, order, X, W, C, bounds, firsts, full, empty, bx, total, m, tx)
            else:
                share_out(g + 1, tx, y, extra, order, X, W, C, bounds, firsts, full, empty, bx, total, m)

    @T.macro
    def body(x, order, ends, w, extra, y, m):
        with T.Kernel(T.min(t.blocks, most_units(t, m)), threads=first + 128) as bx:
            T.annotate_min_blocks_per_sm(t.per_sm)
            X = T.alloc_shared((stages, t.rows, t.depth), BF16)
            W = T.alloc_shared((stages, parts, t.cols, t.depth), BF16)
            C = T.alloc_shared((groups, lines, STAGED + LANES) if not t.plain else (1, 1, 8), BF16)
            bounds = T.alloc_shared((t.experts + 1,), I32)
            firsts = T.alloc_shared((t.experts + 1,), I32)
            full = T.alloc_barrier([128 if t.gather else 32] * stages)
            empty = T.alloc_barrier([4 * groups] * stages)
            total = T.alloc_var(I32, init=0)
            tx = T.get_thread_binding()
            T.pdl_sync()
            T.pdl_trigger()
            if t.ragged:
                count_tiles(ends, bounds, firsts, tx)
                T.sync_threads()
                total = firsts[t.experts] * t.across
            else:
                total = T.ceildiv(m, t.rows) * t.across * t.split
            if tx >= first:
                if t.gather:
                    produce(x, order, w, X, W, bounds, firsts, full, empty, bx, total, m, tx - first)
                else:
                    if tx < first + 32:
                        produce(x, order, w, X, W, bounds, firsts, full, empty, bx, total, m, tx - first)
            else:
                share_out(0, tx, y, extra, order, X, W, C, bounds, firsts, full, empty, bx, total, m)

    return body
