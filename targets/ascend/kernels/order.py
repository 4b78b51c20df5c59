"""Choices in the order of experts: a stable counting sort, by one block if they are few, else by all.

A slot is a token's choice, numbered token * share + j. order: the slots of expert 0, then those of expert 1, ..,
each in their own order; ends: where each expert's end. Numbers are f32, in which the vector cores compare: they
are exact below 2**24.

Counts are rows [1, BINS] and slots columns [PIECE, 1]: what is a row here and a column there, or has one axis and
is carried round a loop, the vendor's compiler lays out with 32 bytes for a number.
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
    """How many of slots first..stop each expert has [1, BINS]."""
    bins = tl.arange(0, BINS).to(tl.float32)[None, :]
    number = tl.arange(0, PIECE)[:, None]
    total = tl.zeros((1, BINS), tl.float32)
    for part in range(first, stop, PIECE):
        mine = experts_of(ids, part + number, stop, EXPERTS)
        total += tl.sum(tl.where(mine == bins, 1.0, 0.0), axis=0, keep_dims=True)
    return total


@triton.jit
def place(
    ids, order, first, stop, total, before, EXPERTS: tl.constexpr, BINS: tl.constexpr, PIECE: tl.constexpr
):
    """Puts slots first..stop in order; total: counts of all experts; before: those of earlier slots."""
    bins = tl.arange(0, BINS).to(tl.float32)[None, :]
    number = tl.arange(0, PIECE)
    column = number[:, None]
    row = tl.arange(PIECE, 2 * PIECE)[None, :] - PIECE
    lower = row.to(tl.float32) < column.to(tl.float32)
    for part in range(first, stop, PIECE):
        mine = experts_of(ids, part + column, stop, EXPERTS)
        others = experts_of(ids, part + row, stop, EXPERTS)
        own = mine == bins
        same = tl.sum(tl.where((mine == others) & lower, 1.0, 0.0), axis=1, keep_dims=True)
        below = tl.where(bins < mine, total, 0.0)
        # One sum: where a place is made of two, the adapter cannot take it apart into scattered stores.
        at = tl.sum(tl.where(own, before + same, below), axis=1)
        tl.store(order + at.to(tl.int32), (part + number).to(tl.int64), mask=part + number < stop)
        before += tl.sum(tl.where(own, 1.0, 0.0), axis=0, keep_dims=True)


@triton.jit
def write_ends(ends, total, EXPERTS: tl.constexpr, BINS: tl.constexpr, CHUNK: tl.constexpr):
    """A block writes every so-manieth CHUNK of ends."""
    bins = tl.arange(0, BINS).to(tl.float32)[None, :]
    for first in range(tl.program_id(0) * CHUNK, EXPERTS, tl.num_programs(0) * CHUNK):
        experts = first + tl.arange(0, CHUNK)
        upto = tl.where(bins <= experts.to(tl.float32)[:, None], total, 0.0)
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
    place(ids, order, 0, slots, total, tl.zeros((1, BINS), tl.float32), EXPERTS, BINS, PIECE)


@triton.jit
def slots_of_block(slots, PIECE: tl.constexpr):
    """Where this block's begin and end: whole pieces, but for the last."""
    share = tl.cdiv(tl.cdiv(slots, tl.num_programs(0)), PIECE) * PIECE
    first = tl.program_id(0) * share
    return first, tl.minimum(first + share, slots)


@triton.jit
def count(ids, counts, slots, EXPERTS: tl.constexpr, BINS: tl.constexpr, PIECE: tl.constexpr):
    """counts [blocks, BINS]: of each block's slots."""
    first, stop = slots_of_block(slots, PIECE)
    total = counted(ids, first, stop, EXPERTS, BINS, PIECE)
    tl.store(counts + tl.program_id(0) * BINS + tl.arange(0, BINS)[None, :], total)


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
    bins = tl.arange(0, BINS)[None, :]
    total = tl.zeros((1, BINS), tl.float32)
    before = tl.zeros((1, BINS), tl.float32)
    for block in range(0, tl.num_programs(0)):
        theirs = tl.load(counts + block * BINS + bins)
        total += theirs
        before += tl.where(block < tl.program_id(0), 1.0, 0.0) * theirs
    write_ends(ends, total, EXPERTS, BINS, CHUNK)
    first, stop = slots_of_block(slots, PIECE)
    place(ids, order, first, stop, total, before, EXPERTS, BINS, PIECE)
