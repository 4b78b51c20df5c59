"""Triton functions of multi-head latent attention, absorbed, with its two products apart.

Scores are made with keys down and heads across: their largest and their sum are then found along the first
axis, which is the cheaper one. A block of keys has chances by its own largest score; how much it counts is
known when all are done. Cube and vector cores overlap where neither waits for what it will make itself, so
no loop carries numbers of the vector cores.
"""

import triton
import triton.language as tl

from .latent import LOWEST, MASKED


@triton.jit
def rows_of(p, places, end, STRIDE: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """Rows at these places, WIDTH numbers and zeros up to WIDE; anything for places from `end` on."""
    column = tl.arange(0, WIDE)
    at = p + places[:, None] * STRIDE + column[None, :]
    if WIDTH == WIDE:
        # Filling what is masked would make loads wait for the product before.
        return tl.load(at, mask=places[:, None] < end, care_padding=False)
    return tl.load(at, mask=(places[:, None] < end) & (column[None, :] < WIDTH), other=0.0)


@triton.jit
def finish(
    scores, s, row, rows, high, stops, scale, chances, tops, totals, BLOCK: tl.constexpr, ONE: tl.constexpr,
    SCALED: tl.constexpr,
):  # fmt: skip
    """Writes chances [BLOCK, n] of scores, what is largest among these and the sum of the chances."""
    if SCALED:
        scores = scores * scale
    if ONE:
        scores = tl.where(s[:, None] < high, scores, MASKED)
    else:
        scores = tl.where(s[:, None] < tl.minimum(stops, high)[None, :], scores, MASKED)
    top = tl.max(scores, 0)
    some = tl.exp(scores - top[None, :])
    near = tl.arange(0, BLOCK)
    inside = (s[:, None] < high) & (row[None, :] < rows)
    tl.store(chances + near[:, None] * rows + row[None, :], some.to(tl.bfloat16), mask=inside)
    tl.store(tops + row, top, mask=row < rows)
    tl.store(totals + row, tl.sum(some, 0), mask=row < rows)


@triton.jit
def score(
    q, latents, keys, span, chances, tops, totals, batch, tokens, room, seen, parts, scale,
    HEADS: tl.constexpr, LATENT: tl.constexpr, ROPE: tl.constexpr, WIDE: tl.constexpr, NARROW: tl.constexpr,
    ROWS: tl.constexpr, HALVES: tl.constexpr, BLOCK: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Chances of the keys of each sequence for ROWS heads of tokens, in HALVES, so that one is multiplied
    while the other is stored.

    q [batch, tokens, HEADS, LATENT + ROPE], latents [batch, room, LATENT], keys [batch, room, ROPE],
    span [batch, 2] -> chances [batch, seen, tokens * HEADS] from the span's first key on; of its blocks
    the largest scores and the sums of chances, tops and totals [batch, seen / BLOCK + 1, tokens * HEADS].
    """
    rows = tokens * HEADS
    tiles = tl.cdiv(rows, ROWS)
    blocks = seen // BLOCK + 1
    HALF: tl.constexpr = ROWS // HALVES
    ONE: tl.constexpr = HEADS % ROWS == 0
    for unit in range(tl.program_id(0), batch * parts * tiles, tl.num_programs(0)):
        tile = unit % tiles
        part = unit // tiles % parts
        b = (unit // tiles // parts).to(tl.int64)
        first = tl.load(span + b * 2).to(tl.int32)
        end = tl.load(span + b * 2 + 1).to(tl.int32)
        early = end - tokens + 1
        last = tl.minimum(tile * ROWS + ROWS, rows) - 1
        length = tl.cdiv(tl.cdiv(tl.maximum(end - first, 0), parts), BLOCK) * BLOCK
        low = first + part * length
        high = tl.minimum(low + length, early + last // HEADS)
        row = tile * ROWS + tl.arange(0, HALF)
        stops = early + row // HEADS
        mine = q + b * rows * (LATENT + ROPE)
        q1 = rows_of(mine, row, rows, LATENT + ROPE, LATENT, WIDE)
        q2 = rows_of(mine + LATENT, row, rows, LATENT + ROPE, ROPE, NARROW)
        if HALVES == 2:
            below = row + HALF
            after = early + below // HEADS
            q3 = rows_of(mine, below, rows, LATENT + ROPE, LATENT, WIDE)
            q4 = rows_of(mine + LATENT, below, rows, LATENT + ROPE, ROPE, NARROW)
        latent = latents + b * room * LATENT
        key = keys + b * room * ROPE
        for s0 in range(low, high, BLOCK):
            s = s0 + tl.arange(0, BLOCK)
            c = rows_of(latent, s, high, LATENT, LATENT, WIDE)
            k = rows_of(key, s, high, ROPE, ROPE, NARROW)
            to = chances + (b * seen + s0 - first) * rows
            at = (b * blocks + (s0 - first) // BLOCK) * rows
            scores = tl.dot(k, tl.trans(q2), tl.dot(c, tl.trans(q1)))
            if HALVES == 2:
                others = tl.dot(k, tl.trans(q4), tl.dot(c, tl.trans(q3)))
            finish(scores, s, row, rows, high, stops, scale, to, tops + at, totals + at, BLOCK, ONE, SCALED)
            if HALVES == 2:
                finish(
                    others, s, below, rows, high, after, scale, to, tops + at, totals + at, BLOCK, ONE, SCALED
                )


@triton.jit
def weigh(
    span, tops, totals, wholes, batch, tokens, seen,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, MANY: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """wholes [batch, tokens * HEADS]: the logarithm of what all chances add up to, of all blocks.

    MANY heads of tokens, DEEP blocks at a time.
    """
    rows = tokens * HEADS
    tiles = tl.cdiv(rows, MANY)
    blocks = seen // BLOCK + 1
    for unit in range(tl.program_id(0), batch * tiles, tl.num_programs(0)):
        b = (unit // tiles).to(tl.int64)
        row = unit % tiles * MANY + tl.arange(0, MANY)
        first = tl.load(span + b * 2).to(tl.int32)
        end = tl.load(span + b * 2 + 1).to(tl.int32)
        # Blocks that a row sees; of those behind nothing was written.
        count = tl.cdiv(tl.maximum(end - tokens + row // HEADS + 1 - first, 0), BLOCK)
        count = tl.where(row < rows, count, 0)
        every = tl.cdiv(tl.maximum(end - first, 0), BLOCK)
        at = b * blocks * rows
        most = tl.full((MANY,), LOWEST, tl.float32)
        total = tl.zeros((MANY,), tl.float32)
        for i in range(0, every, DEEP):
            near = i + tl.arange(0, DEEP)
            top = seen_by(tops + at, near, every, row, rows, count, MASKED)
            sums = seen_by(totals + at, near, every, row, rows, count, 0.0)
            higher = tl.maximum(most, tl.max(top, 0))
            total = total * tl.exp(most - higher) + tl.sum(tl.exp(top - higher[None, :]) * sums, 0)
            most = higher
        whole = most + tl.log(tl.maximum(total, 1e-30))
        tl.store(wholes + b * rows + row, whole, mask=row < rows)


@triton.jit
def seen_by(p, near, every, row, rows, count, other):
    """Numbers of these blocks [n, heads], `other` of those from `count` [heads] on, where nobody wrote."""
    inside = (near[:, None] < every) & (row[None, :] < rows)
    some = tl.load(p + near[:, None] * rows + row[None, :], mask=inside, other=0.0)
    return tl.where(near[:, None] < count[None, :], some, other)


@triton.jit
def counted(chances, tops, whole, s, row, rows, high, BLOCK: tl.constexpr):
    """A block's chances from key s on [BLOCK, n], as parts of the whole; 0 from `high` on."""
    at = s + tl.arange(0, BLOCK)
    inside = (at[:, None] < high) & (row[None, :] < rows)
    some = tl.load(chances + at[:, None] * rows + row[None, :], mask=inside, other=0.0)
    top = tl.load(tops + s // BLOCK * rows + row, mask=(row < rows) & (s < high), other=MASKED)
    return (some.to(tl.float32) * tl.exp(top - whole)[None, :]).to(tl.bfloat16)


@triton.jit
def mix(
    chances, tops, wholes, latents, span, y, batch, tokens, room, seen, parts,
    HEADS: tl.constexpr, LATENT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """chances [batch, seen, tokens * HEADS], tops of their blocks, wholes, latents [batch, room, LATENT] ->
    y [batch, tokens * HEADS, parts, LATENT], to be added up. Two blocks a time, each with its own buffers.

    The last sequence comes first: L2 still has what was read and written last.
    """
    rows = tokens * HEADS
    tiles = tl.cdiv(rows, ROWS)
    across: tl.constexpr = (LATENT + COLUMNS - 1) // COLUMNS
    units = batch * parts * tiles * across
    for turn in range(tl.program_id(0), units, tl.num_programs(0)):
        unit = units - 1 - turn
        column = unit % across * COLUMNS + tl.arange(0, COLUMNS)
        tile = unit // across % tiles
        part = unit // across // tiles % parts
        b = (unit // across // tiles // parts).to(tl.int64)
        first = tl.load(span + b * 2).to(tl.int32)
        end = tl.load(span + b * 2 + 1).to(tl.int32)
        row = tile * ROWS + tl.arange(0, ROWS)
        last = tl.minimum(tile * ROWS + ROWS, rows) - 1
        length = tl.cdiv(tl.cdiv(tl.maximum(end - first, 0), parts), 2 * BLOCK) * (2 * BLOCK)
        low = part * length
        high = tl.minimum(low + length, end - tokens + last // HEADS + 1 - first)
        latent = latents + (b * room + first) * LATENT + column[None, :]
        mine = chances + b * seen * rows
        top = tops + b * (seen // BLOCK + 1) * rows
        whole = tl.load(wholes + b * rows + row, mask=row < rows, other=0.0)
        sums = tl.zeros((ROWS, COLUMNS), tl.float32)
        # Once even where there are no keys: L0C holds anything until the first product.
        for s0 in range(low, tl.maximum(high, low + 1), 2 * BLOCK):
            s = s0 + tl.arange(0, BLOCK)[:, None]
            c = tl.load(latent + s * LATENT, mask=(s < high) & (column[None, :] < LATENT), other=0.0)
            some = counted(mine, top, whole, s0, row, rows, high, BLOCK)
            sums = tl.dot(tl.trans(some), c, sums)
            s += BLOCK
            c = tl.load(latent + s * LATENT, mask=(s < high) & (column[None, :] < LATENT), other=0.0)
            some = counted(mine, top, whole, s0 + BLOCK, row, rows, high, BLOCK)
            sums = tl.dot(tl.trans(some), c, sums)
        to = y + ((b * rows + row[:, None]) * parts + part) * LATENT
        inside = (row[:, None] < rows) & (column[None, :] < LATENT)
        tl.store(to + column[None, :], sums.to(tl.bfloat16), mask=inside)


@triton.jit
def add(mixed, y, rows, parts, LATENT: tl.constexpr, WIDE: tl.constexpr, MANY: tl.constexpr):
    """mixed [rows, parts, LATENT] added up -> y [rows, LATENT]."""
    column = tl.arange(0, WIDE)[None, :]
    for start in range(tl.program_id(0) * MANY, rows, tl.num_programs(0) * MANY):
        row = start + tl.arange(0, MANY)[:, None]
        inside = (row < rows) & (column < LATENT)
        at = mixed + row.to(tl.int64) * parts * LATENT + column
        sums = tl.zeros((MANY, WIDE), tl.float32)
        for i in range(0, parts):
            sums += tl.load(at + i * LATENT, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + row.to(tl.int64) * LATENT + column, sums.to(tl.bfloat16), mask=inside)
