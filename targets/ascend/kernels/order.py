"""Choices in the order of experts: a stable sort, of few slots by comparing all of them, of many by counting.

A slot is a token's choice, numbered token * share + j. order: the slots of expert 0, then those of expert 1,
.., each in their own order; ends: where each expert's end. Numbers are f32, in which the vector cores
compare: they are exact up to 2**24.
"""

import triton
import triton.language as tl

LAST: tl.constexpr = 16777216.0  # more than any key


@triton.jit
def nearest(ids, slot, stop, EXPERTS: tl.constexpr):
    """The experts of these slots, anything from stop on. An id that is no expert counts as the nearest.

    None is NaN, which PropagateNan.ALL does not look for.
    """
    given = tl.load(ids + slot, mask=slot < stop, other=0).to(tl.float32)
    given = tl.maximum(given, 0.0, tl.PropagateNan.ALL)
    return tl.minimum(given, EXPERTS - 1.0, tl.PropagateNan.ALL)


@triton.jit
def experts_of(ids, slot, stop, EXPERTS: tl.constexpr):
    """The experts of these slots, -1 from stop on."""
    return tl.where(slot < stop, nearest(ids, slot, stop, EXPERTS), -1.0)


@triton.jit
def keys_of(ids, slot, slots, EXPERTS: tl.constexpr):
    """What slots are ordered by, different numbers; LAST behind the last slot."""
    key = nearest(ids, slot, slots, EXPERTS) * slots + slot.to(tl.float32)
    return tl.where(slot < slots, key, LAST)


@triton.jit
def lower(ids, slots, bounds, EXPERTS: tl.constexpr, PIECE: tl.constexpr, CHUNK: tl.constexpr):
    """How many keys are lower than each of the bounds [PIECE]."""
    found = tl.zeros((PIECE, CHUNK), tl.float32)
    for first in range(0, slots, CHUNK):
        keys = keys_of(ids, first + tl.arange(0, CHUNK), slots, EXPERTS)
        found += tl.where(keys[None, :] < bounds[:, None], 1.0, 0.0)
    return tl.sum(found, axis=1)


@triton.jit
def sort(ids, order, ends, slots, EXPERTS: tl.constexpr, PIECE: tl.constexpr, CHUNK: tl.constexpr):
    """A block finds the places of every so-manieth PIECE of slots, and every so-manieth PIECE of ends.

    The last blocks begin with the ends, for they have no slots where these are few.
    """
    block, blocks = tl.program_id(0), tl.num_programs(0)
    for first in range(block * PIECE, slots, blocks * PIECE):
        slot = first + tl.arange(0, PIECE)
        place = lower(ids, slots, keys_of(ids, slot, slots, EXPERTS), EXPERTS, PIECE, CHUNK)
        tl.store(order + place.to(tl.int32), slot.to(tl.int64), mask=slot < slots)
    for first in range((blocks - 1 - block) * PIECE, EXPERTS, blocks * PIECE):
        expert = first + tl.arange(0, PIECE)
        end = lower(ids, slots, (expert + 1).to(tl.float32) * slots, EXPERTS, PIECE, CHUNK)
        tl.store(ends + expert, end.to(tl.int64), mask=expert < EXPERTS)


@triton.jit
def count(ids, counts, slots, EXPERTS: tl.constexpr, BINS: tl.constexpr, PIECE: tl.constexpr):
    """counts [blocks, BINS]: how many of a block's slots each expert has."""
    block, share = tl.program_id(0), tl.cdiv(slots, tl.num_programs(0))
    stop = tl.minimum((block + 1) * share, slots)
    bins = tl.arange(0, BINS)
    total = tl.zeros((BINS,), tl.float32)
    for first in range(block * share, stop, PIECE):
        mine = experts_of(ids, first + tl.arange(0, PIECE), stop, EXPERTS)
        total += tl.sum(tl.where(mine[:, None] == bins.to(tl.float32)[None, :], 1.0, 0.0), axis=0)
    tl.store(counts + block * BINS + bins, total)


@triton.jit
def counted(counts, BINS: tl.constexpr, PIECE: tl.constexpr):
    """How many slots each expert has [BINS]: of all blocks, and of those before this."""
    block, blocks = tl.program_id(0), tl.num_programs(0)
    bins = tl.arange(0, BINS)
    total = tl.zeros((BINS,), tl.float32)
    before = tl.zeros((BINS,), tl.float32)
    for first in range(0, blocks, PIECE):
        others = first + tl.arange(0, PIECE)
        places = counts + others[:, None] * BINS + bins[None, :]
        theirs = tl.load(places, mask=(others < blocks)[:, None], other=0.0)
        total += tl.sum(theirs, axis=0)
        before += tl.sum(theirs * tl.where(others < block, 1.0, 0.0)[:, None], axis=0)
    return total, before


@triton.jit
def write_ends(ends, total, EXPERTS: tl.constexpr, BINS: tl.constexpr, PIECE: tl.constexpr):
    """A block writes every so-manieth PIECE of ends."""
    bins = tl.arange(0, BINS).to(tl.float32)[None, :]
    for first in range(tl.program_id(0) * PIECE, EXPERTS, tl.num_programs(0) * PIECE):
        experts = first + tl.arange(0, PIECE)
        upto = tl.where(bins <= experts.to(tl.float32)[:, None], total[None, :], 0.0)
        tl.store(ends + experts, tl.sum(upto, axis=1).to(tl.int64), mask=experts < EXPERTS)


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
    """Each block puts its slots in place: behind other experts', other blocks' and its own earlier ones.

    All three go into one sum: the vendor's compiler takes no sum of sums for a place to store at.
    """
    total, before = counted(counts, BINS, PIECE)
    write_ends(ends, total, EXPERTS, BINS, PIECE)
    block, share = tl.program_id(0), tl.cdiv(slots, tl.num_programs(0))
    stop = tl.minimum((block + 1) * share, slots)
    bins = tl.arange(0, BINS).to(tl.float32)[None, :]
    column = tl.arange(0, CHUNK)
    for first in range(block * share, stop, PIECE):
        slot = first + tl.arange(0, PIECE)
        mine = experts_of(ids, slot, stop, EXPERTS)[:, None]
        least = tl.where(bins < mine, total[None, :], tl.where(bins == mine, before[None, :], 0.0))
        found = tl.where(column[None, :] == 0, tl.sum(least, axis=1)[:, None], 0.0)
        for start in range(block * share, first + PIECE, CHUNK):
            other = start + column
            same = experts_of(ids, other, stop, EXPERTS)[None, :] == mine
            sooner = other.to(tl.float32)[None, :] < slot.to(tl.float32)[:, None]
            found += tl.where(same & sooner, 1.0, 0.0)
        place = tl.sum(found, axis=1)
        tl.store(order + place.to(tl.int32), slot.to(tl.int64), mask=slot < stop)
