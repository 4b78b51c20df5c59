"""Calls of kernels to be timed: operands with a shape and no contents, but for what says what is done.

Routing, masks, spans and ids are real; floats are hollow. The order of operands is that of cases_bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ....compiler.ir import Array
from ....compiler.ops.cache import SPAN
from ....compiler.ops.quantize import FORMATS
from ...base import Kernel
from ...cases import Draw, operands, routing
from ...cases_attention import attention_mask
from ...cases_bf16 import IN_PLACE, spanned
from ...regions import BITS
from ...routing import even
from ..trial import sizes_of
from .memory import Hollow

Given = Array | Hollow
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """rows: new tokens, of one sequence where there is a batch. cached: tokens in the cache before."""

    rows: int = 1
    batch: int = 1
    cached: int = 0
    draw: Draw = even

    @property
    def tokens(self) -> int:
        """New tokens of all sequences."""
        return self.rows * self.batch

    @property
    def mask(self) -> Array:
        """No padding."""
        return attention_mask(self.batch, self.cached + self.rows, 0)


@dataclass(frozen=True, slots=True)
class Call:
    """What a kernel gets. sizes: program.SIZES. touched: bytes of operands of which not all are read."""

    operands: Sequence[Given]
    results: Sequence[Hollow]
    sizes: Mapping[str, int]
    in_place: Mapping[int, int] = field(default_factory=dict)
    touched: Mapping[str, int] = field(default_factory=dict)


def bf16(*shape: int) -> Hollow:
    return Hollow("bf16", shape)


def f32(*shape: int) -> Hollow:
    return Hollow("f32", shape)


def i64(*shape: int) -> Hollow:
    return Hollow("i64", shape)


def weight(kernel: Kernel, place: int, *shape: int) -> dict[int, Given]:
    """bf16, or codes and scales."""
    if kernel.weights not in BITS:
        return {place: bf16(*shape)}
    *outer, k = shape
    groups = k // (FORMATS[kernel.weights]["group"] or k)
    return {place: Hollow("i8", shape), place + 1: Hollow("f16", (*outer, groups))}


def linear(kernel: Kernel, asked: Asked) -> Call:
    m, k, n = asked.tokens, kernel["k"], kernel["n"]
    columns = n // 2 if kernel.kind == "linear_swiglu" else n
    feeds = [bf16(m, k), *([bf16(m, n)] if kernel.kind == "linear_add" else [])]
    result = f32 if dict(kernel.dims).get("wide") else bf16
    return made(kernel, feeds, weight(kernel, 1, n, k), [result(m, columns)])


def grouped(kernel: Kernel, asked: Asked) -> Call:
    """Of the experts, only those that a token chose are read."""
    m, k, n, share = asked.tokens, kernel["k"], kernel["n"], kernel["share"]
    order, ends = routing(kernel, m, np.random.default_rng(0), asked.draw)
    weights = weight(kernel, 3, kernel["experts"], n, k)
    if kernel.kind == "grouped_swiglu":
        call = made(kernel, [bf16(m, k), order, ends], weights, [bf16(m * share, n // 2)])
    else:
        base: list[Given] = [bf16(m, n)] if kernel["base"] else []
        feeds = [bf16(m * share, k), order, ends, f32(m, share), *base]
        call = made(kernel, feeds, weights, [bf16(m, n)])
    used = int(np.count_nonzero(np.diff(ends, prepend=0)))
    codes = call.operands[3]
    assert isinstance(codes, Hollow)
    touched = {"x3": codes.nbytes * used // kernel["experts"]}
    return Call(call.operands, call.results, call.sizes, call.in_place, touched)


def rms_norm(kernel: Kernel, asked: Asked) -> Call:
    m, n = asked.tokens, kernel["n"]
    return made(kernel, [bf16(m, kernel["width"])], {1: f32(n)}, [bf16(m, n)])


def top_k_gate(kernel: Kernel, asked: Asked) -> Call:
    m, experts, k = asked.tokens, kernel["experts"], kernel["k"] + kernel["shared"]
    return made(kernel, [f32(m, experts), *bias(kernel, experts)], {}, [i64(m, k), f32(m, k)])


def bias(kernel: Kernel, experts: int) -> list[Given]:
    """What is added to select, if something is."""
    return [f32(experts)] if kernel["bias"] else []


def route(kernel: Kernel, asked: Asked) -> Call:
    m, k, n = asked.tokens, kernel["k"], kernel["n"]
    slots, experts = kernel["chosen"] + kernel["shared"], n + kernel["shared"]
    results = [i64(m * slots), i64(experts), f32(m, slots)]
    return made(kernel, [bf16(m, k), *bias(kernel, n)], {1: bf16(n, k)}, results)


def permute(kernel: Kernel, asked: Asked) -> Call:
    m, k, experts = asked.tokens, kernel["k"], kernel["experts"]
    ids = np.random.default_rng(0).integers(0, experts, (m, k))
    return made(kernel, [ids], {}, [i64(m * k), i64(experts)])


def caches(asked: Asked, *widths: int, heads: int = 1) -> list[Given]:
    """With room for the new tokens."""
    return [bf16(asked.batch, heads, asked.cached + asked.rows, width) for width in widths]


def angles_of(asked: Asked, width: int) -> list[Given]:
    """cos and sin."""
    return [f32(asked.batch, asked.rows, width // 2)] * 2


def latent_write(kernel: Kernel, asked: Asked) -> Call:
    c, r = kernel["c"], kernel["r"]
    x, past = bf16(asked.batch, asked.rows, kernel["width"]), caches(asked, c, r)
    feeds = [x, *angles_of(asked, r), *past, asked.mask, SPAN.reference(asked.mask)]
    results = caches(asked, c, r)
    return made(kernel, feeds, {1: f32(c)}, [each for each in results if isinstance(each, Hollow)])


def latent_attention(kernel: Kernel, asked: Asked) -> Call:
    heads, value, latent, rope = (kernel[name] for name in ("heads", "value", "latent", "rope"))
    x, past = bf16(asked.batch, asked.rows, kernel["width"]), caches(asked, latent, rope)
    feeds = [x, *angles_of(asked, rope), *past, asked.mask, SPAN.reference(asked.mask)]
    rows = heads * (kernel["nope"] + value)
    weights = {spanned(kernel, 6): bf16(rows, latent)}
    return made(kernel, feeds, weights, [bf16(asked.batch, asked.rows, heads * value)])


def mla_decode(kernel: Kernel, asked: Asked) -> Call:
    heads, latent, rope = (kernel[name] for name in ("heads", "latent", "rope"))
    q = bf16(asked.batch, asked.rows, heads, latent + rope)
    feeds = [q, *caches(asked, latent, rope), asked.mask, SPAN.reference(asked.mask)]
    return made(kernel, feeds, {}, [bf16(asked.batch, asked.rows, heads, latent)])


def attention(kernel: Kernel, asked: Asked) -> Call:
    heads, groups, dk, dv = (kernel[name] for name in ("heads", "groups", "dk", "dv"))
    past = [each for width in (dk, dv) for each in caches(asked, width, heads=groups)]
    q = bf16(asked.batch, heads, asked.rows, dk)
    feeds = [q, *past, asked.mask, SPAN.reference(asked.mask)]
    return made(kernel, feeds, {}, [bf16(asked.batch, heads, asked.rows, dv)])


def append(kernel: Kernel, asked: Asked) -> Call:
    h, d = kernel["h"], kernel["d"]
    past = caches(asked, d, heads=h)
    feeds = [*past, bf16(asked.batch, h, asked.rows, d), asked.mask, SPAN.reference(asked.mask)]
    return made(kernel, feeds, {}, [each for each in past if isinstance(each, Hollow)])


def rotary(kernel: Kernel, asked: Asked) -> Call:
    r, heads = kernel["r"], 3
    x = bf16(asked.batch, heads, asked.rows, r)
    return made(kernel, [x, *angles_of(asked, r)], {}, [x])


def embedding(kernel: Kernel, asked: Asked) -> Call:
    m, v, n = asked.tokens, kernel["v"], kernel["n"]
    ids = np.random.default_rng(0).integers(0, v, m)
    call = made(kernel, [ids], {1: bf16(v, n)}, [bf16(m, n)])
    return Call(call.operands, call.results, call.sizes, call.in_place, {"x1": m * n * 2})


def angles(kernel: Kernel, asked: Asked) -> Call:
    f, batch, rows = kernel["f"], asked.batch, asked.rows
    ids = np.full((batch, rows), asked.cached, np.int64)
    turned = f32(batch, rows, f)
    return made(kernel, [asked.mask, ids, f32(f)], {}, [turned, turned, i64(batch, 2)])


def made(
    kernel: Kernel, feeds: Sequence[Given], weights: Mapping[int, Given], results: Sequence[Hollow]
) -> Call:
    """Every operand in its place, as the kernel has numbers of half the bytes."""
    every: list[Any] = [as_half(kernel, each) for each in operands(list(feeds), dict(weights))]
    given = [as_half(kernel, each) for each in results]
    return Call(every, given, sizes_of(kernel, every), IN_PLACE.get(kernel.kind, {}))


def as_half(kernel: Kernel, each: Any) -> Any:
    """The array, f16 where it is said to be bf16 and the kernel is on f16."""
    return Hollow(kernel.half, each.shape) if isinstance(each, Hollow) and each.type == "bf16" else each


KINDS: Mapping[str, Callable[[Kernel, Asked], Call]] = {
    **dict.fromkeys(("linear", "linear_add", "linear_swiglu"), linear),
    **dict.fromkeys(("grouped_swiglu", "grouped_combine"), grouped),
    "rms_norm": rms_norm,
    "top_k_gate": top_k_gate,
    "route": route,
    "permute": permute,
    "latent_write": latent_write,
    "latent_attention": latent_attention,
    "mla_decode": mla_decode,
    "attention": attention,
    "append": append,
    "rotary": rotary,
    "embedding": embedding,
    "angles": angles,
}


def call_of(kernel: Kernel, asked: Asked) -> Call:
    """Raises ValueError for a kind of kernel that is not known."""
    if kernel.kind not in KINDS:
        raise ValueError(f"how a {kernel.kind!r} kernel is called is not known; known are {', '.join(KINDS)}")
    return KINDS[kernel.kind](kernel, asked)
