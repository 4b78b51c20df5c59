"""Which experts each token takes: the router's product and the gate, some tokens at a time on a vector core.

Experts are padded to a power of two and numbered in f32, in which the vector cores compare. Among equals the
lowest expert wins.
"""

import triton
import triton.language as tl


@triton.jit
def highest(scores, numbers, COUNT: tl.constexpr):
    """The highest of each row and the lowest number that it stands at; numbers: those of the columns."""
    top = tl.max(scores, axis=1)
    here = tl.min(tl.where(scores == top[:, None], numbers, COUNT), axis=1)
    return top, tl.minimum(here, COUNT - 1)


@triton.jit
def of_groups_kept(
    scores,
    experts,
    EXPERTS: tl.constexpr,
    GROUPS: tl.constexpr,
    PADDED: tl.constexpr,
    KEEP: tl.constexpr,
    TOP2: tl.constexpr,
):
    """Scores [ROWS, BLOCK], minus infinity for experts outside the KEEP strongest groups of a token."""
    size: tl.constexpr = EXPERTS // GROUPS
    group = ((experts + 0.5) / size).to(tl.int32).to(tl.float32)
    groups = tl.arange(0, PADDED).to(tl.float32)[None, :]
    strength = tl.zeros((scores.shape[0], PADDED), tl.float32) + float("-inf")
    for g in tl.static_range(GROUPS):
        mine = tl.where(group == g, scores, float("-inf"))
        first, place = highest(mine, experts, EXPERTS)
        if TOP2 and size > 1:
            first += tl.max(tl.where(experts == place[:, None], float("-inf"), mine), axis=1)
        strength = tl.where(groups == g, first[:, None], strength)
    kept = tl.zeros((scores.shape[0], scores.shape[1]), tl.float32)
    for _ in tl.static_range(KEEP):
        _top, place = highest(strength, groups, GROUPS)
        strength = tl.where(groups == place[:, None], float("-inf"), strength)
        kept += tl.where(group == place[:, None], 1.0, 0.0)
    return tl.where(kept > 0.0, scores, float("-inf"))


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
    BLOCK: tl.constexpr,
    CHOSEN: tl.constexpr,
    SHARED: tl.constexpr,
    SLOTS: tl.constexpr,
    GROUPS: tl.constexpr,
    PADDED: tl.constexpr,
    KEEP: tl.constexpr,
    SIGMOID: tl.constexpr,
    TOP2: tl.constexpr,
    NORMALISE: tl.constexpr,
    BIAS: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """ids and weights [m, CHOSEN + SHARED] of logits that are the sum of PARTS [m, EXPERTS]."""
    columns = tl.arange(0, BLOCK)
    experts = columns.to(tl.float32)[None, :]
    known = (columns < EXPERTS)[None, :]
    slot = tl.arange(0, SLOTS)
    slots = slot.to(tl.float32)[None, :]
    for first in range(tl.program_id(0) * ROWS, m, tl.num_programs(0) * ROWS):
        rows = first + tl.arange(0, ROWS)
        inside = (rows < m)[:, None] & known
        places = logits + rows[:, None] * EXPERTS + columns[None, :]
        score = tl.load(places, mask=inside, other=0.0)
        for part in range(1, PARTS):
            score += tl.load(places + part * m * EXPERTS, mask=inside, other=0.0)
        if SIGMOID:
            score = 1.0 / (1.0 + tl.exp(-score))
        else:
            score = tl.where(known, score, float("-inf"))
            score = tl.exp(score - tl.max(score, axis=1)[:, None])
            score = score / tl.sum(score, axis=1)[:, None]
        choice = score
        if BIAS:
            choice += tl.load(bias + columns, mask=columns < EXPERTS, other=0.0)[None, :]
        choice = tl.where(known, choice, float("-inf"))
        if GROUPS > 1:
            choice = of_groups_kept(choice, experts, EXPERTS, GROUPS, PADDED, KEEP, TOP2)
        taken = tl.zeros((ROWS, SLOTS), tl.float32) + (slots + (EXPERTS - CHOSEN))
        weight = tl.zeros((ROWS, SLOTS), tl.float32)
        for place in tl.static_range(CHOSEN):
            _top, expert = highest(choice, experts, EXPERTS)
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
        tl.store(ids + out, taken.to(ids.dtype.element_ty), mask=held)
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
