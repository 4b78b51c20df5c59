"""Cases of the kernels that read or write a cache, or go row by row; the ops' references say what is right.

T tokens, S cached tokens, Z = S+T, L rows of the cache, of which those from Z on are poisoned with NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..compiler.ir import DTYPES, Array
from ..compiler.ops.attention import SDPA
from ..compiler.ops.cache import APPEND
from ..compiler.ops.coded import CODINGS, DECODE_ROWS, ENCODE_ROWS
from ..compiler.ops.latent import LATENT_ATTENTION
from ..compiler.ops.norm import RMS_NORM, ROTARY
from ..compiler.ops.routing import PERMUTE, TOP_K_GATE
from .base import Kernel
from .cases import Case, Feeds, Random, uniform

# Tokens in the cache when a kernel is tried or timed.
CACHED = 1000
PAIRS = ("interleaved", "halves", "none")
SPARE = 3  # rows of a cache that no token has reached


def attention_mask(batch: int, seen: int, padding: int) -> Array:
    """i64 [B, Z]: 1, but 0 for the first `padding` columns of every other row."""
    mask = np.ones((batch, seen), np.int64)
    mask[1::2, :padding] = 0
    return mask


def cache(kernel: Kernel, random: Random, batch: int, heads: int, seen: int, width: int) -> Array:
    """[B, heads, L, width] as the kernel's cache is stored, with nothing to be read from row `seen` on."""
    rows = uniform(random, batch, heads, seen + SPARE, width)
    rows[:, :, seen:] = np.nan
    return rows.astype(DTYPES[kept(kernel)])


def kept(kernel: Kernel) -> str:
    """The dtype of what a kernel's cache holds; of rotated keys beside codes of latents."""
    return "bf16" if kernel.cache in CODINGS else kernel.cache


def latent_caches(kernel: Kernel, random: Random, batch: int, seen: int) -> list[list[Array]]:
    """Caches of latents and of rotated keys; and of scales, where latents are codes."""
    keys = cache(kernel, random, batch, 1, seen, kernel["rope"])
    rows = uniform(random, batch, 1, seen + SPARE, kernel["latent"])
    rows[:, :, seen:] = np.nan
    latents, *scales = stored_latents(kernel, rows)
    return [[latents, keys], scales]


def stored_latents(kernel: Kernel, rows: Array) -> list[Array]:
    """Latents as a cache has them: in its dtype, or codes and then their scales."""
    if kernel.cache in CODINGS:
        return list(ENCODE_ROWS.reference(rows, format=kernel.cache))
    return [rows.astype(DTYPES[kernel.cache])]


def decoded(kernel: Kernel, operands: Feeds, place: int) -> list[Array]:
    """Operands with latents at that place, where they are codes whose scales are the last operand."""
    if kernel.cache not in CODINGS:
        return list(operands)
    *plain, scales = operands
    plain[place] = DECODE_ROWS.reference(plain[place], scales.astype(np.float64))
    return plain


def angles(random: Random, batch: int, tokens: int, pairs: int) -> list[Array]:
    """cos and sin [B, T, pairs]."""
    turn = uniform(random, batch, tokens, pairs) * np.float32(np.pi)
    return [np.cos(turn), np.sin(turn)]


def latent_feeds(
    kernel: Kernel, tokens: int, random: Random, batch: int = 1, cached: int = CACHED, padding: int = 0
) -> list[Array]:
    """q as columns of something wider, cos, sin, latent, rotary_keys, mask, scales if there are any."""
    seen = cached + tokens
    caches, scales = latent_caches(kernel, random, batch, seen)
    return [
        uniform(random, batch, tokens, kernel["width"]),
        *angles(random, batch, tokens, kernel["rope"] // 2),
        *caches,
        attention_mask(batch, seen, padding),
        *scales,
    ]


def pairs(kernel: Kernel) -> dict[str, str]:
    """How pairs lie, in the ops' words."""
    return {name: PAIRS[kernel[name]] for name in ("pairs_in", "pairs_out")}


def double(feeds: Feeds) -> list[Array]:
    """Floats in double precision."""
    return [feed if feed.dtype.kind in "iub" else feed.astype(np.float64) for feed in feeds]


def latent(kernel: Kernel, feeds: Feeds) -> list[Array]:
    """What the op says, the rows of queries without a turn taken out where there is none."""
    operands: list[Any] = decoded(kernel, double(feeds), 3)
    sizes = {name: kernel[name] for name in ("heads", "nope", "value")}
    stop = kernel["start"] + kernel["heads"] * (kernel["nope"] + kernel["rope"])
    operands[0] = operands[0][..., kernel["start"] : stop]
    if pairs(kernel)["pairs_in"] == "none":
        del operands[1:3]
    scale = dict(kernel.reals)["scale"]
    return [LATENT_ATTENTION.reference(*operands, scale=scale, **sizes, **pairs(kernel))]


def latent_weights(kernel: Kernel, random: Random) -> Mapping[int, Array]:
    """w_kvb [heads * (nope + value), latent]."""
    rows, width = kernel["heads"] * (kernel["nope"] + kernel["value"]), kernel["latent"]
    return {6: uniform(random, rows, width) / np.float32(width**0.5)}


def attention_feeds(
    kernel: Kernel, tokens: int, random: Random, batch: int = 1, cached: int = CACHED, padding: int = 0
) -> list[Array]:
    """q, keys, values, mask."""
    seen = cached + tokens
    return [
        uniform(random, batch, kernel["heads"], tokens, kernel["dk"]),
        *(cache(kernel, random, batch, kernel["groups"], seen, kernel[name]) for name in ("dk", "dv")),
        attention_mask(batch, seen, padding),
    ]


def attention(kernel: Kernel, feeds: Feeds) -> list[Array]:
    """Token t sees keys up to its own, where the mask has one."""
    q, keys, values, mask = double(feeds)
    tokens, seen = q.shape[2], mask.shape[1]
    causal = np.arange(seen) <= np.arange(seen - tokens, seen)[:, None]
    visible = causal & (mask[:, None, None] != 0)
    return [
        SDPA.reference(q, keys[:, :, :seen], values[:, :, :seen], visible, scale=dict(kernel.reals)["scale"])
    ]


def norm_feeds(kernel: Kernel, rows: int, random: Random) -> list[Array]:
    """x [rows, width]."""
    return [uniform(random, rows, kernel["width"])]


def norm_weights(kernel: Kernel, random: Random) -> Mapping[int, Array]:
    """w [n], or [c] where the norm writes to a cache."""
    return {1: uniform(random, kernel["c" if kernel.kind == "latent_write" else "n"])}


def norm(kernel: Kernel, feeds: Feeds) -> list[Array]:
    """Columns start..start+n normed."""
    x, w = double(feeds)
    part = x[..., kernel["start"] : kernel["start"] + kernel["n"]]
    return [RMS_NORM.reference(part, w, eps=dict(kernel.reals)["eps"])]


def rotary_feeds(kernel: Kernel, rows: int, random: Random) -> list[Array]:
    """x [2, 3, T, r], cos and sin [2, T, r/2]."""
    return [uniform(random, 2, 3, rows, kernel["r"]), *angles(random, 2, rows, kernel["r"] // 2)]


def rotary(kernel: Kernel, feeds: Feeds) -> list[Array]:
    """x turned, all heads alike."""
    x, cos, sin = double(feeds)
    return [ROTARY.reference(x, cos[:, None], sin[:, None], **pairs(kernel))]


def append_feeds(
    kernel: Kernel, rows: int, random: Random, batch: int = 2, cached: int = CACHED, padding: int = 0
) -> list[Array]:
    """past, rows, mask."""
    heads, width = kernel["h"], kernel["d"]
    past = uniform(random, batch, heads, cached + rows + SPARE, width).astype(DTYPES[kernel.cache])
    mask = attention_mask(batch, cached + rows, padding)
    return [past, uniform(random, batch, heads, rows, width), mask]


def append(kernel: Kernel, feeds: Feeds) -> list[Array]:
    """The cache with the rows in it."""
    return [stored(kernel, APPEND.reference(*double(feeds)))]


def stored(kernel: Kernel, cache: Array) -> Array:
    """A cache in double precision, rounded if it is narrower than f32."""
    return cache if kernel.cache == "f32" else cache.astype(DTYPES[kept(kernel)])


def write_feeds(
    kernel: Kernel, rows: int, random: Random, batch: int = 2, cached: int = CACHED, padding: int = 0
) -> list[Array]:
    """kv, cos, sin, past_c, past_r, mask, past_scales if there are any."""
    room = cached + rows + SPARE
    latents, keys = (uniform(random, batch, 1, room, kernel[name]) for name in "cr")
    past, *scales = stored_latents(kernel, latents)
    return [
        uniform(random, batch, rows, kernel["width"]),
        *angles(random, batch, rows, kernel["r"] // 2),
        past,
        keys.astype(DTYPES[kept(kernel)]),
        attention_mask(batch, cached + rows, padding),
        *scales,
    ]


def write(kernel: Kernel, feeds: Feeds) -> list[Array]:
    """All caches with their new rows in them."""
    kv, w, cos, sin, past, past_keys, mask, *past_scales = double(feeds)
    start = kernel["start"]
    middle, stop = start + kernel["c"], start + kernel["c"] + kernel["r"]
    latents = RMS_NORM.reference(kv[..., start:middle], w, eps=dict(kernel.reals)["eps"])
    keys = kv[..., middle:stop]
    if pairs(kernel)["pairs_in"] != "none":
        keys = ROTARY.reference(keys, cos, sin, **pairs(kernel))
    with_keys = stored(kernel, APPEND.reference(past_keys, keys[:, None], mask))
    if kernel.cache in CODINGS:
        made = ENCODE_ROWS.reference(latents[:, None], format=kernel.cache)
        codes, scales = (APPEND.reference(cache, new, mask) for cache, new in zip((past, *past_scales), made))
        return [codes, with_keys, scales]
    return [stored(kernel, APPEND.reference(past, latents[:, None], mask)), with_keys]


def gate_feeds(kernel: Kernel, rows: int, random: Random) -> list[Array]:
    """logits [rows, experts] and, to select, a bias."""
    logits = uniform(random, rows, kernel["experts"]) * np.float32(4)
    return [logits, uniform(random, kernel["experts"])] if kernel["bias"] else [logits]


def gate(kernel: Kernel, feeds: Feeds) -> list[Array]:
    """ids and weights."""
    return list(gated(kernel, kernel["k"], *double(feeds)))


def gated(kernel: Kernel, chosen: int, *operands: Array) -> tuple[Array, Array]:
    """What the op says for the logits, and a bias if there is one."""
    ids, weights = TOP_K_GATE.reference(
        *operands,
        k=chosen,
        scores="sigmoid" if kernel["sigmoid"] else "softmax",
        group_score="top2" if kernel["top2"] else "max",
        normalise=bool(kernel["normalise"]),
        **{name: kernel[name] for name in ("groups", "keep", "shared")},
        **dict(kernel.reals),
    )
    return ids, weights


def route_feeds(kernel: Kernel, rows: int, random: Random) -> list[Array]:
    """x [rows, k] and, to select, a bias; of small integers, so that sums are the same in any order."""
    x = random.integers(-2, 3, (rows, kernel["k"])).astype(np.float32)
    return [x, uniform(random, kernel["n"])] if kernel["bias"] else [x]


def route_weights(kernel: Kernel, random: Random) -> Mapping[int, Array]:
    """The router [n, k], with few numbers that are not 0, so that scores differ."""
    used = random.random(kernel["k"]) < 8 / kernel["k"]
    return {1: (random.integers(-3, 4, (kernel["n"], kernel["k"])) * used / 8).astype(np.float32)}


def route(kernel: Kernel, operands: Feeds) -> list[Array]:
    """order, ends and weights."""
    x, w, *bias = double(operands)
    ids, weights = gated(kernel, kernel["chosen"], x @ w.T, *bias)
    order, ends = PERMUTE.reference(ids, experts=kernel["n"] + kernel["shared"])
    return [order, ends, weights]


def permute_feeds(kernel: Kernel, rows: int, random: Random) -> list[Array]:
    """ids [rows, k]."""
    return [random.integers(0, kernel["experts"], (rows, kernel["k"]))]


def permute(kernel: Kernel, feeds: Feeds) -> list[Array]:
    """order and ends."""
    return list(PERMUTE.reference(*feeds, experts=kernel["experts"]))


CASES: Mapping[str, Case] = {
    # Between 160 and 256 tokens it becomes cheaper to materialise keys and values.
    "latent_attention": Case(latent_feeds, latent, latent_weights, points=(1, 8, 64, 160, 256)),
    "attention": Case(attention_feeds, attention, points=(1, 64, 256)),
    "rms_norm": Case(norm_feeds, norm, norm_weights),
    "rotary": Case(rotary_feeds, rotary),
    "append": Case(append_feeds, append),
    "latent_write": Case(write_feeds, write, norm_weights),
    "top_k_gate": Case(gate_feeds, gate),
    "route": Case(route_feeds, route, route_weights),
    "permute": Case(permute_feeds, permute),
}
