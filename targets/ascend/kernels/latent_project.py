"""Triton functions around latent attention: into the space of latents, out of it, and the cache's writes."""

import triton
import triton.language as tl

INTERLEAVED = tl.constexpr(0)  # targets/regions.py PAIRS
NONE = tl.constexpr(2)


@triton.jit
def absorb(
    x, w, q, m, scale,
    HEADS: tl.constexpr, NOPE: tl.constexpr, VALUE: tl.constexpr, LATENT: tl.constexpr, ROPE: tl.constexpr,
    WIDTH: tl.constexpr, START: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEEP: tl.constexpr,
):  # fmt: skip
    """x [m, WIDTH], w [HEADS, NOPE + VALUE, LATENT] -> LATENT columns of q [m, HEADS, LATENT + ROPE]."""
    wide: tl.constexpr = (LATENT + COLUMNS - 1) // COLUMNS
    tall = tl.cdiv(m, ROWS)
    deep = tl.arange(0, DEEP)
    for tile in range(tl.program_id(0), HEADS * tall * wide, tl.num_programs(0)):
        row = tile // wide % tall * ROWS + tl.arange(0, ROWS)
        column = tile % wide * COLUMNS + tl.arange(0, COLUMNS)
        head = tile // wide // tall
        inside = row[:, None] < m
        at = x + row.to(tl.int64)[:, None] * WIDTH + START + head * (NOPE + ROPE)
        left = tl.load(at + deep[None, :], mask=inside & (deep[None, :] < NOPE), other=0.0)
        from_ = w + (head * (NOPE + VALUE) + deep[:, None]) * LATENT
        right = tl.load(
            from_ + column[None, :], mask=(deep[:, None] < NOPE) & (column[None, :] < LATENT), other=0.0
        )
        result = (tl.dot(left, right) * scale).to(q.dtype.element_ty)
        to = q + (row.to(tl.int64)[:, None] * HEADS + head) * (LATENT + ROPE)
        tl.store(to + column[None, :], result, mask=inside & (column[None, :] < LATENT))


@triton.jit
def project(
    mixed, w, y, m,
    HEADS: tl.constexpr, NOPE: tl.constexpr, VALUE: tl.constexpr, LATENT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """mixed [m, HEADS, LATENT], w [HEADS, NOPE + VALUE, LATENT] -> y [m, HEADS, VALUE]."""
    tall = tl.cdiv(m, ROWS)
    column = tl.arange(0, COLUMNS)
    for tile in range(tl.program_id(0), HEADS * tall, tl.num_programs(0)):
        row = tile % tall * ROWS + tl.arange(0, ROWS)
        head = tile // tall
        inside = row[:, None] < m
        at = mixed + (row.to(tl.int64)[:, None] * HEADS + head) * LATENT
        from_ = w + (head * (NOPE + VALUE) + NOPE + column[:, None]) * LATENT
        sums = tl.zeros((ROWS, COLUMNS), tl.float32)
        for k in range(0, LATENT, DEPTH):
            deep = k + tl.arange(0, DEPTH)
            left = tl.load(at + deep[None, :], mask=inside & (deep[None, :] < LATENT), other=0.0)
            right = tl.load(
                from_ + deep[None, :], mask=(column[:, None] < VALUE) & (deep[None, :] < LATENT), other=0.0
            )
            sums = tl.dot(left, tl.trans(right), sums)
        to = y + (row.to(tl.int64)[:, None] * HEADS + head) * VALUE
        tl.store(to + column[None, :], sums.to(y.dtype.element_ty), mask=inside & (column[None, :] < VALUE))


@triton.jit
def turn(
    x, cos, sin, q, m, scale,
    HEADS: tl.constexpr, NOPE: tl.constexpr, ROPE: tl.constexpr, LATENT: tl.constexpr, WIDTH: tl.constexpr,
    START: tl.constexpr, PAIRS_IN: tl.constexpr, PAIRS_OUT: tl.constexpr, MANY: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    """x [m, WIDTH], cos and sin [m, ROPE / 2] -> the last ROPE columns of q [m, HEADS, LATENT + ROPE]."""
    tiles: tl.constexpr = (HEADS + MANY - 1) // MANY
    for tile in range(tl.program_id(0), m * tiles, tl.num_programs(0)):
        row = (tile // tiles).to(tl.int64)
        head = tile % tiles * MANY + tl.arange(0, MANY)[:, None]
        at = x + row * WIDTH + START + NOPE + head * (NOPE + ROPE)
        low, high = pairs(at, head < HEADS, ROPE, HALF, PAIRS_IN)
        low *= scale
        high *= scale
        if PAIRS_IN != NONE:
            low, high = turned(low, high, cos + row * (ROPE // 2), sin + row * (ROPE // 2), ROPE, HALF)
        to = q + (row * HEADS + head) * (LATENT + ROPE) + LATENT
        write_pairs(to, head < HEADS, low, high, ROPE, HALF, PAIRS_OUT)


@triton.jit
def write(
    x, w, cos, sin, span, latents, keys, batch, tokens, room, eps,
    LATENT: tl.constexpr, ROPE: tl.constexpr, WIDTH: tl.constexpr, START: tl.constexpr,
    PAIRS_IN: tl.constexpr, PAIRS_OUT: tl.constexpr, WIDE: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """x [batch, tokens, WIDTH], w [LATENT] -> rows end-tokens..end-1 of latents [batch, room, LATENT],
    normed, and of keys [batch, room, ROPE], turned; end is in span [batch, 2].
    """
    column = tl.arange(0, WIDE)
    weight = tl.load(w + column, mask=column < LATENT, other=0.0)
    one = tl.arange(0, 1)[:, None]
    for row in range(tl.program_id(0), batch * tokens, tl.num_programs(0)):
        b = row // tokens
        to = (b.to(tl.int64) * room) + tl.load(span + b * 2 + 1) - tokens + row % tokens
        at = x + row.to(tl.int64) * WIDTH + START
        values = tl.load(at + column, mask=column < LATENT, other=0.0).to(tl.float32)
        mean = tl.sum(values * values, axis=0) / LATENT
        normed = values * tl.rsqrt(mean + eps) * weight
        tl.store(latents + to * LATENT + column, normed.to(latents.dtype.element_ty), mask=column < LATENT)
        low, high = pairs(at + LATENT + one, one < 1, ROPE, HALF, PAIRS_IN)
        if PAIRS_IN != NONE:
            angle = row * (ROPE // 2)
            low, high = turned(low, high, cos + angle, sin + angle, ROPE, HALF)
        write_pairs(keys + to * ROPE + one, one < 1, low, high, ROPE, HALF, PAIRS_OUT)


@triton.jit
def pairs(at, inside, ROPE: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr):
    """First and second numbers of pairs of rows at `at` [n, 1], f32 [n, HALF] each."""
    if PAIRS == INTERLEAVED:
        column = tl.arange(0, 2 * HALF)[None, :]
        both = tl.load(at + column, mask=inside & (column < ROPE), other=0.0).to(tl.float32)
        low, high = tl.split(tl.reshape(both, (at.shape[0], HALF, 2)))
    else:
        pair = tl.arange(0, HALF)[None, :]
        low = tl.load(at + pair, mask=inside & (pair < ROPE // 2), other=0.0).to(tl.float32)
        high = tl.load(at + ROPE // 2 + pair, mask=inside & (pair < ROPE // 2), other=0.0).to(tl.float32)
    return low, high


@triton.jit
def write_pairs(to, inside, low, high, ROPE: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr):
    """The inverse, rounded to the type of what is there."""
    if PAIRS == INTERLEAVED:
        column = tl.arange(0, 2 * HALF)[None, :]
        both = tl.reshape(tl.join(low, high), (to.shape[0], 2 * HALF))
        tl.store(to + column, both.to(to.dtype.element_ty), mask=inside & (column < ROPE))
    else:
        pair = tl.arange(0, HALF)[None, :]
        tl.store(to + pair, low.to(to.dtype.element_ty), mask=inside & (pair < ROPE // 2))
        tl.store(to + ROPE // 2 + pair, high.to(to.dtype.element_ty), mask=inside & (pair < ROPE // 2))


@triton.jit
def turned(low, high, cos, sin, ROPE: tl.constexpr, HALF: tl.constexpr):
    """Pairs [n, HALF] turned by one row of angles."""
    pair = tl.arange(0, HALF)
    c = tl.load(cos + pair, mask=pair < ROPE // 2, other=0.0)[None, :]
    s = tl.load(sin + pair, mask=pair < ROPE // 2, other=0.0)[None, :]
    return low * c - high * s, low * s + high * c
