"""Cases of the kernels that read or write a cache, or go row by row; the ops' references say what is right.

T tokens, S cached tokens, Z = S+T, L rows of the cache, of which those from Z on are poisoned with NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...compiler.ir import Array
from ...compiler.ops.attention import SDPA
from ...compiler.ops.cache import APPEND
from ...compiler.ops.latent import LATENT_ATTENTION
from ...compiler.ops.norm import RMS_NORM, ROTARY
from ...compiler.ops.routing import PERMUTE, TOP_K_GATE
from ..base import Kernel
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


def cache(random: Random, batch: int, heads: int, seen: int, width: int) -> Array:
    """[B, heads, L, width] with nothing to be read from row `seen` on."""
    rows = uniform(random, batch, heads, seen + SPARE, width)
    rows[:, :, seen:] = np.nan
    return rows


def angles(random: Random, batch: int, tokens: int, pairs: int) -> list[Array]:
    """cos and sin [B, T, pairs]."""
    turn = uniform(random, batch, tokens, pairs) * np.float32(np.pi)
    return [np.cos(turn), np.sin(turn)]


def latent_feeds(
    kernel: Kernel, tokens: int, random: Random, batch: int = 1, cached: int = CACHED, padding: int = 0
) -> list[Array]:
    """q, cos, sin, latent, rotary_keys, mask."""
    heads, nope, rope, width = (kernel[name] for name in ("heads", "nope", "rope", "latent"))
    seen = cached + tokens
    return [
        uniform(random, batch, tokens, heads * (nope + rope)),
        *angles(random, batch, tokens, rope // 2),
        cache(random, batch, 1, seen, width),
        cache(random, batch, 1, seen, rope),
        attention_mask(batch, seen, padding),
    ]


def pairs(kernel: Kernel) -> dict[str, str]:
    """How pairs lie, in the ops' words."""
    return {name: PAIRS[kernel[name]] for name in ("pairs_in", "pairs_out")}


def double(feeds: Feeds) -> list[Array]:
    """Floats in double precision."""
    return [feed.astype(np.float64) if feed.dtype == np.float32 else feed for feed in feeds]


def latent(kernel: Kernel, feeds: Feeds) -> list[Array]:
    """What the op says, the rows of queries without a turn taken out where there is none."""
    operands: list[Any] = double(feeds)
    sizes = {name: kernel[name] for name in ("heads", "nope", "value")}
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
        *(cache(random, batch, kernel["groups"], seen, kernel[name]) for name in ("dk", "dv")),
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


def append_feeds(kernel: Kernel, rows: int, random: Random, cached: int = CACHED) -> list[Array]:
    """past, rows, mask; two sequences."""
    past = uniform(random, 2, kernel["h"], cached + rows + SPARE, kernel["d"])
    return [past, uniform(random, 2, kernel["h"], rows, kernel["d"]), attention_mask(2, cached + rows, 0)]


def append(kernel: Kernel, feeds: Feeds) -> list[Array]:
    """The cache with the rows in it."""
    return [APPEND.reference(*double(feeds))]


def write_feeds(kernel: Kernel, rows: int, random: Random, cached: int = CACHED) -> list[Array]:
    """kv, cos, sin, past_c, past_r, mask; two sequences."""
    room = cached + rows + SPARE
    return [
        uniform(random, 2, rows, kernel["width"]),
        *angles(random, 2, rows, kernel["r"] // 2),
        uniform(random, 2, 1, room, kernel["c"]),
        uniform(random, 2, 1, room, kernel["r"]),
        attention_mask(2, cached + rows, 0),
    ]


def write(kernel: Kernel, feeds: Feeds) -> list[Array]:
    """Both caches with their new rows in them."""
    kv, w, cos, sin, past, past_keys, mask = double(feeds)
    start = kernel["start"]
    middle, stop = start + kernel["c"], start + kernel["c"] + kernel["r"]
    latents = RMS_NORM.reference(kv[..., start:middle], w, eps=dict(kernel.reals)["eps"])
    keys = kv[..., middle:stop]
    if pairs(kernel)["pairs_in"] != "none":
        keys = ROTARY.reference(keys, cos, sin, **pairs(kernel))
    return [APPEND.reference(past, latents[:, None], mask), APPEND.reference(past_keys, keys[:, None], mask)]


def gate_feeds(kernel: Kernel, rows: int, random: Random) -> list[Array]:
    """logits [rows, experts] and, to select, a bias."""
    logits = uniform(random, rows, kernel["experts"]) * np.float32(4)
    return [logits, uniform(random, kernel["experts"])] if kernel["bias"] else [logits]


def gate(kernel: Kernel, feeds: Feeds) -> list[Array]:
    """ids and weights."""
    reals = dict(kernel.reals)
    ids, weights = TOP_K_GATE.reference(
        *double(feeds),
        scores="sigmoid" if kernel["sigmoid"] else "softmax",
        group_score="top2" if kernel["top2"] else "max",
        normalise=bool(kernel["normalise"]),
        **{name: kernel[name] for name in ("k", "groups", "keep")},
        **reals,
    )
    return [ids, weights]


def permute_feeds(kernel: Kernel, rows: int, random: Random) -> list[Array]:
    """ids [rows, k]."""
    return [random.integers(0, kernel["experts"], (rows, kernel["k"]))]


def permute(kernel: Kernel, feeds: Feeds) -> list[Array]:
    """order and ends."""
    return list(PERMUTE.reference(*feeds, experts=kernel["experts"]))


CASES: Mapping[str, Case] = {
    "latent_attention": Case(latent_feeds, latent, latent_weights, points=(1, 64, 256)),
    "attention": Case(attention_feeds, attention, points=(1, 64, 256)),
    "rms_norm": Case(norm_feeds, norm, norm_weights),
    "rotary": Case(rotary_feeds, rotary),
    "append": Case(append_feeds, append),
    "latent_write": Case(write_feeds, write, norm_weights),
    "top_k_gate": Case(gate_feeds, gate),
    "permute": Case(permute_feeds, permute),
}
