"""Which experts each token takes: the router's product and the gate, some tokens at a time on a vector core.

A token's experts lie group by group, each group padded to a power of two, and are numbered in f32, in which
the vector cores compare. Among equals the lowest expert wins.
"""

import triton
import triton.language as tl

NONE: tl.constexpr = 16777216.0  # more than any number of an expert


@triton.jit
def highest(scores, numbers):
    """The highest of each row and the lowest number that it stands at; NONE where that is NaN."""
    top = tl.max(scores, axis=1)
    return top, tl.min(tl.where(scores == top[:, None], numbers, NONE), axis=1)


@triton.jit
def of_groups_kept(
    scores,
    TOKENS: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    KEEP: tl.constexpr,
    TOP2: tl.constexpr,
):
    """Scores [TOKENS * GROUPS, SIZE], minus infinity outside the KEEP strongest groups of a token.

    A group is kept where fewer than KEEP are stronger, or as strong with a lower number.
    """
    numbers = tl.arange(0, SIZE).to(tl.float32)[None, :]
    strength, place = highest(scores, numbers)
    if TOP2 and SIZE > 1:
        strength += tl.max(tl.where(numbers == place[:, None], float("-inf"), scores), axis=1)
    own = tl.reshape(strength, (TOKENS, GROUPS, 1))
    other = tl.reshape(strength, (TOKENS, 1, GROUPS))
    number = tl.arange(0, GROUPS).to(tl.float32)
    sooner = tl.where(number[None, :] < number[:, None], 1.0, 0.0)[None, :, :]
    before = tl.where(other > own, 1.0, tl.where(other == own, sooner, 0.0))
    rank = tl.reshape(tl.sum(before, axis=2), (TOKENS * GROUPS,))
    return tl.where((rank < KEEP)[:, None], scores, float("-inf"))


@triton.jit
def gate(
    logits,
    bias,
    ids,
    weights,
    m,
    eps,
    scale,
    EXPERTS: tl.constexpr,
    CHOSEN: tl.constexpr,
    SHARED: tl.constexpr,
    SLOTS: tl.constexpr,
    GROUPS: tl.constexpr,
    PADDED: tl.constexpr,
    SIZE: tl.constexpr,
    KEEP: tl.constexpr,
    SIGMOID: tl.constexpr,
    TOP2: tl.constexpr,
    NORMALISE: tl.constexpr,
    BIAS: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """ids and weights [m, CHOSEN + SHARED] of logits that are the sum of PARTS [m, EXPERTS]."""
    size: tl.constexpr = EXPERTS // GROUPS
    block: tl.constexpr = PADDED * SIZE
    group = tl.arange(0, PADDED)[:, None]
    member = tl.arange(0, SIZE)[None, :]
    columns = group * size + member
    known = (group < GROUPS) & (member < size)
    experts = tl.reshape(tl.where(known, columns.to(tl.float32), NONE), (1, block))
    if BIAS:
        more = tl.reshape(tl.load(bias + columns, mask=known, other=0.0), (1, block))
    slot = tl.arange(0, SLOTS)
    slots = slot.to(tl.float32)[None, :]
    for first in range(tl.program_id(0) * ROWS, m, tl.num_programs(0) * ROWS):
        rows = first + tl.arange(0, ROWS)
        inside = (rows < m)[:, None, None] & known[None, :, :]
        places = logits + rows[:, None, None] * EXPERTS + columns[None, :, :]
        given = tl.load(places, mask=inside, other=0.0)
        for part in tl.static_range(1, PARTS):
            given += tl.load(places + part * m * EXPERTS, mask=inside, other=0.0)
        score = tl.reshape(given, (ROWS, block))
        if SIGMOID:
            score = 1.0 / (1.0 + tl.exp(-score))
        else:
            score = tl.where(experts < NONE, score, float("-inf"))
            score = tl.exp(score - tl.max(score, axis=1)[:, None])
            score = score / tl.sum(score, axis=1)[:, None]
        choice = score
        if BIAS:
            choice += more
        choice = tl.where(experts < NONE, choice, float("-inf"))
        if GROUPS > 1:
            grouped = tl.reshape(choice, (ROWS * PADDED, SIZE))
            grouped = of_groups_kept(grouped, ROWS, PADDED, SIZE, KEEP, TOP2)
            choice = tl.reshape(grouped, (ROWS, block))
        taken = tl.zeros((ROWS, SLOTS), tl.float32) + (slots + (EXPERTS - CHOSEN))
        weight = tl.zeros((ROWS, SLOTS), tl.float32)
        for place in range(CHOSEN):
            _top, expert = highest(choice, experts)
            here = experts == expert[:, None]
            its = tl.sum(tl.where(here, score, 0.0), axis=1)
            choice = tl.where(here, float("-inf"), choice)
            taken = tl.where(slots == place, expert[:, None], taken)
            weight = tl.where(slots == place, its[:, None], weight)
        if NORMALISE:
            weight = weight * (scale / (tl.sum(weight, axis=1) + eps))[:, None]
        else:
            weight = weight * scale
        weight = tl.where(slots < CHOSEN, weight, 1.0)
        held = (rows < m)[:, None] & (slot < CHOSEN + SHARED)[None, :]
        out = rows[:, None] * (CHOSEN + SHARED) + slot[None, :]
        number = tl.minimum(taken.to(tl.int32), EXPERTS + SHARED - 1)
        tl.store(ids + out, number.to(ids.dtype.element_ty), mask=held)
        tl.store(weights + out, weight, mask=held)


@triton.jit
def router(
    x,
    w,
    logits,
    m,
    K: tl.constexpr,
    N: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """x w^T in f32 [PARTS, m, N], each part over its share of K: a block takes every so-manieth tile."""
    across: tl.constexpr = (N + BN - 1) // BN
    share: tl.constexpr = (K + PARTS * BK - 1) // (PARTS * BK) * BK
    for tile in range(tl.program_id(0), tl.cdiv(m, BM) * across * PARTS, tl.num_programs(0)):
        part = tile % PARTS
        rows = tile // PARTS // across * BM + tl.arange(0, BM)
        experts = tile // PARTS % across * BN + tl.arange(0, BN)
        total = tl.zeros((BM, BN), tl.float32)
        for k in range(part * share, min((part + 1) * share, K), BK):
            depth = k + tl.arange(0, BK)
            left = tl.load(
                x + rows[:, None] * K + depth[None, :],
                mask=(rows < m)[:, None] & (depth < K)[None, :],
                other=0.0,
            )
            right = tl.load(
                w + experts[:, None] * K + depth[None, :],
                mask=(experts < N)[:, None] & (depth < K)[None, :],
                other=0.0,
            )
            total = tl.dot(left, tl.trans(right), total)
        out = logits + (part * m + rows)[:, None] * N + experts[None, :]
        tl.store(out, total, mask=(rows < m)[:, None] & (experts < N)[None, :])
