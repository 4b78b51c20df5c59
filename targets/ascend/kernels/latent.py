"""Triton functions of multi-head latent attention, absorbed: queries meet the cached latents themselves."""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1e30)  # below any score, yet differences of two of them are numbers
MASKED = tl.constexpr(-3e38)  # e to the power of it less LOWEST is 0


@triton.jit
def attend(
    q, latents, keys, span, mixed, weights, batch, tokens, room, parts, scale,
    HEADS: tl.constexpr, LATENT: tl.constexpr, ROPE: tl.constexpr, WIDE: tl.constexpr, NARROW: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Parts of the cache of each sequence for ROWS heads of tokens.

    q [batch, tokens, HEADS, LATENT + ROPE], latents [batch, room, LATENT], keys [batch, room, ROPE],
    span [batch, 2] -> mixed [batch, tokens, HEADS, parts, LATENT], weights [batch, tokens, HEADS, parts].
    """
    rows = tokens * HEADS
    tiles = tl.cdiv(rows, ROWS)
    wide = tl.arange(0, WIDE)
    narrow = tl.arange(0, NARROW)
    for unit in range(tl.program_id(0), batch * parts * tiles, tl.num_programs(0)):
        tile = unit % tiles
        part = unit // tiles % parts
        b = unit // tiles // parts
        first = tl.load(span + b * 2).to(tl.int32)
        end = tl.load(span + b * 2 + 1).to(tl.int32)
        row = tile * ROWS + tl.arange(0, ROWS)
        last = tl.minimum(tile * ROWS + ROWS, rows) - 1
        stop = end - tokens + last // HEADS + 1
        length = tl.cdiv(tl.cdiv(tl.maximum(end - first, 0), parts), BLOCK) * BLOCK
        low = first + part * length
        high = tl.minimum(low + length, stop)
        at = q + (b.to(tl.int64) * rows + row[:, None]) * (LATENT + ROPE)
        inside = row[:, None] < rows
        q1 = tl.load(at + wide[None, :], mask=inside & (wide[None, :] < LATENT), other=0.0)
        q2 = tl.load(at + LATENT + narrow[None, :], mask=inside & (narrow[None, :] < ROPE), other=0.0)
        stops = stop
        if HEADS % ROWS != 0:
            stops = (end - tokens + row // HEADS + 1)[:, None]
        top = tl.full((ROWS,), LOWEST, tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        sums = tl.zeros((ROWS, WIDE), tl.float32)
        latent = latents + b.to(tl.int64) * room * LATENT
        key = keys + b.to(tl.int64) * room * ROPE
        for s0 in range(low, high, BLOCK):
            s = s0 + tl.arange(0, BLOCK)
            here = s[:, None] < high
            c = tl.load(
                latent + s[:, None] * LATENT + wide[None, :], mask=here & (wide[None, :] < LATENT), other=0.0
            )
            k = tl.load(
                key + s[:, None] * ROPE + narrow[None, :], mask=here & (narrow[None, :] < ROPE), other=0.0
            )
            scores = tl.dot(q2, tl.trans(k), tl.dot(q1, tl.trans(c)))
            if SCALED:
                scores = scores * scale
            scores = tl.where(s[None, :] < tl.minimum(stops, high), scores, MASKED)
            higher = tl.maximum(top, tl.max(scores, 1))
            chances = tl.exp(scores - higher[:, None])
            before = tl.exp(top - higher)
            total = total * before + tl.sum(chances, 1)
            sums = sums * before[:, None] + tl.dot(chances.to(c.dtype), c)
            top = higher
        some = tl.maximum(total, 1e-30)
        sums = sums / some[:, None]
        to = (b.to(tl.int64) * rows + row) * parts + part
        tl.store(
            mixed + to[:, None] * LATENT + wide[None, :],
            sums.to(mixed.dtype.element_ty),
            mask=inside & (wide[None, :] < LATENT),
        )
        tl.store(weights + to, top + tl.log(some), mask=row < rows)


@triton.jit
def combine(
    mixed, weights, y, rows, parts,
    LATENT: tl.constexpr, WIDE: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """mixed [rows, parts, LATENT], weights [rows, parts] -> y [rows, LATENT]; MOST parts at most."""
    wide = tl.arange(0, WIDE)
    part = tl.arange(0, MOST)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.cast(row, tl.int64) * parts
        heavy = tl.load(weights + at + part, mask=part < parts, other=MASKED)
        share = tl.exp(heavy - tl.max(heavy, 0))
        share = share / tl.sum(share, 0)
        inside = (part[:, None] < parts) & (wide[None, :] < LATENT)
        values = tl.load(mixed + (at + part[:, None]) * LATENT + wide[None, :], mask=inside, other=0.0)
        sums = tl.sum(values.to(tl.float32) * share[:, None], 0)
        tl.store(y + tl.cast(row, tl.int64) * LATENT + wide, sums.to(y.dtype.element_ty), mask=wide < LATENT)
