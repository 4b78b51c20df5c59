"""What kernels of sample.py are made of: logits as keys, their weights, and from one level to the next."""

from typing import Any

import tilelang.language as T

from ..widths import LANES, widest

PART = 4096  # logits of a block
BINS = 2048  # values of the bits that one launch looks at
TURNS, LEVELS = 3, 6  # of one search, of both
ONE = 1 << 39
# A block's sums are kept in two halves, since shared memory adds 32 bits at once: PART times either fits.
HALF = 20
LOWEST = -(1 << 31)  # the key of nothing
I32, I64, F32, F64 = "int32", "int64", "float32", "float64"


@T.macro
def load(x: Any, row: Any, first: Any, size: int, each: int, vector: int, z: Any, keys: Any) -> None:
    """z [each]: the logits of a row from `first` on, some at once; -inf behind its end. keys: theirs."""
    bits = T.alloc_var(I32)
    for h in T.unroll(each // vector):
        if first + h * vector < size:
            for v in T.vectorized(vector):
                z[h * vector + v] = x[row, first + h * vector + v]
        else:
            for v in T.unroll(vector):
                z[h * vector + v] = -T.infinity(F32)
    for j in T.unroll(each):
        bits = 0  # of both zeros
        if z[j] != 0.0:
            bits = T.reinterpret(z[j], I32)
        keys[j] = turned(bits)


def vector_of(size: int) -> int:
    """How many logits a load takes."""
    return min(4, widest(size))


def turned(bits: Any) -> Any:
    """From a float's bits to its key, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@T.macro
def weight_of(z: Any, key: Any, top: Any, heat: Any, weight: Any) -> None:
    """weight [1]: that of a logit; top: the key of the largest."""
    part = T.alloc_var(F32)
    part = 0.0
    if key != top:
        part = z - T.reinterpret(turned(top), F32)
    part = T.exp(part / heat)
    weight[0] = T.int64(0)
    if part > 0.0:
        weight[0] = T.cast(part * T.float32(ONE), I64)


@T.macro
def largest(tops: Any, row: Any, parts: int, t: Any, top: Any) -> None:
    """top [1]: the key of the row's largest logit."""
    top[0] = LOWEST
    for i in T.unroll(-(-parts // LANES)):
        if i * LANES + t % LANES < parts:
            top[0] = T.max(top[0], tops[row, i * LANES + t % LANES, 0])
    top[0] = T.warp_reduce_max(top[0])


@T.macro
def add_up(own: Any, t: Any, warps: int, totals: Any, before: Any) -> None:
    """before [2]: the sum over the threads before this one, and over all; totals [warps] is shared memory."""
    upto = T.alloc_var(I64)
    got = T.alloc_var(I64)
    upto = own
    for step in T.unroll(5):
        got = T.shfl_up(upto, 1 << step)
        if t % LANES >= (1 << step):
            upto += got
    if t % LANES == LANES - 1:
        totals[t // LANES] = upto
    T.sync_threads()
    before[0] = upto - own
    # Each warp adds up those before it by itself: one after the other they took most of a search's time.
    upto = T.int64(0)
    if t % LANES < warps:
        upto = totals[t % LANES]
    for step in T.unroll(5):
        got = T.shfl_up(upto, 1 << step)
        if t % LANES >= (1 << step):
            upto += got
    got = T.shfl_sync(upto, T.max(t // LANES - 1, 0))
    if t >= LANES:
        before[0] += got
    before[1] = T.shfl_sync(upto, warps - 1)


@T.macro
def narrow(wanted: Any, level: Any, sums: Any, known: Any, part: Any, row: Any, t: Any, threads: int,
           found: Any) -> None:  # fmt: skip
    """found [2], shared: of what known [.., 2] and sums say of a level, the bits so far and the limit that is
    left for those behind them; as it was unless that is wanted.
    """
    held = BINS // threads
    own = T.alloc_local((held,), I64)
    before = T.alloc_local((2,), I64)
    totals = T.alloc_shared((threads // LANES,), I64)
    total = T.alloc_var(I64)
    limit = T.alloc_var(I64)
    bits = T.alloc_var(I64)
    total = T.int64(0)
    for j in T.unroll(held):
        own[j] = sums[row, level, BINS - 1 - t * held - j]
        total += own[j]
    add_up(total, t, threads // LANES, totals, before)
    limit = known[row, level, 1]
    if level == TURNS:  # there it is a part of all
        limit = T.cast(T.ceil(T.cast(part, F64) * T.cast(before[1], F64)), I64)
        limit = T.max(limit, T.int64(1))
    if wanted == 0:
        limit = T.int64(0)
    for j in T.unroll(held):
        if before[0] < limit and before[0] + own[j] >= limit:
            bits = T.cast(BINS - 1 - t * held - j, I64)
            if level % TURNS == 0:
                found[0] = (bits - BINS // 2) << T.int64(21)
            elif level % TURNS == 1:
                found[0] = known[row, level, 0] | (bits << T.int64(10))
            else:
                found[0] = known[row, level, 0] | bits
            found[1] = limit - before[0]
        before[0] += own[j]
    T.sync_threads()


def counting(k: Any, size: int) -> Any:
    """Whether top-k leaves any token out."""
    return T.And(k >= 1, k < size)
