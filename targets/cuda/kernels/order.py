"""Choices in the order of experts: a stable counting sort, by one block if they are few, else by pieces.

A slot is a token's choice, numbered token * share + j. order: the slots of expert 0, then those of
expert 1, .., each in their own order; ends: where each expert's end.
"""

from collections.abc import Sequence
from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Step
from ..sm import Sm
from ..widths import LANES

FEW = 256  # slots that one block compares each with each
BLOCK = 512  # its threads
PIECE = 64  # tokens of a piece of many
UNROLL = 8  # pieces whose counts are loaded side by side


def sort_macro(bins: int, threads: int) -> Any:
    """A macro (ids [FEW], count, t, order, ends): a block puts up to FEW slots in place. ids are shared."""

    @T.macro
    def sort(ids, count, t, order, ends):
        slot = T.alloc_var("int32")
        mine = T.alloc_var("int32")
        before = T.alloc_var("int32")
        for i in T.serial(T.ceildiv(count, threads)):
            slot = i * threads + t
            if slot < count:
                mine = ids[slot]
                before = 0
                for q in T.serial(count):
                    before += T.if_then_else(ids[q] < mine or (ids[q] == mine and q < slot), 1, 0)
                order[before] = T.cast(slot, "int64")
        for i in T.serial(-(-bins // threads)):
            if i * threads + t < bins:
                before = 0
                for q in T.serial(count):
                    before += T.if_then_else(ids[q] <= i * threads + t, 1, 0)
                ends[i * threads + t] = T.cast(before, "int64")

    return sort


def spread(share: int, bins: int, ids: str) -> Step:
    """From the counts of all pieces: each piece puts its slots in place, its first warp one after the other.

    ids: where the experts are, "s1" as int32 or "x0" as int64; s2: counts [pieces, bins].
    """
    threads = -(-bins // LANES) * LANES
    if threads > 1024:
        raise ValueError(f"{bins} experts are sorted; at most 1024")
    warps, most = threads // LANES, PIECE * share
    m = T.dynamic("m")

    @T.macro
    def place(here, following, order, at, first, slots, lane):
        mine = T.alloc_var("int32")
        base = T.alloc_var("int32")
        same = T.alloc_var("uint32")
        below = T.alloc_var("int32")
        mine = -1
        base = 0
        if at < most and first + at < slots:
            mine = here[at]
            base = following[mine]
        same = T.match_any_sync(mine)
        below = T.cast(T.popcount(same & ((T.uint32(1) << T.cast(lane, "uint32")) - T.uint32(1))), "int32")
        T.sync_warp()
        if mine >= 0:
            order[base + below] = T.cast(first + at, "int64")
        if mine >= 0 and below == 0:
            following[mine] = base + T.cast(T.popcount(same), "int32")
        T.sync_warp()

    @T.macro
    def body(experts, counts, order, ends, piece, pieces, slots):
        t = T.get_thread_binding(0)
        following = T.alloc_shared((bins,), "int32")
        totals = T.alloc_shared((warps,), "int32")
        here = T.alloc_shared((most,), "int32")
        total = T.alloc_var("int32", init=0)
        before = T.alloc_var("int32", init=0)
        found = T.alloc_var("int32")
        upto = T.alloc_var("int32")
        T.pdl_trigger()
        T.pdl_sync()
        for i in T.serial(-(-most // threads)):
            if i * threads + t < most and piece * most + i * threads + t < slots:
                found = T.cast(experts[piece * most + i * threads + t], "int32")
                here[i * threads + t] = T.max(T.min(found, bins - 1), 0)
        for i in T.serial(T.ceildiv(pieces, UNROLL)):
            for u in T.unroll(UNROLL):
                found = 0
                if t < bins and i * UNROLL + u < pieces:
                    found = counts[i * UNROLL + u, t]
                total += found
                before += T.if_then_else(i * UNROLL + u < piece, found, 0)
        upto = total
        for step in T.unroll(5):
            found = T.shfl_up(upto, 1 << step)
            upto += T.if_then_else(t % LANES >= (1 << step), found, 0)
        if t % LANES == LANES - 1:
            totals[t // LANES] = upto
        T.sync_threads()
        for w in T.unroll(warps):
            upto += T.if_then_else(w < t // LANES, totals[w], 0)
        if t < bins:
            following[t] = upto - total + before
            if piece == 0:
                ends[t] = T.cast(upto, "int64")
        T.sync_threads()
        if t < LANES:
            for i in T.serial(-(-most // LANES)):
                place(here, following, order, i * LANES + t, piece * most, slots, t)

    @T.prim_func
    def spread_found(
        s1: T.Tensor((m * share,), "int32"),
        s2: T.Tensor((T.ceildiv(m, PIECE), bins), "int32"),
        y0: T.Tensor((m * share,), "int64"),
        y1: T.Tensor((bins,), "int64"),
    ):
        with T.Kernel(T.ceildiv(m, PIECE), threads=threads) as piece:
            body(s1, s2, y0, y1, piece, T.ceildiv(m, PIECE), m * share)

    @T.prim_func
    def spread_given(
        x0: T.Tensor((m * share,), "int64"),
        s2: T.Tensor((T.ceildiv(m, PIECE), bins), "int32"),
        y0: T.Tensor((m * share,), "int64"),
        y1: T.Tensor((bins,), "int64"),
    ):
        with T.Kernel(T.ceildiv(m, PIECE), threads=threads) as piece:
            body(x0, s2, y0, y1, piece, T.ceildiv(m, PIECE), m * share)

    function = spread_found if ids == "s1" else spread_given
    return Step(function, when=f"m > {FEW // share}", overlap=True)


def permute(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """The sort of given ids [m, k]."""
    bins, share, threads = kernel["experts"], kernel["k"], BLOCK
    sort = sort_macro(bins, threads)
    m = T.dynamic("m")

    @T.prim_func
    def sort_kernel(
        x0: T.Tensor((m * share,), "int64"),
        y0: T.Tensor((m * share,), "int64"),
        y1: T.Tensor((bins,), "int64"),
    ):
        with T.Kernel(1, threads=threads):
            t = T.get_thread_binding(0)
            ids = T.alloc_shared((FEW,), "int32")
            T.pdl_trigger()
            T.pdl_sync()
            if t < m * share:
                ids[t] = T.cast(x0[t], "int32")
            T.sync_threads()
            sort(ids, m * share, t, y0, y1)

    @T.prim_func
    def count_kernel(x0: T.Tensor((m * share,), "int64"), s2: T.Tensor((T.ceildiv(m, PIECE), bins), "int32")):
        with T.Kernel(T.ceildiv(m, PIECE), threads=threads) as piece:
            t = T.get_thread_binding(0)
            counts = T.alloc_shared((bins,), "int32")
            clear(counts, bins, t, threads)
            T.pdl_trigger()
            T.pdl_sync()
            T.sync_threads()
            for i in T.serial(-(-PIECE * share // threads)):
                slot = piece * PIECE * share + i * threads + t
                if i * threads + t < PIECE * share and slot < m * share:
                    T.atomic_add(counts[T.max(T.min(T.cast(x0[slot], "int32"), bins - 1), 0)], 1)
            T.sync_threads()
            write(counts, s2, piece, bins, t, threads)

    few = Step(sort_kernel, when=f"m <= {FEW // share}", overlap=True)
    return [few, Step(count_kernel, when=f"m > {FEW // share}", overlap=True), spread(share, bins, "x0")]


@T.macro
def clear(counts, bins, t, threads):
    """Zeros in shared memory."""
    for i in T.serial(T.ceildiv(bins, threads)):
        if i * threads + t < bins:
            counts[i * threads + t] = 0


@T.macro
def write(counts, all_counts, piece, bins, t, threads):
    """A piece's counts to where all are."""
    for i in T.serial(T.ceildiv(bins, threads)):
        if i * threads + t < bins:
            all_counts[piece, i * threads + t] = counts[i * threads + t]
