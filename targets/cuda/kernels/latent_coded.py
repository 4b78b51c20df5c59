"""Latent attention over e4m3 codes with a scale for each row: what latent_decode, latent_mla and latent_paged
have, with one more cache, of scales [batch, 1, room, 1] or a pool of such.

It is operand x8 (x5 of mla_decode), and a table of pages comes behind.
"""

from collections.abc import Sequence
from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Step
from ..sm import Sm
from .latent_decode import combine
from .latent_mla import decode_combine
from .latent_pages import PAGE
from .latent_parts import AS_WRITTEN, one_part, parts
from .latent_project import absorb, project
from .latent_shared import BF16, E4M3, F32, I64, sizes
from .latent_widening import attention


def attend(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """As latent_decode.attend."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    batch, tokens, seen, room, m = sizes()
    body = attention(kernel, schedule, sm, split=False)

    @T.prim_func
    def latent_attend_coded(
        x1: T.Tensor((batch, tokens, rope // 2), F32),  # says how many tokens there are
        x3: T.Tensor((batch, 1, room, latent), E4M3),
        x4: T.Tensor((batch, 1, room, rope), BF16),
        x6: T.Tensor((batch, 2), I64),
        x8: T.Tensor((batch, 1, room, 1), F32),
        s0: T.Tensor((m * heads, latent + rope), BF16),
        s1: T.Tensor((m * heads, latent), BF16),
        scale: T.float32,
    ):
        body(s0, x3, x4, x6, None, None, s1, s1, scale, batch, tokens, seen, x8)

    return latent_attend_coded


def attend_split(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """As latent_decode.attend_split."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    batch, tokens, seen, room, m = sizes()
    count = parts(schedule, heads, sm, batch, tokens, seen)
    body = attention(kernel, schedule, sm, split=True)

    @T.prim_func
    def latent_attend_coded_split(
        x1: T.Tensor((batch, tokens, rope // 2), F32),
        x3: T.Tensor((batch, 1, room, latent), E4M3),
        x4: T.Tensor((batch, 1, room, rope), BF16),
        x5: T.Tensor((batch, seen), I64),
        x6: T.Tensor((batch, 2), I64),
        x8: T.Tensor((batch, 1, room, 1), F32),
        s0: T.Tensor((m * heads, latent + rope), BF16),
        s2: T.Tensor((m * heads * count, latent), BF16),
        s3: T.Tensor((m * heads * count,), F32),
        scale: T.float32,
    ):
        body(s0, x3, x4, x6, None, None, s2, s3, scale, batch, tokens, seen, x8)

    return latent_attend_coded_split.with_attr("tilelang_pass_configs", AS_WRITTEN)


def attend_paged(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """As latent_paged.attend."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    batch, tokens, seen, room, m = sizes()
    pages = T.dynamic("pages")
    body = attention(kernel, schedule, sm, split=False)

    @T.prim_func
    def latent_attend_coded_paged(
        x1: T.Tensor((batch, tokens, rope // 2), F32),
        x3: T.Tensor((pages, 1, PAGE, latent), E4M3),
        x4: T.Tensor((pages, 1, PAGE, rope), BF16),
        x6: T.Tensor((batch, 2), I64),
        x8: T.Tensor((pages, 1, PAGE, 1), F32),
        x9: T.Tensor((batch, room), I64),
        s0: T.Tensor((m * heads, latent + rope), BF16),
        s1: T.Tensor((m * heads, latent), BF16),
        scale: T.float32,
    ):
        body(s0, x3, x4, x6, x9, pages, s1, s1, scale, batch, tokens, seen, x8)

    return latent_attend_coded_paged


def attend_paged_split(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """As latent_paged.attend_split."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    batch, tokens, seen, room, m = sizes()
    pages = T.dynamic("pages")
    count = parts(schedule, heads, sm, batch, tokens, seen)
    body = attention(kernel, schedule, sm, split=True)

    @T.prim_func
    def latent_attend_coded_paged_split(
        x1: T.Tensor((batch, tokens, rope // 2), F32),
        x3: T.Tensor((pages, 1, PAGE, latent), E4M3),
        x4: T.Tensor((pages, 1, PAGE, rope), BF16),
        x5: T.Tensor((batch, seen), I64),
        x6: T.Tensor((batch, 2), I64),
        x8: T.Tensor((pages, 1, PAGE, 1), F32),
        x9: T.Tensor((batch, room), I64),
        s0: T.Tensor((m * heads, latent + rope), BF16),
        s2: T.Tensor((m * heads * count, latent), BF16),
        s3: T.Tensor((m * heads * count,), F32),
        scale: T.float32,
    ):
        body(s0, x3, x4, x6, x9, pages, s2, s3, scale, batch, tokens, seen, x8)

    return latent_attend_coded_paged_split.with_attr("tilelang_pass_configs", AS_WRITTEN)


def absorbed_coded(kernel: Kernel, schedule: Schedule, sm: Sm, when: str, paged: bool) -> Sequence[Step]:
    """latent_attention, in pages or not, where `when` holds."""
    whole = one_part(schedule, kernel["heads"], sm, "tokens", "seen")
    one, split = (attend_paged, attend_paged_split) if paged else (attend, attend_split)
    return [
        Step(absorb(kernel, schedule), when, overlap=True),
        Step(one(kernel, schedule, sm), f"{when} && {whole}", overlap=True),
        Step(split(kernel, schedule, sm), f"{when} && !{whole}", overlap=True),
        Step(combine(kernel, schedule, sm), f"{when} && !{whole}", overlap=True),
        Step(project(kernel, schedule), when, overlap=True),
    ]


def decode(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """As latent_mla.decode."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    batch, _, seen, room, m = sizes()
    body = attention(kernel, schedule, sm, split=False)

    @T.prim_func
    def mla_decode_coded(
        x0: T.Tensor((m * heads, latent + rope), BF16),
        x1: T.Tensor((batch, 1, room, latent), E4M3),
        x2: T.Tensor((batch, 1, room, rope), BF16),
        x3: T.Tensor((batch, seen), I64),
        x4: T.Tensor((batch, 2), I64),
        x5: T.Tensor((batch, 1, room, 1), F32),
        y0: T.Tensor((m * heads, latent), BF16),
        tokens: T.int32,
        scale: T.float32,
    ):
        body(x0, x1, x2, x4, None, None, y0, y0, scale, batch, tokens, seen, x5)

    return mla_decode_coded


def decode_split(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """As latent_mla.decode_split."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    batch, _, seen, room, m = sizes()
    count = parts(schedule, heads, sm, batch, m // batch, seen)
    body = attention(kernel, schedule, sm, split=True)

    @T.prim_func
    def mla_decode_coded_split(
        x0: T.Tensor((m * heads, latent + rope), BF16),
        x1: T.Tensor((batch, 1, room, latent), E4M3),
        x2: T.Tensor((batch, 1, room, rope), BF16),
        x3: T.Tensor((batch, seen), I64),
        x4: T.Tensor((batch, 2), I64),
        x5: T.Tensor((batch, 1, room, 1), F32),
        s0: T.Tensor((m * heads * count, latent), BF16),
        s1: T.Tensor((m * heads * count,), F32),
        tokens: T.int32,
        scale: T.float32,
    ):
        body(x0, x1, x2, x4, None, None, s0, s1, scale, batch, tokens, seen, x5)

    return mla_decode_coded_split.with_attr("tilelang_pass_configs", AS_WRITTEN)


def mla_decode_coded(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """As latent_mla.mla_decode, with x5 the scales."""
    whole = one_part(schedule, kernel["heads"], sm, "tokens", "seen")
    return [
        Step(decode(kernel, schedule, sm), whole, overlap=True),
        Step(decode_split(kernel, schedule, sm), f"!{whole}", overlap=True),
        Step(decode_combine(kernel, schedule, sm), f"!{whole}", overlap=True),
    ]
