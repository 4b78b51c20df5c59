"""Triton functions of attention with grouped queries: the heads of queries that share a head of keys are rows
of one product.
"""

import triton
import triton.language as tl

from .latent import LOWEST, MASKED


@triton.jit
def attend(
    q, keys, values, span, mixed, weights, batch, tokens, room, parts, scale,
    GROUPS: tl.constexpr, SHARE: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, DEEP: tl.constexpr,
    WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Parts of the cache of each group for ROWS rows of its queries: tokens of one head, then of the next.

    q [batch, GROUPS, SHARE * tokens, KEY], keys [batch, GROUPS, room, KEY], values [.., room, VALUE], span
    [batch, 2] -> mixed [batch, GROUPS, SHARE * tokens, parts, VALUE], weights [.., parts]. A token sees rows
    first..end-tokens+t; behind them scores may be anything and are selected away. Places are compared as
    floats, and a NaN may go through a maximum: the vendor's compiler makes less of both.
    """
    rows = tokens * SHARE
    tiles = tl.cdiv(rows, ROWS)
    deep = tl.arange(0, DEEP)
    wide = tl.arange(0, WIDE)
    for unit in range(tl.program_id(0), batch * GROUPS * parts * tiles, tl.num_programs(0)):
        tile = unit % tiles
        part = unit // tiles % parts
        group = unit // tiles // parts
        first = tl.load(span + group // GROUPS * 2).to(tl.int32)
        end = tl.load(span + group // GROUPS * 2 + 1).to(tl.int32)
        row = tile * ROWS + tl.arange(0, ROWS)
        token = tile * ROWS % tokens
        stop = end - tokens + tl.minimum(token + ROWS, tokens)
        length = tl.cdiv(tl.cdiv(tl.maximum(end - first, 0), parts), BLOCK) * BLOCK
        low = first + part * length
        high = tl.minimum(low + length, stop)
        own = end - tokens + wrapped(token + tl.arange(0, ROWS), tokens)
        furthest = tl.minimum(own, high - 1).to(tl.float32)[:, None]
        inside = row[:, None] < rows
        at = q + (group.to(tl.int64) * rows + row[:, None]) * KEY
        queries = tl.load(at + deep[None, :], mask=inside & (deep[None, :] < KEY), other=0.0)
        top = tl.full((ROWS,), LOWEST, tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        sums = tl.zeros((ROWS, WIDE), tl.float32)
        key = keys + group.to(tl.int64) * room * KEY
        value = values + group.to(tl.int64) * room * VALUE
        for s0 in range(low, high, BLOCK):
            s = s0 + tl.arange(0, BLOCK)
            here = s[:, None] < high
            k = tl.load(key + s[:, None] * KEY + deep[None, :], mask=here & (deep[None, :] < KEY), other=0.0)
            scores = tl.dot(queries, tl.trans(k)) * scale
            scores = tl.where(s.to(tl.float32)[None, :] <= furthest, scores, MASKED)
            higher = tl.maximum(top, tl.max(scores, 1), propagate_nan=tl.PropagateNan.ALL)
            chances = tl.exp(scores - higher[:, None])
            before = tl.exp(top - higher)
            total = total * before + tl.sum(chances, 1)
            v = tl.load(
                value + s[:, None] * VALUE + wide[None, :], mask=here & (wide[None, :] < VALUE), other=0.0
            )
            sums = sums * before[:, None] + tl.dot(chances.to(v.dtype), v)
            top = higher
        some = tl.maximum(total, 1e-30)
        sums = sums / some[:, None]
        to = (group.to(tl.int64) * rows + row) * parts + part
        tl.store(
            mixed + to[:, None] * VALUE + wide[None, :],
            sums.to(mixed.dtype.element_ty),
            mask=inside & (wide[None, :] < VALUE),
        )
        tl.store(weights + to, top + tl.log(some), mask=row < rows)


@triton.jit
def wrapped(token, tokens):
    """token modulo tokens, by floats: vector cores divide no integers. Both are less than a million."""
    heads = ((token.to(tl.float32) + 0.5) / tokens.to(tl.float32)).to(tl.int32)
    return token - heads * tokens
