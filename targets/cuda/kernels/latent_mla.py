"""The absorbed attention alone, as others publish it: queries are absorbed already, values not projected."""

from collections.abc import Sequence
from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Step
from ..sm import Sm
from .latent_attend import attention
from .latent_parts import AS_WRITTEN, combination, one_part, parts
from .latent_shared import BF16, F32, I64, sizes


def decode(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """For mla_decode, the whole cache in one part."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    batch, _, seen, room, m = sizes()
    body = attention(kernel, schedule, sm, split=False)

    @T.prim_func
    def mla_decode(
        x0: T.Tensor((m * heads, latent + rope), BF16),
        x1: T.Tensor((batch, 1, room, latent), BF16),
        x2: T.Tensor((batch, 1, room, rope), BF16),
        x3: T.Tensor((batch, seen), I64),
        x4: T.Tensor((batch, 2), I64),
        y0: T.Tensor((m * heads, latent), BF16),
        tokens: T.int32,
        scale: T.float32,
    ):
        body(x0, x1, x2, x4, None, None, y0, y0, scale, batch, tokens, seen)

    return mla_decode


def decode_split(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """For mla_decode, s0 and s1 for decode_combine."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    batch, _, seen, room, m = sizes()
    count = parts(schedule, heads, sm, batch, m // batch, seen)
    body = attention(kernel, schedule, sm, split=True)

    @T.prim_func
    def mla_decode_split(
        x0: T.Tensor((m * heads, latent + rope), BF16),
        x1: T.Tensor((batch, 1, room, latent), BF16),
        x2: T.Tensor((batch, 1, room, rope), BF16),
        x3: T.Tensor((batch, seen), I64),
        x4: T.Tensor((batch, 2), I64),
        s0: T.Tensor((m * heads * count, latent), BF16),
        s1: T.Tensor((m * heads * count,), F32),
        tokens: T.int32,
        scale: T.float32,
    ):
        body(x0, x1, x2, x4, None, None, s0, s1, scale, batch, tokens, seen)

    return mla_decode_split.with_attr("tilelang_pass_configs", AS_WRITTEN)


def decode_combine(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """For mla_decode: s0 and s1 to y0."""
    heads, latent = kernel["heads"], kernel["latent"]
    batch, _, seen, _, m = sizes()
    count = parts(schedule, heads, sm, batch, m // batch, seen)
    body = combination(latent)

    @T.prim_func
    def mla_decode_combine(
        x3: T.Tensor((batch, seen), I64),
        y0: T.Tensor((m * heads, latent), BF16),  # first, for it says what m is
        s0: T.Tensor((m * heads * count, latent), BF16),
        s1: T.Tensor((m * heads * count,), F32),
        tokens: T.int32,
    ):
        body(s0, s1, y0, m * heads, parts(schedule, heads, sm, batch, tokens, seen))

    return mla_decode_combine.with_attr("tilelang_pass_configs", AS_WRITTEN)


def mla_decode(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """Attention proper, for benchmarks: x0 q' [batch,tokens,heads,latent+rope], x1 and x2 the caches, x3
    the mask (unused), x4 span -> y0 [batch,tokens,heads,latent].
    """
    whole = one_part(schedule, kernel["heads"], sm, "tokens", "seen")
    return [
        Step(decode(kernel, schedule, sm), whole, overlap=True),
        Step(decode_split(kernel, schedule, sm), f"!{whole}", overlap=True),
        Step(decode_combine(kernel, schedule, sm), f"!{whole}", overlap=True),
    ]
