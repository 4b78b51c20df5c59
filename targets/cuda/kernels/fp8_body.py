"""A block of a tiled product of e4m3 codes: one warp loads, warpgroups multiply and write (see fp8.py)."""

from typing import Any

import tilelang.language as T

from ..fp8_tiles import ALIGNED, DEPTH, padded, scales, staged
from ..gemm_tiles import Tiles
from . import fp8_parts, gemm_write
from .gemm_places import most_units, places

BF16, F32, I32, I64, E4M3 = T.bfloat16, T.float32, T.int32, T.int64, T.float8_e4m3fn


def make(t: Tiles, inline: bool) -> Any:
    """The macro that computes all tiles: x e4m3 [., k] with scales xs f32 [groups, .] (inline: bf16, and x
    again), order and ends (of a ragged product, else x again), w e4m3 [(experts,) n, k] with scales ws f32,
    extra (a residual, else x again), y.
    """
    first, groups, stages, parts = 128 * t.groups, t.groups, t.stages, t.parts
    frame = (64, t.rows)
    policy = "evict_first" if t.once else None
    count_tiles, find = places(t)
    round_rows, write = fp8_parts.rounding(t), fp8_parts.writing(t)

    def lead(at):
        # Scales that a stage loads before the tile's first one.
        return at[1] % ALIGNED if t.ragged else 0

    @T.macro
    def load_weights(w, at, k0, W, stage, full):
        c0 = at[3] * t.cols
        for p in T.unroll(parts, explicit=True):
            if t.ragged:
                T.tma_copy(
                    w[at[0], c0 + p * t.width : c0 + p * t.width + t.cols, k0 : k0 + DEPTH],
                    W[stage, p, :, :],
                    barrier=full[stage],
                    leader_scope_threads=32,
                    eviction_policy=policy,
                )
            else:
                T.tma_copy(
                    w[c0 + p * t.width : c0 + p * t.width + t.cols, k0 : k0 + DEPTH],
                    W[stage, p, :, :],
                    barrier=full[stage],
                    leader_scope_threads=32,
                    eviction_policy=policy,
                )

    @T.macro
    def load_tokens(x, xs, at, step, X, XS, stage, full):
        T.tma_copy(
            x[at[1] : at[1] + t.rows, step * DEPTH : step * DEPTH + DEPTH],
            X[stage, :, :],
            barrier=full[stage],
            leader_scope_threads=32,
        )
        row0 = at[1] - lead(at)
        T.tma_copy(
            xs[step : step + 1, row0 : row0 + scales(t)],
            XS[stage, :, 0 : scales(t)],
            barrier=full[stage],
            leader_scope_threads=32,
        )
        T.barrier_arrive(full[stage])

    @T.macro
    def produce(x, xs, w, X, XS, W, bounds, firsts, full, empty, bx, total, m):
        # Weights do not depend on the step before: the first ones are asked for while that still runs.
        at = T.alloc_local((5,), I32)
        ring = T.alloc_local((2,), I32)  # the next stage, and its barrier's parity
        count = T.alloc_var(I32)
        ring[0] = 0
        ring[1] = 1
        for turn in T.serial(T.truncdiv(total - bx + t.blocks - 1, t.blocks)):
            find(bx + turn * t.blocks, m, bounds, firsts, at)
            count = T.min(t.chunks, t.steps - at[4] * t.chunks)
            if turn == 0:
                for ko in T.serial(T.min(stages, count)):
                    load_weights(w, at, (at[4] * t.chunks + ko) * DEPTH, W, ko, full)
                T.pdl_sync()
                T.pdl_trigger()
            for ko in T.serial(count):
                T.barrier_wait(empty[ring[0]], ring[1])
                if T.Or(turn > 0, ko >= stages):
                    load_weights(w, at, (at[4] * t.chunks + ko) * DEPTH, W, ring[0], full)
                if inline:
                    T.barrier_arrive(full[ring[0]])
                else:
                    load_tokens(x, xs, at, at[4] * t.chunks + ko, X, XS, ring[0], full)
                ring[0] += 1
                if ring[0] == stages:
                    ring[0] = 0
                    ring[1] = ring[1] ^ 1

    @T.macro
    def find_blocks(at, p, g, blocks):
        # Of the rows of a warpgroup: they may be of two blocks, where gates are no whole ones.
        for i in T.Parallel(64):
            row = p * t.width + T.min(at[3] * t.cols + g * 64 + i, t.width - 1)
            blocks[i] = T.truncdiv(row, DEPTH)

    @T.macro
    def weight_scales(ws, at, blocks, step, by_row):
        for i in T.Parallel(64):
            if t.ragged:
                by_row[i] = ws[at[0], blocks[i], step]
            else:
                by_row[i] = ws[blocks[i], step]

    @T.macro
    def add_stage(sums, stage_sums, by_row, by_token):
        for i, j in T.Parallel(*frame):
            sums[i, j] += stage_sums[i, j] * (by_row[i] * by_token[j])

    @T.macro
    def multiply(X, W, g, stage, tokens, p, stage_sums):
        T.wgmma_gemm(
            W[stage, p, g * 64 : (g + 1) * 64, :],
            X[tokens, :, :],
            stage_sums,
            transpose_B=True,
            clear_accum=True,
        )

    @T.macro
    def release(empty, stage, lane):
        if lane % 32 == 0:
            T.barrier_arrive(empty[stage])

    @T.macro
    def compute_tile(g, x, ws, y, extra, order, X, XS, W, C, full, empty, at, held, ring, lane):
        sums, ups, stage_sums, gate_blocks, up_blocks, gate_scales, up_scales, by_token = held
        T.clear(sums)
        find_blocks(at, 0, g, gate_blocks)
        if parts == 2:
            T.clear(ups)
            find_blocks(at, 1, g, up_blocks)
        if inline:
            T.sync_threads(groups + 1, first)
            round_rows(x, order, X, XS, at, lane)
            T.fence_proxy_async()
            T.sync_threads(groups + 1, first)
        for ko in T.serial(T.min(t.chunks, t.steps - at[4] * t.chunks)):
            weight_scales(ws, at, gate_blocks, at[4] * t.chunks + ko, gate_scales)
            if parts == 2:
                weight_scales(ws, at, up_blocks, at[4] * t.chunks + ko, up_scales)
            tokens = ko if inline else ring[0]
            T.barrier_wait(full[ring[0]], ring[1])
            multiply(X, W, g, ring[0], tokens, 0, stage_sums)
            for j in T.Parallel(t.rows):
                by_token[j] = XS[tokens, 0, (0 if inline else lead(at)) + j]
            T.wait_wgmma(0)
            if parts == 1:
                release(empty, ring[0], lane)
            add_stage(sums, stage_sums, gate_scales, by_token)
            if parts == 2:
                multiply(X, W, g, ring[0], tokens, 1, stage_sums)
                T.wait_wgmma(0)
                add_stage(ups, stage_sums, up_scales, by_token)
                release(empty, ring[0], lane)
            ring[0] += 1
            if ring[0] == stages:
                ring[0] = 0
                ring[1] = ring[1] ^ 1
        if parts == 2 and t.split == 1:
            for i, j in T.Parallel(*frame):
                sums[i, j] = sums[i, j] * T.fast_rcp(1 + T.__exp(-sums[i, j])) * ups[i, j]
        write(sums, y, C, g, at, 0, extra, order, lane)
        if parts == 2 and t.split > 1:
            write(ups, y, C, g, at, t.width, extra, order, lane)

    @T.macro
    def consume(g, x, ws, y, extra, order, X, XS, W, C, bounds, firsts, full, empty, bx, total, m, lane):
        at = T.alloc_local((5,), I32)
        sums = T.alloc_fragment(frame, F32)
        ups = T.alloc_fragment(frame, F32) if parts == 2 else sums
        stage_sums = T.alloc_fragment(frame, F32)
        gate_blocks = T.alloc_fragment((64,), I32)
        up_blocks = T.alloc_fragment((64,), I32) if parts == 2 else gate_blocks
        gate_scales = T.alloc_fragment((64,), F32)
        up_scales = T.alloc_fragment((64,), F32) if parts == 2 else gate_scales
        by_token = T.alloc_fragment((t.rows,), F32)
        held = (sums, ups, stage_sums, gate_blocks, up_blocks, gate_scales, up_scales, by_token)
        ring = T.alloc_local((2,), I32)  # the next stage, and its barrier's parity
        ring[0] = 0
        ring[1] = 0
        T.pdl_sync()
        T.pdl_trigger()
        for turn in T.serial(T.truncdiv(total - bx + t.blocks - 1, t.blocks)):
            find(bx + turn * t.blocks, m, bounds, firsts, at)
            compute_tile(g, x, ws, y, extra, order, X, XS, W, C, full, empty, at, held, ring, lane)

    @T.macro
    def share_out(g, tx, x, ws, y, extra, order, X, XS, W, C, bounds, firsts, full, empty, bx, total, m):
        # Each warpgroup its own branch, so that each has its own sums.
        if g + 1 == groups:
            consume(g, x, ws, y, extra, order, X, XS, W, C, bounds, firsts, full, empty, bx, total, m, tx)
        else:
            if tx < (g + 1) * 128:
                consume(g, x, ws, y, extra, order, X, XS, W, C, bounds, firsts, full, empty, bx, total, m, tx)
            else:
                share_out(
                    g + 1, tx, x, ws, y, extra, order, X, XS, W, C, bounds, firsts, full, empty, bx, total, m
                )

    @T.macro
    def fresh_ends(ends, stops, tx):
        # Written before the step before this one, perhaps while the first cache held what was there.
        for i in T.serial(T.ceildiv(t.experts, first + 32)):
            if i * (first + 32) + tx < t.experts:
                stops[i * (first + 32) + tx] = T.atomic_load(
                    ends[i * (first + 32) + tx], memory_order="relaxed"
                )
        T.sync_threads()

    @T.macro
    def body(x, xs, order, ends, w, ws, extra, y, m):
        with T.Kernel(T.min(t.blocks, most_units(t, m)), threads=first + 32) as bx:
            T.annotate_min_blocks_per_sm(t.per_sm)
            X = T.alloc_shared((t.chunks if inline else stages, t.rows, DEPTH), E4M3)
            XS = T.alloc_shared((t.chunks, 1, t.rows) if inline else (stages, 1, padded(t)), F32)
            W = T.alloc_shared((stages, parts, t.cols, DEPTH), E4M3)
            C = T.alloc_shared(gemm_write.staged(t) if staged(t) else (1, 1, 8), BF16)
            bounds = T.alloc_shared((t.experts + 1,), I32)
            firsts = T.alloc_shared((t.experts + 1,), I32)
            stops = T.alloc_shared((max(t.experts, 1),), I64)
            full = T.alloc_barrier([32] * stages)
            empty = T.alloc_barrier([4 * groups] * stages)
            total = T.alloc_var(I32, init=0)
            tx = T.get_thread_binding()
            if t.ragged:
                if inline:
                    T.pdl_sync()
                fresh_ends(ends, stops, tx)
                count_tiles(stops, bounds, firsts, tx)
                T.sync_threads()
                total = firsts[t.experts] * t.across
            else:
                total = T.ceildiv(m, t.rows) * t.across * t.split
            if tx >= first:
                produce(x, xs, w, X, XS, W, bounds, firsts, full, empty, bx, total, m)
            else:
                share_out(
                    0, tx, x, ws, y, extra, order, X, XS, W, C, bounds, firsts, full, empty, bx, total, m
                )

    return body
