"""Triton functions for heads one by one: numbers in pairs turned, and new rows of a cache."""

import triton
import triton.language as tl

from .latent_project import pairs, turned, write_pairs


@triton.jit
def turn_tokens(
    x, cos, sin, y, heads, batch, tokens,
    WIDTH: tl.constexpr, PAIRS_IN: tl.constexpr, PAIRS_OUT: tl.constexpr, MANY: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    """x [batch, heads / batch, tokens, WIDTH] -> y, by cos and sin [batch, tokens, WIDTH / 2].

    heads: of all sequences. MANY tokens of a head at a time, each by its own angles.
    """
    tiles = tl.cdiv(tokens, MANY)
    pair = tl.arange(0, HALF)[None, :]
    for tile in range(tl.program_id(0), heads * tiles, tl.num_programs(0)):
        head = tile // tiles
        token = tile % tiles * MANY + tl.arange(0, MANY)[:, None]
        inside = token < tokens
        low, high = pairs(x + (head.to(tl.int64) * tokens + token) * WIDTH, inside, WIDTH, HALF, PAIRS_IN)
        angle = (head // (heads // batch) * tokens + token) * (WIDTH // 2) + pair
        c = tl.load(cos + angle, mask=inside & (pair < WIDTH // 2), other=0.0)
        s = tl.load(sin + angle, mask=inside & (pair < WIDTH // 2), other=0.0)
        to = y + (head.to(tl.int64) * tokens + token) * WIDTH
        write_pairs(to, inside, low * c - high * s, low * s + high * c, WIDTH, HALF, PAIRS_OUT)


@triton.jit
def turn_heads(
    x, cos, sin, y, heads, batch, tokens,
    WIDTH: tl.constexpr, PAIRS_IN: tl.constexpr, PAIRS_OUT: tl.constexpr, MANY: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    """The same for few tokens: MANY heads of a token at a time, by one row of angles."""
    own = heads // batch
    tiles = tl.cdiv(own, MANY)
    for tile in range(tl.program_id(0), batch * tokens * tiles, tl.num_programs(0)):
        row = tile // tiles
        head = tile % tiles * MANY + tl.arange(0, MANY)[:, None]
        place = ((row // tokens * own).to(tl.int64) * tokens + row % tokens + head * tokens) * WIDTH
        low, high = pairs(x + place, head < own, WIDTH, HALF, PAIRS_IN)
        angle = row * (WIDTH // 2)
        low, high = turned(low, high, cos + angle, sin + angle, WIDTH, HALF)
        write_pairs(y + place, head < own, low, high, WIDTH, HALF, PAIRS_OUT)


@triton.jit
def append(rows, span, cache, heads, batch, tokens, room, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """rows [batch, heads / batch, tokens, WIDTH] -> rows end-tokens..end-1 of each head of cache [batch,
    heads / batch, room, WIDTH]; end is in span [batch, 2]. Rows that would lie before the first are left out.

    heads: of all sequences. Both sides are one piece of memory, BLOCK numbers of it are copied at a time.
    """
    tiles = tl.cdiv(tokens * WIDTH, BLOCK)
    for tile in range(tl.program_id(0), heads * tiles, tl.num_programs(0)):
        head = tile // tiles
        end = tl.load(span + head // (heads // batch) * 2 + 1).to(tl.int32)
        outside = tl.maximum(tokens - end, 0)
        at = (outside * WIDTH) + tile % tiles * BLOCK + tl.arange(0, BLOCK)
        copied = tl.load(rows + head.to(tl.int64) * tokens * WIDTH + at, mask=at < tokens * WIDTH, other=0.0)
        to = cache + (head.to(tl.int64) * room + end - tokens) * WIDTH
        tl.store(to + at, copied, mask=at < tokens * WIDTH)
