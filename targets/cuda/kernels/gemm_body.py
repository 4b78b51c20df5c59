"""A block of a tiled product: one warpgroup loads, the others multiply and write (see gemm.py)."""

from typing import Any

import tilelang.language as T

from ..gemm_tiles import Tiles
from .gemm_places import most_units, places
from .gemm_write import staged, writers

BF16, F32, I32 = T.bfloat16, T.float32, T.int32


def make(t: Tiles) -> Any:
    """The macro that computes all tiles: x [., k], order and ends (of a ragged product, else x again), w
    [(experts,) n, k], extra (a residual, else x again), y (bf16, or f32 where it is wide or split).
    """
    first, groups, stages, parts = 128 * t.groups, t.groups, t.stages, t.parts
    frame = (64, t.rows) if t.swap else (64, t.cols)
    policy = "evict_first" if t.once else None
    loaders = 128 if t.gather else 32

    count_tiles, find = places(t)
    write_plain, write_staged = writers(t)

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
                    eviction_policy=policy,
                )
            else:
                T.tma_copy(
                    w[c0 + p * t.width : c0 + p * t.width + t.cols, k0 : k0 + t.depth],
                    W[stage, p, :, :],
                    barrier=full[stage],
                    leader_scope_threads=leaders,
                    eviction_policy=policy,
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
    def tell(told, heard, U, turn, unit):
        # One thread: the unit of this turn, once all have heard of the last but one.
        T.barrier_wait(heard[turn % 2], (turn // 2 % 2) ^ 1)
        U[turn % 2] = unit
        T.barrier_arrive(told[turn % 2])

    @T.macro
    def hear(told, heard, U, turn, unit):
        T.barrier_wait(told[turn % 2], turn // 2 % 2)
        unit[0] = U[turn % 2]
        T.barrier_arrive(heard[turn % 2])

    @T.macro
    def load_tile(x, order, w, X, W, full, empty, at, source, ring, lane):
        if t.gather:
            for i in T.unroll(t.rows // 16):
                source[i] = -1
                if at[1] + i * 16 + lane // 8 < at[2]:
                    source[i] = T.cast(order[at[1] + i * 16 + lane // 8], I32) // t.share
        for ko in T.serial(T.min(t.chunks, t.steps - at[4] * t.chunks)):
            k0 = (at[4] * t.chunks + ko) * t.depth
            T.barrier_wait(empty[ring[0]], ring[1])
            if t.gather:
                load_weights(w, at, k0, W, ring[0], full, 128)
                gather_rows(x, source, k0, X, ring[0], lane)
                T.cp_async_barrier_noinc(full[ring[0]])
            else:
                load_weights(w, at, k0, W, ring[0], full, 32)
                T.tma_copy(
                    x[at[1] : at[1] + t.rows, k0 : k0 + t.depth],
                    X[ring[0], :, :],
                    barrier=full[ring[0]],
                    leader_scope_threads=32,
                )
                T.barrier_arrive(full[ring[0]])
            ring[0] += 1
            if ring[0] == stages:
                ring[0] = 0
                ring[1] = ring[1] ^ 1

    @T.macro
    def produce(x, order, w, X, W, turns, bounds, firsts, full, empty, bx, total, m, lane):
        at = T.alloc_local((5,), I32)
        source = T.alloc_local((max(t.rows // 16, 1),), I32)
        ring = T.alloc_local((2,), I32)  # the next stage, and its barrier's parity
        ring[0] = 0
        ring[1] = 1
        if t.queue:
            turn = T.alloc_var(I32, init=0)
            after = T.alloc_var(I32, init=0)
            unit = T.alloc_local((1,), I32)
            unit[0] = bx
            after = bx
            while unit[0] < total:
                if lane == 0:
                    tell(*turns[:3], turn, after)
                    after = turns[4] + T.atomic_add(turns[3][0], 1, return_prev=True)
                hear(*turns[:3], turn, unit)
                if unit[0] < total:
                    find(unit[0], m, bounds, firsts, at)
                    load_tile(x, order, w, X, W, full, empty, at, source, ring, lane)
                turn += 1
        else:
            for turn in T.serial(T.truncdiv(total - bx + t.blocks - 1, t.blocks)):
                find(bx + turn * t.blocks, m, bounds, firsts, at)
                load_tile(x, order, w, X, W, full, empty, at, source, ring, lane)

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
    def compute_tile(g, y, extra, order, X, W, C, full, empty, at, sums, ups, ring, lane):
        row0 = T.alloc_var(I32)
        col0 = T.alloc_var(I32)
        row0 = at[1] + (0 if t.swap else g * 64)
        col0 = at[3] * t.cols + (g * 64 if t.swap else 0)
        if row0 < at[2]:
            for ko in T.serial(T.min(t.chunks, t.steps - at[4] * t.chunks)):
                T.barrier_wait(full[ring[0]], ring[1])
                if t.gather:
                    T.fence_proxy_async()
                multiply(X, W, g, ring[0], 0, sums, ko)
                if parts == 2:
                    multiply(X, W, g, ring[0], 1, ups, ko)
                if ko > 0:
                    T.wait_wgmma(parts)
                    release(empty, ring[2], lane)
                ring[2] = ring[0]
                ring[0] += 1
                if ring[0] == stages:
                    ring[0] = 0
                    ring[1] = ring[1] ^ 1
            T.wait_wgmma(0)
            release(empty, ring[2], lane)
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
                T.barrier_wait(full[ring[0]], ring[1])
                release(empty, ring[0], lane)
                ring[0] += 1
                if ring[0] == stages:
                    ring[0] = 0
                    ring[1] = ring[1] ^ 1

    @T.macro
    def consume(g, y, extra, order, X, W, C, turns, bounds, firsts, full, empty, bx, total, m, lane):
        at = T.alloc_local((5,), I32)
        sums = T.alloc_fragment(frame, F32)
        ups = T.alloc_fragment(frame, F32) if parts == 2 else sums
        ring = T.alloc_local((3,), I32)  # the next stage, its barrier's parity, and the stage before
        for i in T.unroll(3):
            ring[i] = 0
        if t.queue:
            turn = T.alloc_var(I32, init=0)
            unit = T.alloc_local((1,), I32)
            unit[0] = bx
            while unit[0] < total:
                hear(*turns[:3], turn, unit)
                if unit[0] < total:
                    find(unit[0], m, bounds, firsts, at)
                    compute_tile(g, y, extra, order, X, W, C, full, empty, at, sums, ups, ring, lane)
                turn += 1
        else:
            for turn in T.serial(T.truncdiv(total - bx + t.blocks - 1, t.blocks)):
                find(bx + turn * t.blocks, m, bounds, firsts, at)
                compute_tile(g, y, extra, order, X, W, C, full, empty, at, sums, ups, ring, lane)

    @T.macro
    def share_out(g, tx, y, extra, order, X, W, C, turns, bounds, firsts, full, empty, bx, total, m):
        # Each warpgroup its own branch, so that each has its own sums.
        if g + 1 == groups:
            consume(g, y, extra, order, X, W, C, turns, bounds, firsts, full, empty, bx, total, m, tx)
        else:
            if tx < (g + 1) * 128:
                consume(g, y, extra, order, X, W, C, turns, bounds, firsts, full, empty, bx, total, m, tx)
            else:
                share_out(
                    g + 1, tx, y, extra, order, X, W, C, turns, bounds, firsts, full, empty, bx, total, m
                )

    @T.macro
    def body(x, order, ends, w, extra, y, counter, m):
        with T.Kernel(T.min(t.blocks, most_units(t, m)), threads=first + 128) as bx:
            T.annotate_min_blocks_per_sm(t.per_sm)
            X = T.alloc_shared((stages, t.rows, t.depth), BF16)
            W = T.alloc_shared((stages, parts, t.cols, t.depth), BF16)
            C = T.alloc_shared(staged(t) if not t.plain else (1, 1, 8), BF16)
            bounds = T.alloc_shared((t.experts + 1,), I32)
            firsts = T.alloc_shared((t.experts + 1,), I32)
            full = T.alloc_barrier([128 if t.gather else 32] * stages)
            empty = T.alloc_barrier([4 * groups] * stages)
            told = T.alloc_barrier([1] * 2) if t.queue else None
            heard = T.alloc_barrier([first + loaders] * 2) if t.queue else None
            U = T.alloc_shared((2,), I32) if t.queue else None
            turns = (told, heard, U, counter, T.min(t.blocks, most_units(t, m)))
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
                    produce(x, order, w, X, W, turns, bounds, firsts, full, empty, bx, total, m, tx - first)
                else:
                    if tx < first + 32:
                        produce(
                            x, order, w, X, W, turns, bounds, firsts, full, empty, bx, total, m, tx - first
                        )
            else:
                share_out(0, tx, y, extra, order, X, W, C, turns, bounds, firsts, full, empty, bx, total, m)

    return body
