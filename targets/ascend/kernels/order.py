"""Choices in the order of experts: a stable counting sort, by one block if they are few, else by all.

A slot is a token's choice, numbered token * share + j. order: the slots of expert 0, then those of expert 1,
.., each in their own order; ends: where each expert's end. Numbers are f32, in which the vector cores
compare: they are exact below 2**24.
"""

import triton
import triton.language as tl


@triton.jit
def experts_of(ids, slots, stop, EXPERTS: tl.constexpr):
    """Of these slots, -1 from stop on. An id that is no expert counts as the nearest."""
    found = tl.load(ids + slots, mask=slots < stop, other=0).to(tl.float32)
    return tl.where(slots < stop, tl.minimum(tl.maximum(found, 0.0), EXPERTS - 1.0), -1.0)


@triton.jit
def counted(ids, first, stop, EXPERTS: tl.constexpr, BINS: tl.constexpr, PIECE: tl.constexpr):
    """How many of slots first..stop each expert has [BINS]."""
    bins = tl.arange(0, BINS).to(tl.float32)[None, :]
    number = tl.arange(0, PIECE)[:, None]
    total = tl.zeros((BINS,), tl.float32)
    for part in range(first, stop, PIECE):
        mine = experts_of(ids, part + number, stop, EXPERTS)
        total += tl.sum(tl.where(mine == bins, 1.0, 0.0), axis=0)
    return total


@triton.jit
def place(
    ids,
    order,
    first,
    stop,
    total,
    before,
    EXPERTS: tl.constexpr,
    BINS: tl.constexpr,
):
    """Puts slots first..stop in order, one by one; total: counts of all experts; before: of earlier slots."""
    bins = tl.arange(0, BINS).to(tl.float32)
    one = tl.arange(0, 1)  # of a vector, not a scalar: those are written by whole lines of 64 bytes
    for slot in range(first, stop):
        given = tl.load(ids + slot).to(tl.float32)
        mine = tl.minimum(tl.maximum(given, 0.0), EXPERTS - 1.0)
        own = bins == mine
        at = tl.sum(tl.where(bins < mine, total, tl.where(own, before, 0.0)), axis=0)
        tl.store(order + at.to(tl.int32) + one, (slot + one).to(tl.int64))
        before += tl.where(own, 1.0, 0.0)


@triton.jit
def write_ends(ends, total, EXPERTS: tl.constexpr, BINS: tl.constexpr, CHUNK: tl.constexpr):
    """A block writes every so-manieth CHUNK of ends."""
    bins = tl.arange(0, BINS).to(tl.float32)[None, :]
    for first in range(tl.program_id(0) * CHUNK, EXPERTS, tl.num_programs(0) * CHUNK):
        experts = first + tl.arange(0, CHUNK)
        upto = tl.where(bins <= experts.to(tl.float32)[:, None], total[None, :], 0.0)
        tl.store(ends + experts, tl.sum(upto, axis=1).to(tl.int64), mask=experts < EXPERTS)


@triton.jit
def sort(
    ids,
    order,
    ends,
    slots,
    EXPERTS: tl.constexpr,
    BINS: tl.constexpr,
    PIECE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """All slots, by one block."""
    total = counted(ids, 0, slots, EXPERTS, BINS, PIECE)
    write_ends(ends, total, EXPERTS, BINS, CHUNK)
    place(ids, order, 0, slots, total, tl.zeros((BINS,), tl.float32), EXPERTS, BINS)


@triton.jit
def count(
    ids,
    counts,
    slots,
    EXPERTS: tl.constexpr,
    BINS: tl.constexpr,
    PIECE: tl.constexpr,
):
    """counts [blocks, BINS]: of each block's slots."""
    block, share = tl.program_id(0), tl.cdiv(tl.cdiv(slots, tl.num_programs(0)), PIECE) * PIECE
    stop = tl.minimum((block + 1) * share, slots)
    total = counted(ids, block * share, stop, EXPERTS, BINS, PIECE)
    tl.store(counts + block * BINS + tl.arange(0, BINS), total)


@triton.jit
def spread(
    ids,
    counts,
    order,
    ends,
    slots,
    EXPERTS: tl.constexpr,
    BINS: tl.constexpr,
    PIECE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Each block puts its slots in place, behind those of the blocks before it."""
    block, share = tl.program_id(0), tl.cdiv(tl.cdiv(slots, tl.num_programs(0)), PIECE) * PIECE
    bins = tl.arange(0, BINS)
    total = tl.zeros((BINS,), tl.float32)
    before = tl.zeros((BINS,), tl.float32)
    for other in range(0, tl.num_programs(0)):
        theirs = tl.load(counts + other * BINS + bins)
        total += theirs
        before += tl.where(other < block, 1.0, 0.0) * theirs
    write_ends(ends, total, EXPERTS, BINS, CHUNK)
    stop = tl.minimum((block + 1) * share, slots)
    place(ids, order, block * share, stop, total, before, EXPERTS, BINS)
