"""Latent attention, absorbed: queries meet the cached latents themselves.

- absorb   q' = rope(q), q W_UK         [m*heads, latent+rope]
- attend   softmax(q' cache^T) cache    over a part of the cache each, tiles of heads x keys
- combine  parts into one               where there are several
- project  y = mixed latents W_UV^T; for few tokens it adds up parts itself
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Step
from ..sm import Sm
from .latent_attend import attention
from .latent_few import FEW, project_parts
from .latent_parts import AS_WRITTEN, combination, one_part, parts
from .latent_project import absorb, project
from .latent_shared import BF16, F32, I64, sizes


def attend(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """For latent_attention, the whole cache in one part."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    batch, tokens, seen, room, m = sizes()
    body = attention(kernel, schedule, sm, split=False)

    @T.prim_func
    def latent_attend(
        x1: T.Tensor((batch, tokens, rope // 2), F32),  # says how many tokens there are
        x3: T.Tensor((batch, 1, room, latent), BF16),
        x4: T.Tensor((batch, 1, room, rope), BF16),
        x6: T.Tensor((batch, 2), I64),
        s0: T.Tensor((m * heads, latent + rope), BF16),
        s1: T.Tensor((m * heads, latent), BF16),
        scale: T.float32,
    ):
        body(s0, x3, x4, x6, None, None, s1, s1, scale, batch, tokens, seen)

    return latent_attend


def attend_split(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """For latent_attention, s2 and s3 for combine."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    batch, tokens, seen, room, m = sizes()
    count = parts(schedule, heads, sm, batch, tokens, seen)
    body = attention(kernel, schedule, sm, split=True)

    @T.prim_func
    def latent_attend_split(
        x1: T.Tensor((batch, tokens, rope // 2), F32),
        x3: T.Tensor((batch, 1, room, latent), BF16),
        x4: T.Tensor((batch, 1, room, rope), BF16),
        x5: T.Tensor((batch, seen), I64),
        x6: T.Tensor((batch, 2), I64),
        s0: T.Tensor((m * heads, latent + rope), BF16),
        s2: T.Tensor((m * heads * count, latent), BF16),
        s3: T.Tensor((m * heads * count,), F32),
        scale: T.float32,
    ):
        body(s0, x3, x4, x6, None, None, s2, s3, scale, batch, tokens, seen)

    return latent_attend_split.with_attr("tilelang_pass_configs", AS_WRITTEN)


def combine(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """For latent_attention: s2 and s3 to s1."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    batch, tokens, seen, _, _ = sizes()
    m = batch * tokens
    count = parts(schedule, heads, sm, batch, tokens, seen)
    body = combination(latent)

    @T.prim_func
    def latent_combine(
        x1: T.Tensor((batch, tokens, rope // 2), F32),
        x5: T.Tensor((batch, seen), I64),
        s2: T.Tensor((m * heads * count, latent), BF16),
        s3: T.Tensor((m * heads * count,), F32),
        s1: T.Tensor((m * heads, latent), BF16),
    ):
        body(s2, s3, s1, m * heads, parts(schedule, heads, sm, batch, tokens, seen))

    return latent_combine.with_attr("tilelang_pass_configs", AS_WRITTEN)


def absorbed(kernel: Kernel, schedule: Schedule, sm: Sm, when: str) -> Sequence[Step]:
    """latent_attention where `when` holds."""
    whole = one_part(schedule, kernel["heads"], sm, "tokens", "seen")
    return [
        Step(absorb(kernel, schedule), when, overlap=True),
        Step(attend(kernel, schedule, sm), f"{when} && {whole}", overlap=True),
        Step(attend_split(kernel, schedule, sm), f"{when} && !{whole}", overlap=True),
        *projected(kernel, schedule, sm, when, whole),
    ]


def projected(kernel: Kernel, schedule: Schedule, sm: Sm, when: str, whole: str) -> Sequence[Step]:
    """Parts into one, and out of the space of latents: both at once for few tokens of an early attention."""
    apart = [
        Step(combine(kernel, schedule, sm), f"{when} && !{whole}", overlap=True),
        Step(project(kernel, schedule), when, overlap=True),
    ]
    if schedule["a_way"] != "early":
        return apart
    few = f"!{whole} && m <= {FEW}"
    others = [replace(each, when=f"{each.when} && !({few})") for each in apart]
    return [*others, replace(project_parts(kernel, schedule, sm), when=f"{when} && {few}")]
