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
    tl.store(chances + near[:, None] * rows + row[None, :], some.to(chances.dtype.element_ty), mask=inside)
    tl.store(tops + row, top, mask=row < rows)
    tl.store(totals + row, tl.sum(some, 0), mask=row < rows)


@triton.jit
def share_of(units, turns):
    """What this core does of units of so many turns: how many whole ones; of those that do not fill a round
    of all cores, from which turn to which, and how many units these turns are of.
    """
    cores, late = tl.num_programs(0), units % tl.num_programs(0) * turns
    sharing = tl.maximum(tl.minimum(cores, late), 1)
    begin = tl.minimum(tl.program_id(0), sharing) * late // sharing
    end = tl.minimum(tl.program_id(0) + 1, sharing) * late // sharing
    return units // cores, begin, end, tl.where(end > begin, tl.cdiv(end, turns) - begin // turns, 0)


@triton.jit
def turns_of(i, rounds, begin, end, turns):
    """The i-th unit of a core's share, from which of its turns to which."""
    cores, late = tl.num_programs(0), begin // turns + i - rounds
    unit = tl.where(i < rounds, i * cores + tl.program_id(0), rounds * cores + late)
    low = tl.where(i < rounds, 0, tl.maximum(begin - late * turns, 0))
    high = tl.where(i < rounds, turns, tl.minimum(end - late * turns, turns))
    return unit, low, high


@triton.jit
def score(
    q, latents, keys, span, chances, tops, totals, skipped, batch, tokens, room, seen, scale,
    HEADS: tl.constexpr, LATENT: tl.constexpr, ROPE: tl.constexpr, WIDE: tl.constexpr, NARROW: tl.constexpr,
    ROWS: tl.constexpr, HALVES: tl.constexpr, BLOCK: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Chances of the keys of so many sequences, behind those skipped, for ROWS heads of tokens, in HALVES, so
    that one is multiplied while the other is stored.

    q [.., tokens, HEADS, LATENT + ROPE], latents [.., room, LATENT], keys [.., room, ROPE], span [.., 2] ->
    chances [batch, seen, tokens * HEADS] from the span's first key on; of its blocks the largest scores and
    the sums of chances, tops and totals [batch, seen / BLOCK + 1, tokens * HEADS].
    """
    rows = tokens * HEADS
    tiles = tl.cdiv(rows, ROWS)
    blocks = seen // BLOCK + 1
    HALF: tl.constexpr = ROWS // HALVES
    ONE: tl.constexpr = HEADS % ROWS == 0
    turns = tl.cdiv(seen, BLOCK)
    rounds, begin, until, more = share_of(batch * tiles, turns)
    for i in range(0, rounds + more):
        unit, low, high = turns_of(i, rounds, begin, until, turns)
        tile = unit % tiles
        b = (unit // tiles).to(tl.int64)
        at = skipped + b
        first = tl.load(span + at * 2).to(tl.int32)
        end = tl.load(span + at * 2 + 1).to(tl.int32)
        early = end - tokens + 1
        last = tl.minimum(tile * ROWS + ROWS, rows) - 1
        high = tl.minimum(first + high * BLOCK, early + last // HEADS)
        row = tile * ROWS + tl.arange(0, HALF)
        stops = early + row // HEADS
        mine = q + at * rows * (LATENT + ROPE)
        q1 = rows_of(mine, row, rows, LATENT + ROPE, LATENT, WIDE)
        q2 = rows_of(mine + LATENT, row, rows, LATENT + ROPE, ROPE, NARROW)
        if HALVES == 2:
            below = row + HALF
            after = early + below // HEADS
            q3 = rows_of(mine, below, rows, LATENT + ROPE, LATENT, WIDE)
            q4 = rows_of(mine + LATENT, below, rows, LATENT + ROPE, ROPE, NARROW)
        latent = latents + at * room * LATENT
        key = keys + at * room * ROPE
        for s0 in range(first + low * BLOCK, high, BLOCK):
            s = s0 + tl.arange(0, BLOCK)
            c = rows_of(latent, s, high, LATENT, LATENT, WIDE)
            k = rows_of(key, s, high, ROPE, ROPE, NARROW)
            to = chances + (b * seen + s0 - first) * rows
            top = tops + (b * blocks + (s0 - first) // BLOCK) * rows
            total = totals + (b * blocks + (s0 - first) // BLOCK) * rows
            scores = tl.dot(k, tl.trans(q2), tl.dot(c, tl.trans(q1)))
            if HALVES == 2:
                others = tl.dot(k, tl.trans(q4), tl.dot(c, tl.trans(q3)))
            finish(scores, s, row, rows, high, stops, scale, to, top, total, BLOCK, ONE, SCALED)
            if HALVES == 2:
                finish(others, s, below, rows, high, after, scale, to, top, total, BLOCK, ONE, SCALED)


@triton.jit
def weigh(
    span, tops, totals, wholes, skipped, batch, tokens, seen,
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
        first = tl.load(span + (skipped + b) * 2).to(tl.int32)
        end = tl.load(span + (skipped + b) * 2 + 1).to(tl.int32)
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
    some = tl.load(p + near[:, None] * rows + row[None, :], mask=inside, care_padding=False)
    return tl.where(near[:, None] < count[None, :], some, other)


@triton.jit
def counted(chances, tops, whole, s, high, row, rows, BLOCK: tl.constexpr):
    """A block's chances from key s on [BLOCK, n], as parts of the whole; 0 early s and from `high` on.

    The block ends at `high` at the latest, as that of `latents_of`.
    """
    at = tl.maximum(tl.minimum(s, high - BLOCK), 0) + tl.arange(0, BLOCK)
    # From no key behind `high` on: the compiler would count fewer than none.
    inside = (at[:, None] >= tl.minimum(s, high)) & (at[:, None] < high) & (row[None, :] < rows)
    some = tl.load(chances + at[:, None] * rows + row[None, :], mask=inside, other=0.0)
    top = tl.load(tops + s // BLOCK * rows + row, mask=(row < rows) & (s < high), other=MASKED)
    return (some.to(tl.float32) * tl.exp(top - whole)[None, :]).to(some.dtype)


@triton.jit
def latents_of(p, s, high, column, LATENT: tl.constexpr, BLOCK: tl.constexpr):
    """A block's latents [BLOCK, n] from key s on, or earlier, so that it ends at `high`: nothing then has to
    be filled up, which would make the load wait for the product early. 0 from `high` on.
    """
    at = tl.maximum(tl.minimum(s, high - BLOCK), 0) + tl.arange(0, BLOCK)
    inside = (at[:, None] < high) & (column[None, :] < LATENT)
    return tl.load(p + at[:, None] * LATENT + column[None, :], mask=inside, other=0.0)


@triton.jit
def mix(
    chances, tops, wholes, latents, span, y, skipped, batch, tokens, room, seen, behind,
    HEADS: tl.constexpr, LATENT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """chances [batch, seen, tokens * HEADS], tops of their blocks, wholes, latents [.., room, LATENT] ->
    y [.., tokens * HEADS, LATENT]. Two blocks a time, each with its own buffers.

    What a core makes of a tile in which it begins amid the keys is to be added: it lies in ROWS rows of y for
    each core from row `behind` on. The last sequence and the last key come first: L2 still has what was read
    and written last.
    """
    rows = tokens * HEADS
    tiles = tl.cdiv(rows, ROWS)
    across: tl.constexpr = (LATENT + COLUMNS - 1) // COLUMNS
    units = batch * tiles * across
    turns = tl.cdiv(seen, 2 * BLOCK)
    rounds, begin, until, more = share_of(units, turns)
    for i in range(0, rounds + more):
        turned, low, high = turns_of(i, rounds, begin, until, turns)
        unit = units - 1 - turned
        column = unit % across * COLUMNS + tl.arange(0, COLUMNS)
        tile = unit // across % tiles
        b = (unit // across // tiles).to(tl.int64)
        first = tl.load(span + (skipped + b) * 2).to(tl.int32)
        end = tl.load(span + (skipped + b) * 2 + 1).to(tl.int32)
        row = tile * ROWS + tl.arange(0, ROWS)
        last = tl.minimum(tile * ROWS + ROWS, rows) - 1
        low *= 2 * BLOCK
        high = tl.minimum(high * (2 * BLOCK), end - tokens + last // HEADS + 1 - first)
        latent = latents + ((skipped + b) * room + first) * LATENT
        mine = chances + b * seen * rows
        top = tops + b * (seen // BLOCK + 1) * rows
        every = tl.load(wholes + b * rows + row, mask=row < rows, other=0.0)
        sums = tl.zeros((ROWS, COLUMNS), tl.float32)
        # Once even where there are no keys: L0C holds anything until the first product.
        count = tl.maximum(tl.cdiv(high - low, 2 * BLOCK), 1)
        for turn in range(0, count):
            s = low + (count - 1 - turn) * (2 * BLOCK)
            c = latents_of(latent, s, high, column, LATENT, BLOCK)
            some = counted(mine, top, every, s, high, row, rows, BLOCK)
            sums = tl.dot(tl.trans(some), c, sums)
            c = latents_of(latent, s + BLOCK, high, column, LATENT, BLOCK)
            some = counted(mine, top, every, s + BLOCK, high, row, rows, BLOCK)
            sums = tl.dot(tl.trans(some), c, sums)
        # One store: of several the compiler has the vector cores take care, by way of the device's memory.
        own = (skipped + b) * rows + tile * ROWS
        to = tl.where(low > 0, behind + tl.program_id(0) * ROWS, own) + tl.arange(0, ROWS)
        inside = (row[:, None] < rows) & (column[None, :] < LATENT)
        tl.store(y + to[:, None] * LATENT + column[None, :], sums.to(y.dtype.element_ty), mask=inside)


@triton.jit
def add(
    y, skipped, batch, tokens, seen, behind, cores,
    HEADS: tl.constexpr, LATENT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip
    """What cores made of tiles that they shared, as `mix` leaves it in y, added up; MANY rows at a time."""
    rows = tokens * HEADS
    tiles = tl.cdiv(rows, ROWS)
    across: tl.constexpr = (LATENT + COLUMNS - 1) // COLUMNS
    late, turns = batch * tiles * across % cores, tl.cdiv(seen, 2 * BLOCK)
    sharing = tl.minimum(cores, late * turns)
    for work in range(tl.program_id(0), late * (ROWS // MANY), tl.num_programs(0)):
        unit = work // (ROWS // MANY)
        near = work % (ROWS // MANY) * MANY + tl.arange(0, MANY)[:, None]
        column = unit % across * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        row = unit // across % tiles * ROWS + near
        b = (skipped + unit // across // tiles).to(tl.int64)
        at = y + (b * rows + row) * LATENT + column
        inside = (row < rows) & (column < LATENT)
        sums = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        # Cores that begin amid the tile's keys.
        begin = (late - 1 - unit) * turns
        high = tl.minimum(tl.cdiv((begin + turns) * sharing, late * turns), sharing)
        for core in range(tl.cdiv((begin + 1) * sharing, late * turns), high):
            piece = y + (behind + core * ROWS + near).to(tl.int64) * LATENT + column
            sums += tl.load(piece, mask=inside, other=0.0).to(tl.float32)
        tl.store(at, sums.to(y.dtype.element_ty), mask=inside)


@triton.jit
def copy(x, y, rows, LATENT: tl.constexpr, WIDE: tl.constexpr, MANY: tl.constexpr):
    """x [rows, LATENT] -> y."""
    column = tl.arange(0, WIDE)[None, :]
    for start in range(tl.program_id(0) * MANY, rows, tl.num_programs(0) * MANY):
        row = start + tl.arange(0, MANY)[:, None]
        at, inside = row.to(tl.int64) * LATENT + column, (row < rows) & (column < LATENT)
        tl.store(y + at, tl.load(x + at, mask=inside, other=0.0), mask=inside)
