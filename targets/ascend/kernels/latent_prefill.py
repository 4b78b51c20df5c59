"""Triton functions of multi-head latent attention, materialised: latents become keys and values of each head.

Both products have launches of their own, as in latent_apart.py. The chances of a tile lie together.
"""

import triton
import triton.language as tl

from .latent import LOWEST, MASKED
from .latent_apart import rows_of
from .latent_project import NONE, pairs, write_pairs
from .matmul import product, write

WHOLE, EDGE = tl.constexpr(1), tl.constexpr(2)  # blocks that all tokens of a tile see, and the others


@triton.jit
def prepare(
    x, cos, sin, q, m, scale,
    HEADS: tl.constexpr, NOPE: tl.constexpr, ROPE: tl.constexpr, WIDTH: tl.constexpr, START: tl.constexpr,
    PAIRS_IN: tl.constexpr, PAIRS_OUT: tl.constexpr, ROWS: tl.constexpr, NEAR: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    """x [m, WIDTH], cos and sin [m, ROPE / 2] -> q [m, HEADS, NOPE + ROPE], turned and scaled."""
    column = tl.arange(0, NEAR)[None, :]
    pair = tl.arange(0, HALF)[None, :]
    for tile in range(tl.program_id(0), tl.cdiv(m, ROWS) * HEADS, tl.num_programs(0)):
        row = (tile // HEADS * ROWS + tl.arange(0, ROWS))[:, None]
        head = tile % HEADS
        at = x + row.to(tl.int64) * WIDTH + START + head * (NOPE + ROPE)
        to = q + (row.to(tl.int64) * HEADS + head) * (NOPE + ROPE)
        inside = (row < m) & (column < NOPE)
        plain = tl.load(at + column, mask=inside, other=0.0).to(tl.float32) * scale
        tl.store(to + column, plain.to(q.dtype.element_ty), mask=inside)
        low, high = pairs(at + NOPE, row < m, ROPE, HALF, PAIRS_IN)
        low *= scale
        high *= scale
        if PAIRS_IN != NONE:
            angle = row * (ROPE // 2) + pair
            c = tl.load(cos + angle, mask=(row < m) & (pair < ROPE // 2), other=0.0)
            s = tl.load(sin + angle, mask=(row < m) & (pair < ROPE // 2), other=0.0)
            low, high = low * c - high * s, low * s + high * c
        write_pairs(to + NOPE, row < m, low, high, ROPE, HALF, PAIRS_OUT)


@triton.jit
def expand(
    latents, w, span, made, batch, room, padded,
    LATENT: tl.constexpr, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """latents [batch, room, LATENT] of a span times w [N, LATENT] -> made [batch, padded, N]."""
    across: tl.constexpr = (N + BN - 1) // BN
    tiles = tl.cdiv(padded, BM)
    for tile in range(tl.program_id(0), batch * tiles * across, tl.num_programs(0)):
        b = (tile // across // tiles).to(tl.int64)
        low = tile // across % tiles * BM
        first = tl.load(span + b * 2).to(tl.int32)
        left = tl.load(span + b * 2 + 1).to(tl.int32) - first - low
        rows = tl.arange(0, BM)
        columns = tile % across * BN + tl.arange(0, BN)
        x = latents + (b * room + first + low) * LATENT
        values = product(x, w, rows, left, columns, LATENT, N, BM, BN, BK)
        write(made + (b * padded + low) * N, values, rows, left, columns, N)


@triton.jit
def rounds_of(units):
    """How many units of work this core has."""
    whole = units // tl.num_programs(0)
    return whole + tl.where(unit_of(whole) < units, 1, 0)


@triton.jit
def unit_of(i):
    """A core's i-th unit. Rounds go to and fro, so that no core has the larger of all."""
    core, cores = tl.program_id(0), tl.num_programs(0)
    return i * cores + tl.where(i % 2 == 0, core, cores - 1 - core)


@triton.jit
def place_of(span, unit, batch, tokens, heads, ROWS: tl.constexpr):
    """Of a unit: its sequence, head and tile, the span's first key, how many keys there are before the tile's
    first token, and up to its last one. Tiles with the most keys go first.
    """
    tile = tl.cdiv(tokens, ROWS) - 1 - unit // (batch * heads)
    b = (unit // heads % batch).to(tl.int64)
    first = tl.load(span + b * 2).to(tl.int32)
    old = tl.load(span + b * 2 + 1).to(tl.int32) - first - tokens + tile * ROWS
    return b, unit % heads, tile, first, old, old + tl.minimum(ROWS, tokens - tile * ROWS)


@triton.jit
def finish(
    scores, s, last, left, chances, tops, totals,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr, SEEN: tl.constexpr,
):  # fmt: skip
    """Writes chances [BLOCK, HALF] of scores, what is largest among these and the sum of the chances.

    Places are compared as floats, and a NaN may go through a maximum: to the vendor's compiler that is less.
    """
    if SEEN != WHOLE:
        scores = tl.where(s[:, None] <= last[None, :], scores, MASKED)
    top = tl.maximum(tl.max(scores, 0), LOWEST, propagate_nan=tl.PropagateNan.ALL)
    some = tl.exp(scores - top[None, :])
    row = tl.arange(0, HALF)
    near = tl.arange(0, BLOCK)[:, None]
    tl.store(chances + near * ROWS + row[None, :], some.to(chances.dtype.element_ty), mask=near < left)
    tl.store(tops + row, top)
    tl.store(totals + row, tl.sum(some, 0))


@triton.jit
def score(
    q, made, keys, span, chances, tops, totals, batch, tokens, room, padded, skipped, heads,
    HEADS: tl.constexpr, NOPE: tl.constexpr, ROPE: tl.constexpr, VALUE: tl.constexpr, NEAR: tl.constexpr,
    NARROW: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, SEEN: tl.constexpr,
):  # fmt: skip
    """Chances of keys for tiles of tokens of `heads` heads behind those `skipped`, in halves, so that one is
    multiplied while the other is stored. SEEN: of which blocks: all, WHOLE or EDGE.

    q [batch, tokens, HEADS, NOPE + ROPE], made [batch, padded, HEADS, NOPE + VALUE], keys [batch, room, ROPE]
    -> chances [tiles, batch, heads, padded, 2 * HALF]; of their blocks the largest scores and the sums of
    chances, tops and totals [tiles, batch, heads, padded / BLOCK, 2 * HALF]. Tiles are in falling order.
    """
    ROWS: tl.constexpr = 2 * HALF
    WIDE: tl.constexpr = HEADS * (NOPE + VALUE)
    ACROSS: tl.constexpr = HEADS * (NOPE + ROPE)
    for i in range(0, rounds_of(batch * heads * tl.cdiv(tokens, ROWS))):
        unit = unit_of(i)
        b, head, tile, first, old, high = place_of(span, unit, batch, tokens, heads, ROWS)
        token = tl.arange(0, HALF)
        below = token + HALF
        left = tokens - tile * ROWS
        mine = q + ((b * tokens + tile * ROWS) * HEADS + skipped + head) * (NOPE + ROPE)
        q1 = rows_of(mine, token, left, ACROSS, NOPE, NEAR)
        q2 = rows_of(mine + NOPE, token, left, ACROSS, ROPE, NARROW)
        q3 = rows_of(mine, below, left, ACROSS, NOPE, NEAR)
        q4 = rows_of(mine + NOPE, below, left, ACROSS, ROPE, NARROW)
        last = (old + token).to(tl.float32)
        after = (old + below).to(tl.float32)
        own = made + (b * padded * HEADS + skipped + head) * (NOPE + VALUE)
        shared = keys + (b * room + first) * ROPE
        place = tl.cast(unit, tl.int64) * padded
        low = 0
        whole = tl.maximum(old + 1, 0) // BLOCK * BLOCK
        if SEEN == WHOLE:
            high = tl.minimum(high, whole)
        if SEEN == EDGE:
            low = whole
        for s0 in range(low, high, BLOCK):
            near = tl.arange(0, BLOCK)
            k = rows_of(own + s0.to(tl.int64) * WIDE, near, high - s0, WIDE, NOPE, NEAR)
            r = rows_of(shared, s0 + near, high, ROPE, ROPE, NARROW)
            scores = tl.dot(r, tl.trans(q2), tl.dot(k, tl.trans(q1)))
            others = tl.dot(r, tl.trans(q4), tl.dot(k, tl.trans(q3)))
            s = (s0 + near).to(tl.float32)
            to = chances + (place + s0) * ROWS
            at = (place + s0) // BLOCK * ROWS
            finish(scores, s, last, high - s0, to, tops + at, totals + at, ROWS, BLOCK, HALF, SEEN)
            to += HALF
            at += HALF
            finish(others, s, after, high - s0, to, tops + at, totals + at, ROWS, BLOCK, HALF, SEEN)


@triton.jit
def weigh(
    span, tops, totals, batch, tokens, padded, heads,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """What chances of each block count, in place of totals; DEEP blocks at a time."""
    row = tl.arange(0, ROWS)[None, :]
    for i in range(0, rounds_of(batch * heads * tl.cdiv(tokens, ROWS))):
        unit = unit_of(i)
        high = place_of(span, unit, batch, tokens, heads, ROWS)[5]
        every = tl.cdiv(tl.maximum(high, 0), BLOCK)
        at = tl.cast(unit, tl.int64) * (padded // BLOCK) * ROWS + row
        most = tl.full((ROWS,), LOWEST, tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        for low in range(0, every, DEEP):
            near = low + tl.arange(0, DEEP)[:, None]
            top = tl.load(tops + at + near * ROWS, mask=near < every, other=MASKED)
            sums = tl.load(totals + at + near * ROWS, mask=near < every, other=0.0)
            higher = tl.maximum(most, tl.max(top, 0))
            total = total * tl.exp(most - higher) + tl.sum(tl.exp(top - higher[None, :]) * sums, 0)
            most = higher
        total = tl.maximum(total, 1e-30)
        for low in range(0, every, DEEP):
            near = low + tl.arange(0, DEEP)[:, None]
            top = tl.load(tops + at + near * ROWS, mask=near < every, other=MASKED)
            weight = tl.exp(top - most[None, :]) / total[None, :]
            tl.store(totals + at + near * ROWS, weight, mask=near < every)


@triton.jit
def counted(chances, weights, left, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A block's chances [BLOCK, ROWS] by what they count; 0 for keys from `left` on."""
    row = tl.arange(0, ROWS)
    near = tl.arange(0, BLOCK)[:, None]
    some = tl.load(chances + near * ROWS + row[None, :], mask=near < left, other=0.0)
    weight = tl.load(weights + row, mask=(row < ROWS) & (left > 0), other=0.0)
    return (some.to(tl.float32) * weight[None, :]).to(some.dtype)


@triton.jit
def mix(
    chances, weights, made, span, y, batch, tokens, padded, skipped, heads,
    HEADS: tl.constexpr, NOPE: tl.constexpr, VALUE: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Values by chances -> y [batch, tokens, HEADS, VALUE]; BLOCKS at a time, each with its own buffers."""
    column = tl.arange(0, WIDE)[None, :]
    near = tl.arange(0, BLOCK)[:, None]
    for i in range(0, rounds_of(batch * heads * tl.cdiv(tokens, ROWS))):
        unit = unit_of(i)
        b, head, tile, _, _, high = place_of(span, unit, batch, tokens, heads, ROWS)
        own = made + (b * padded * HEADS + skipped + head) * (NOPE + VALUE) + NOPE
        place = tl.cast(unit, tl.int64) * padded
        sums = tl.zeros((ROWS, WIDE), tl.float32)
        for s0 in range(0, high, BLOCK * BLOCKS):
            for n in tl.static_range(BLOCKS):
                s = s0 + n * BLOCK
                at = own + s.to(tl.int64) * (HEADS * (NOPE + VALUE)) + near * (HEADS * (NOPE + VALUE))
                v = tl.load(at + column, mask=(near < high - s) & (column < VALUE), other=0.0)
                to = place + s
                some = counted(chances + to * ROWS, weights + to // BLOCK * ROWS, high - s, ROWS, BLOCK)
                sums = tl.dot(tl.trans(some), v, sums)
        row = tl.arange(0, ROWS)[:, None]
        at = y + ((b * tokens + tile * ROWS + row) * HEADS + skipped + head) * VALUE
        inside = (row < tokens - tile * ROWS) & (column < VALUE)
        tl.store(at + column, sums.to(y.dtype.element_ty), mask=inside)
