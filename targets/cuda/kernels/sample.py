"""The next token of each text, as compiler/ops/sampling.py says, without a sort.

Logits compare as integers of the same order, keys. What stays is what has at least a certain key, and that
is searched for by its bits, 11, 11 and 10 of them: a launch of many blocks sums up, for each value of these
bits, how many tokens have it (for top-k) or what they weigh (for top-p); the next one looks from the top down
for where the sums reach the limit. Weights are whole numbers, so sums are the same in any order: a weight of
1 is ONE, and what is smaller than 1 / ONE weighs nothing.

    maxima -> 3 launches that count -> 3 that weigh -> each part's weight of what stays -> the token

The six in the middle are one function, which is slow to compile: each part of a row keeps count of them.
Searches that a text does not ask for end at once.
"""

from collections.abc import Sequence
from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Step
from ..sm import Sm
from ..widths import LANES
from .sample_pieces import (
    BINS,
    F32,
    F64,
    HALF,
    I32,
    I64,
    LEVELS,
    LOWEST,
    ONE,
    PART,
    TURNS,
    add_up,
    counting,
    largest,
    load,
    narrow,
    turned,
    vector_of,
    weight_of,
)


def maxima(size: int, threads: int) -> Any:
    """The largest key of each part, and that no level is done; sums begin at 0."""
    each, parts, warps = PART // threads, -(-size // PART), threads // LANES
    zeros = -(-LEVELS * BINS // (parts * threads))
    m = T.dynamic("m")

    @T.prim_func
    def sample_maxima(
        x0: T.Tensor((m, size), F32),
        s0: T.Tensor((m, parts, 2), I32),
        s1: T.Tensor((m, LEVELS, BINS), I64),
    ):
        with T.Kernel(parts, m, threads=threads) as (part, row):
            t = T.get_thread_binding(0)
            z = T.alloc_local((each,), F32)
            keys = T.alloc_local((each,), I32)
            tops = T.alloc_shared((warps,), I32)
            top = T.alloc_var(I32)
            T.pdl_trigger()
            T.pdl_sync()
            load(x0, row, part * PART + t * each, size, each, vector_of(size), z, keys)
            for i in T.unroll(zeros):
                at = (i * parts + part) * threads + t
                if at < LEVELS * BINS:
                    s1[row, at // BINS, at % BINS] = T.int64(0)
            top = LOWEST
            for j in T.unroll(each):
                top = T.max(top, keys[j])
            top = T.warp_reduce_max(top)
            if t % LANES == 0:
                tops[t // LANES] = top
            T.sync_threads()
            if t == 0:
                for w in T.unroll(warps):
                    top = T.max(top, tops[w])
                s0[row, part, 0] = top
                s0[row, part, 1] = 0

    return sample_maxima


def level(size: int, threads: int) -> Any:
    """The sums of the next level: counts at the first three, weights at the others."""
    each, parts, held = PART // threads, -(-size // PART), BINS // threads
    m = T.dynamic("m")

    @T.macro
    def add(z, keys, first, number, top, heat, so_far, low, high):
        shift = T.alloc_var(I32)
        above = T.alloc_var(I32)
        bin = T.alloc_var(I32)
        taken = T.alloc_var(I32)
        amount = T.alloc_local((1,), I64)
        shift, above = 21, 0
        if number % TURNS == 1:
            shift, above = 10, 21
        if number % TURNS == 2:
            shift, above = 0, 10
        for j in T.unroll(each):
            bin = (keys[j] >> shift) + BINS // 2
            taken = T.if_then_else(keys[j] >= so_far, 1, 0)
            if above != 0:
                bin = (keys[j] >> shift) & ((1 << (above - shift)) - 1)
                taken = T.if_then_else((keys[j] >> above) == (so_far >> above), 1, 0)
            if first + j < size and taken == 1:
                amount[0] = T.int64(1)
                if number >= TURNS:
                    weight_of(z[j], keys[j], top, heat, amount)
                    if (amount[0] >> HALF) != T.int64(0):
                        T.atomic_add(high[bin], T.cast(amount[0] >> HALF, "uint32"))
                T.atomic_add(low[bin], T.cast(amount[0] & ((1 << HALF) - 1), "uint32"))

    @T.macro
    def body(x0, heat, k, part_of, tops, sums, known, part, row, number):
        t = T.get_thread_binding(0)
        z = T.alloc_local((each,), F32)
        keys = T.alloc_local((each,), I32)
        top = T.alloc_local((1,), I32)
        low = T.alloc_shared((BINS,), "uint32")
        high = T.alloc_shared((BINS,), "uint32")
        found = T.alloc_shared((2,), I64)
        total = T.alloc_var(I64)
        load(x0, row, part * PART + t * each, size, each, vector_of(size), z, keys)
        for j in T.unroll(held):
            low[j * threads + t] = T.uint32(0)
            high[j * threads + t] = T.uint32(0)
        if t == 0:
            found[0] = T.int64(LOWEST)
            found[1] = k
        largest(tops, row, parts, t, top)
        T.sync_threads()
        # The first of a search has none before it, but weighing is of what counting leaves.
        wanted = T.alloc_var(I32)
        wanted = T.if_then_else(number == 0, 0, 1)
        if number == TURNS:
            wanted = T.if_then_else(counting(k, size), 1, 0)
        narrow(wanted, T.max(number - 1, 0), sums, known, part_of, row, t, threads, found)
        if part == 0 and t == 0:
            known[row, number, 0] = found[0]
            known[row, number, 1] = found[1]
        add(z, keys, part * PART + t * each, number, top[0], heat, T.cast(found[0], I32), low, high)
        T.sync_threads()
        for j in T.unroll(held):
            total = T.cast(low[j * threads + t], I64) + (T.cast(high[j * threads + t], I64) << HALF)
            if total != T.int64(0):
                T.atomic_add(sums[row, number, j * threads + t], total)

    @T.prim_func
    def sample_level(
        x0: T.Tensor((m, size), F32),
        x1: T.Tensor((m,), F32),
        x2: T.Tensor((m,), I64),
        x3: T.Tensor((m,), F32),
        s0: T.Tensor((m, parts, 2), I32),
        s1: T.Tensor((m, LEVELS, BINS), I64),
        s2: T.Tensor((m, LEVELS + 1, 2), I64),
    ):
        with T.Kernel(parts, m, threads=threads) as (part, row):
            number = T.alloc_var(I32)
            T.pdl_trigger()
            T.pdl_sync()
            number = s0[row, part, 1]
            T.sync_threads()
            if T.get_thread_binding(0) == 0:
                s0[row, part, 1] = number + 1
            asked = T.if_then_else(number >= TURNS, x3[row] < 1.0, counting(x2[row], size))
            if T.Not(T.And(x1[row] > 0.0, asked)):
                T.thread_return()
            body(x0, x1[row], x2[row], x3[row], s0, s1, s2, part, row, number)

    return sample_level


@T.macro
def weigh(
    z: Any, keys: Any, first: Any, size: int, each: int, least: Any, top: Any, heat: Any, weights: Any
) -> None:
    """weights [each]: those of logits that stay, 0 for the others; heat: 0 and below is greedy."""
    amount = T.alloc_local((1,), I64)
    for j in T.unroll(each):
        weights[j] = T.int64(0)
        if first + j < size and keys[j] >= least:
            amount[0] = T.int64(ONE)
            if heat > 0.0:
                weight_of(z[j], keys[j], top, heat, amount)
            weights[j] = amount[0]


def staying(size: int, threads: int) -> Any:
    """The weight of what stays, in each part, and all of the softmax in it."""
    each, parts, warps = PART // threads, -(-size // PART), threads // LANES
    m = T.dynamic("m")

    @T.prim_func
    def sample_staying(
        x0: T.Tensor((m, size), F32),
        x1: T.Tensor((m,), F32),
        x2: T.Tensor((m,), I64),
        x3: T.Tensor((m,), F32),
        s0: T.Tensor((m, parts, 2), I32),
        s1: T.Tensor((m, LEVELS, BINS), I64),
        s2: T.Tensor((m, LEVELS + 1, 2), I64),
        s3: T.Tensor((m, parts), I64),
        s4: T.Tensor((m, parts), F32),
    ):
        with T.Kernel(parts, m, threads=threads) as (part, row):
            t = T.get_thread_binding(0)
            z = T.alloc_local((each,), F32)
            keys = T.alloc_local((each,), I32)
            weights = T.alloc_local((each,), I64)
            top = T.alloc_local((1,), I32)
            found = T.alloc_shared((2,), I64)
            totals = T.alloc_shared((warps,), I64)
            chances = T.alloc_shared((warps,), F32)
            total = T.alloc_var(I64)
            chance = T.alloc_var(F32)
            T.pdl_trigger()
            T.pdl_sync()
            load(x0, row, part * PART + t * each, size, each, vector_of(size), z, keys)
            largest(s0, row, parts, t, top)
            if t == 0:
                found[0] = T.cast(top[0], I64)
                if x1[row] > 0.0:
                    found[0] = T.int64(LOWEST)
            T.sync_threads()
            wanted = T.alloc_var(I32)
            last = T.alloc_var(I32)
            wanted, last = T.if_then_else(counting(x2[row], size), 1, 0), TURNS - 1
            if x3[row] < 1.0:
                wanted, last = 1, LEVELS - 1
            if T.Not(x1[row] > 0.0):
                wanted = 0
            narrow(wanted, last, s1, s2, x3[row], row, t, threads, found)
            weigh(
                z, keys, part * PART + t * each, size, each, T.cast(found[0], I32), top[0], x1[row], weights
            )
            total = T.int64(0)
            chance = 0.0
            for j in T.unroll(each):
                total += weights[j]
                if keys[j] == top[0]:
                    if part * PART + t * each + j < size:
                        chance += 1.0
                else:
                    chance += T.exp(z[j] - T.reinterpret(turned(top[0]), F32))
            total = T.warp_reduce_sum(total)
            chance = T.warp_reduce_sum(chance)
            if t % LANES == 0:
                totals[t // LANES] = total
                chances[t // LANES] = chance
            T.sync_threads()
            if t == 0:
                for w in T.unroll(1, warps):
                    total += totals[w]
                    chance += chances[w]
                s3[row, part] = total
                s4[row, part] = chance
                if part == 0:
                    s2[row, LEVELS, 0] = found[0]

    return sample_staying


def token(size: int, threads: int) -> Any:
    """The part in which the weights add up to what is drawn, and the token in it."""
    each, parts, warps = PART // threads, -(-size // PART), threads // LANES
    m = T.dynamic("m")

    @T.prim_func
    def sample_token(
        x0: T.Tensor((m, size), F32),
        x1: T.Tensor((m,), F32),
        x4: T.Tensor((m,), F32),
        s0: T.Tensor((m, parts, 2), I32),
        s2: T.Tensor((m, LEVELS + 1, 2), I64),
        s3: T.Tensor((m, parts), I64),
        s4: T.Tensor((m, parts), F32),
        y0: T.Tensor((m,), I64),
        y1: T.Tensor((m,), F32),
    ):
        with T.Kernel(m, threads=threads) as row:
            t = T.get_thread_binding(0)
            z = T.alloc_local((each,), F32)
            keys = T.alloc_local((each,), I32)
            weights = T.alloc_local((each,), I64)
            top = T.alloc_local((1,), I32)
            before = T.alloc_local((2,), I64)
            totals = T.alloc_shared((warps,), I64)
            heavy = T.alloc_shared((parts,), I64)
            chances = T.alloc_shared((parts,), F32)
            chosen = T.alloc_var(I32)
            goal = T.alloc_var(I64)
            total = T.alloc_var(I64)
            chance = T.alloc_var(F32)
            T.pdl_trigger()
            T.pdl_sync()
            for i in T.unroll(-(-parts // threads)):
                if i * threads + t < parts:
                    heavy[i * threads + t] = s3[row, i * threads + t]
                    chances[i * threads + t] = s4[row, i * threads + t]
            largest(s0, row, parts, t, top)
            T.sync_threads()
            total = T.int64(0)
            chance = 0.0
            for p in T.serial(parts):
                total += heavy[p]
                chance += chances[p]
            goal = T.int64(0)
            if x1[row] > 0.0:
                goal = T.cast(T.floor(T.cast(x4[row], F64) * T.cast(total, F64)), I64)
                goal = T.max(T.min(goal, total - T.int64(1)), T.int64(0))
            # From here on total is that of the parts before.
            total = T.int64(0)
            chosen = parts - 1
            for p in T.serial(parts):
                if chosen == parts - 1 and total + heavy[p] > goal:
                    chosen = p
                elif chosen == parts - 1:
                    total += heavy[p]
            load(x0, row, chosen * PART + t * each, size, each, 1, z, keys)
            weigh(z, keys, chosen * PART + t * each, size, each, T.cast(s2[row, LEVELS, 0], I32), top[0],
                  x1[row], weights)  # fmt: skip
            goal -= total
            total = T.int64(0)
            for j in T.unroll(each):
                total += weights[j]
            add_up(total, t, warps, totals, before)
            for j in T.unroll(each):
                if before[0] <= goal and before[0] + weights[j] > goal:
                    y0[row] = T.cast(chosen * PART + t * each + j, I64)
                    y1[row] = -T.log(chance)
                    if keys[j] != top[0]:
                        y1[row] = z[j] - T.reinterpret(turned(top[0]), F32) - T.log(chance)
                before[0] += weights[j]

    return sample_token


def choose_token(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """Token and log-probability of each row of logits [m, v]."""
    size, threads = kernel["v"], int(schedule["threads"])
    search = [level(size, threads)] * LEVELS
    functions = (maxima(size, threads), *search, staying(size, threads), token(size, threads))
    return [Step(function, overlap=True) for function in functions]
