"""Triton functions of latent attention in stages that overlap: while vector cores soften scores of one piece of
work, the cube multiplies those of the next. What goes between them lies in the device's memory, two of each.
"""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1e30)  # below any score, yet differences of two of them are numbers
MASKED = tl.constexpr(-3e38)  # e to the power of it less LOWEST is 0


@triton.jit
def place(unit, span, batch, tokens, parts, HEADS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Of a unit: its sequence, part and tile; its first key and the one after its last, the last key of all + 1."""
    tiles = tl.cdiv(tokens * HEADS, ROWS)
    tile = unit % tiles
    part = unit // tiles % parts
    b = unit // tiles // parts
    first = tl.load(span + b * 2).to(tl.int32)
    end = tl.load(span + b * 2 + 1).to(tl.int32)
    last = tl.minimum(tile * ROWS + ROWS, tokens * HEADS) - 1
    stop = end - tokens + last // HEADS + 1
    length = tl.cdiv(tl.cdiv(tl.maximum(end - first, 0), parts), BLOCK) * BLOCK
    low = first + part * length
    high = tl.maximum(low, tl.minimum(low + length, stop))
    return b, part, tile, low, high, end


@triton.jit
def score(
    unit, units, q, latents, keys, span, scores, batch, tokens, room, parts,
    HEADS: tl.constexpr, LATENT: tl.constexpr, ROPE: tl.constexpr, WIDE: tl.constexpr, NARROW: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """q times keys -> scores [ROWS, LONG] f32."""
    if unit < units:
        b, part, tile, low, high, end = place(unit, span, batch, tokens, parts, HEADS, ROWS, BLOCK)
        rows = tokens * HEADS
        wide = tl.arange(0, WIDE)[None, :]
        narrow = tl.arange(0, NARROW)[None, :]
        local = tl.arange(0, ROWS)[:, None]
        row = tile * ROWS + local
        at = q + (b.to(tl.int64) * rows + row) * (LATENT + ROPE)
        q1 = tl.load(at + wide, mask=(row < rows) & (wide < LATENT), other=0.0)
        q2 = tl.load(at + LATENT + narrow, mask=(row < rows) & (narrow < ROPE), other=0.0)
        latent = latents + b.to(tl.int64) * room * LATENT
        key = keys + b.to(tl.int64) * room * ROPE
        for s0 in range(low, high, BLOCK):
            s = s0 + tl.arange(0, BLOCK)[:, None]
            c = tl.load(latent + s * LATENT + wide, mask=(s < high) & (wide < LATENT), other=0.0)
            k = tl.load(key + s * ROPE + narrow, mask=(s < high) & (narrow < ROPE), other=0.0)
            result = tl.dot(q2, tl.trans(k), tl.dot(q1, tl.trans(c)))
            tl.store(scores + local * LONG + (s0 - low) + tl.arange(0, BLOCK)[None, :], result)


@triton.jit
def soften(
    unit, units, span, scores, chances, weights, batch, tokens, parts, scale,
    HEADS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr, NEAR: tl.constexpr,
    SCALED: tl.constexpr,
):  # fmt: skip
    """scores -> chances [ROWS, LONG] bf16, which are 0 up to the end of a block, and the logs of their sums."""
    if unit < units:
        b, part, tile, low, high, end = place(unit, span, batch, tokens, parts, HEADS, ROWS, BLOCK)
        column = tl.arange(0, BLOCK)[None, :]
        stop = tl.cdiv(high - low, BLOCK) * BLOCK
        for r in range(0, ROWS, NEAR):
            local = r + tl.arange(0, NEAR)
            row = tile * ROWS + local
            seen = (tl.minimum(end - tokens + row // HEADS + 1, high) - low)[:, None]
            at = scores + local[:, None] * LONG + column
            to = chances + local[:, None] * LONG + column
            tops = tl.full((NEAR, BLOCK), LOWEST, tl.float32)
            for j in range(0, stop, BLOCK):
                x = tl.load(at + j)
                if SCALED:
                    x = x * scale
                tops = tl.maximum(tops, tl.where(column + j < seen, x, MASKED))
            top = tl.max(tops, 1)[:, None]
            sums = tl.zeros((NEAR, BLOCK), tl.float32)
            for j in range(0, stop, BLOCK):
                x = tl.load(at + j)
                if SCALED:
                    x = x * scale
                sums += tl.exp(tl.where(column + j < seen, x, MASKED) - top)
            weight = tl.max(tops, 1) + tl.log(tl.maximum(tl.sum(sums, 1), 1e-30))
            for j in range(0, stop, BLOCK):
                x = tl.load(at + j)
                if SCALED:
                    x = x * scale
                x = tl.exp(tl.where(column + j < seen, x, MASKED) - weight[:, None])
                tl.store(to + j, x.to(tl.bfloat16))
            place_ = (b.to(tl.int64) * tokens * HEADS + row) * parts + part
            tl.store(weights + place_, weight, mask=row < tokens * HEADS)


@triton.jit
def mix(
    unit, units, latents, span, chances, mixed, batch, tokens, room, parts,
    HEADS: tl.constexpr, LATENT: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """chances times latents -> mixed [batch, tokens, HEADS, parts, LATENT]."""
    if unit < units:
        b, part, tile, low, high, end = place(unit, span, batch, tokens, parts, HEADS, ROWS, BLOCK)
        rows = tokens * HEADS
        local = tl.arange(0, ROWS)[:, None]
        row = tile * ROWS + local
        latent = latents + b.to(tl.int64) * room * LATENT
        for c0 in range(0, WIDE, COLUMNS):
            wide = c0 + tl.arange(0, COLUMNS)[None, :]
            sums = tl.zeros((ROWS, COLUMNS), tl.float32)
            for s0 in range(low, high, BLOCK):
                s = s0 + tl.arange(0, BLOCK)[:, None]
                c = tl.load(latent + s * LATENT + wide, mask=(s < high) & (wide < LATENT), other=0.0)
                p = tl.load(chances + local * LONG + (s0 - low) + tl.arange(0, BLOCK)[None, :])
                sums = tl.dot(p, c, sums)
            to = (b.to(tl.int64) * rows + row) * parts + part
            tl.store(mixed + to * LATENT + wide, sums.to(tl.bfloat16), mask=(row < rows) & (wide < LATENT))


@triton.jit
def attend(
    q, latents, keys, span, scores, chances, mixed, weights, batch, tokens, room, parts, scale,
    HEADS: tl.constexpr, LATENT: tl.constexpr, ROPE: tl.constexpr, WIDE: tl.constexpr, NARROW: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr, NEAR: tl.constexpr, COLUMNS: tl.constexpr,
    SCALED: tl.constexpr,
):  # fmt: skip
    """As latent.attend; a part has at most LONG keys. Flags 0 and 1: scores are there; 2 and 3: chances are."""
    here = scores + tl.program_id(0) * (2 * ROWS * LONG)
    there = here + ROWS * LONG
    these = chances + tl.program_id(0) * (2 * ROWS * LONG)
    those = these + ROWS * LONG
    units = batch * parts * tl.cdiv(tokens * HEADS, ROWS)
    step = tl.num_programs(0)
    score(tl.program_id(0), units, q, latents, keys, span, here, batch, tokens, room, parts,
          HEADS, LATENT, ROPE, WIDE, NARROW, ROWS, BLOCK, LONG)  # fmt: skip
    tl.sync_block_set("cube", "vector", 0)
    for unit in range(tl.program_id(0), units, 2 * step):
        score(unit + step, units, q, latents, keys, span, there, batch, tokens, room, parts,
              HEADS, LATENT, ROPE, WIDE, NARROW, ROWS, BLOCK, LONG)  # fmt: skip
        tl.sync_block_set("cube", "vector", 1)
        tl.sync_block_wait("cube", "vector", 0)
        soften(unit, units, span, here, these, weights, batch, tokens, parts, scale,
               HEADS, ROWS, BLOCK, LONG, NEAR, SCALED)  # fmt: skip
        tl.sync_block_set("vector", "cube", 2)
        tl.sync_block_wait("vector", "cube", 2)
        mix(unit, units, latents, span, these, mixed, batch, tokens, room, parts,
            HEADS, LATENT, WIDE, ROWS, BLOCK, LONG, COLUMNS)  # fmt: skip
        score(unit + 2 * step, units, q, latents, keys, span, here, batch, tokens, room, parts,
              HEADS, LATENT, ROPE, WIDE, NARROW, ROWS, BLOCK, LONG)  # fmt: skip
        tl.sync_block_set("cube", "vector", 0)
        tl.sync_block_wait("cube", "vector", 1)
        soften(unit + step, units, span, there, those, weights, batch, tokens, parts, scale,
               HEADS, ROWS, BLOCK, LONG, NEAR, SCALED)  # fmt: skip
        tl.sync_block_set("vector", "cube", 3)
        tl.sync_block_wait("vector", "cube", 3)
        mix(unit + step, units, latents, span, those, mixed, batch, tokens, room, parts,
            HEADS, LATENT, WIDE, ROWS, BLOCK, LONG, COLUMNS)  # fmt: skip
    tl.sync_block_wait("cube", "vector", 0)
