"""Absorbed attention over a cache in pages: what latent_decode and latent_mla have, with a table of pages.

Pools x3 and x4 (x1 and x2 of mla_decode) have `pages` pages of PAGE rows; the table, i64 [batch, room] and
the last operand, says where each sequence's are.
"""

from collections.abc import Sequence
from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Step
from ..sm import Sm
from .latent_attend import attention
from .latent_decode import projected
from .latent_mla import decode_combine
from .latent_pages import PAGE
from .latent_parts import AS_WRITTEN, one_part, parts
from .latent_project import absorb
from .latent_shared import BF16, F32, I64, sizes


def attend(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """As latent_decode.attend."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    batch, tokens, seen, room, m = sizes()
    pages = T.dynamic("pages")
    body = attention(kernel, schedule, sm, split=False)

    @T.prim_func
    def latent_attend_paged(
        x1: T.Tensor((batch, tokens, rope // 2), F32),  # says how many tokens there are
        x3: T.Tensor((pages, 1, PAGE, latent), BF16),
        x4: T.Tensor((pages, 1, PAGE, rope), BF16),
        x6: T.Tensor((batch, 2), I64),
        x8: T.Tensor((batch, room), I64),
        s0: T.Tensor((m * heads, latent + rope), BF16),
        s1: T.Tensor((m * heads, latent), BF16),
        scale: T.float32,
    ):
        body(s0, x3, x4, x6, x8, pages, s1, s1, scale, batch, tokens, seen)

    return latent_attend_paged


def attend_split(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """As latent_decode.attend_split."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    batch, tokens, seen, room, m = sizes()
    pages = T.dynamic("pages")
    count = parts(schedule, heads, sm, batch, tokens, seen)
    body = attention(kernel, schedule, sm, split=True)

    @T.prim_func
    def latent_attend_paged_split(
        x1: T.Tensor((batch, tokens, rope // 2), F32),
        x3: T.Tensor((pages, 1, PAGE, latent), BF16),
        x4: T.Tensor((pages, 1, PAGE, rope), BF16),
        x5: T.Tensor((batch, seen), I64),
        x6: T.Tensor((batch, 2), I64),
        x8: T.Tensor((batch, room), I64),
        s0: T.Tensor((m * heads, latent + rope), BF16),
        s2: T.Tensor((m * heads * count, latent), BF16),
        s3: T.Tensor((m * heads * count,), F32),
        scale: T.float32,
    ):
        body(s0, x3, x4, x6, x8, pages, s2, s3, scale, batch, tokens, seen)

    return latent_attend_paged_split.with_attr("tilelang_pass_configs", AS_WRITTEN)


def absorbed_paged(kernel: Kernel, schedule: Schedule, sm: Sm, when: str) -> Sequence[Step]:
    """latent_attention_paged where `when` holds."""
    whole = one_part(schedule, kernel["heads"], sm, "tokens", "seen")
    return [
        Step(absorb(kernel, schedule), when, overlap=True),
        Step(attend(kernel, schedule, sm), f"{when} && {whole}", overlap=True),
        Step(attend_split(kernel, schedule, sm), f"{when} && !{whole}", overlap=True),
        *projected(kernel, schedule, sm, when, whole),
    ]


def decode(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """As latent_mla.decode."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    batch, _, seen, room, m = sizes()
    pages = T.dynamic("pages")
    body = attention(kernel, schedule, sm, split=False)

    @T.prim_func
    def mla_decode_paged(
        x0: T.Tensor((m * heads, latent + rope), BF16),
        x1: T.Tensor((pages, 1, PAGE, latent), BF16),
        x2: T.Tensor((pages, 1, PAGE, rope), BF16),
        x3: T.Tensor((batch, seen), I64),
        x4: T.Tensor((batch, 2), I64),
        x5: T.Tensor((batch, room), I64),
        y0: T.Tensor((m * heads, latent), BF16),
        tokens: T.int32,
        scale: T.float32,
    ):
        body(x0, x1, x2, x4, x5, pages, y0, y0, scale, batch, tokens, seen)

    return mla_decode_paged


def decode_split(kernel: Kernel, schedule: Schedule, sm: Sm) -> Any:
    """As latent_mla.decode_split."""
    heads, latent, rope = (kernel[n] for n in ("heads", "latent", "rope"))
    batch, _, seen, room, m = sizes()
    pages = T.dynamic("pages")
    count = parts(schedule, heads, sm, batch, m // batch, seen)
    body = attention(kernel, schedule, sm, split=True)

    @T.prim_func
    def mla_decode_paged_split(
        x0: T.Tensor((m * heads, latent + rope), BF16),
        x1: T.Tensor((pages, 1, PAGE, latent), BF16),
        x2: T.Tensor((pages, 1, PAGE, rope), BF16),
        x3: T.Tensor((batch, seen), I64),
        x4: T.Tensor((batch, 2), I64),
        x5: T.Tensor((batch, room), I64),
        s0: T.Tensor((m * heads * count, latent), BF16),
        s1: T.Tensor((m * heads * count,), F32),
        tokens: T.int32,
        scale: T.float32,
    ):
        body(x0, x1, x2, x4, x5, pages, s0, s1, scale, batch, tokens, seen)

    return mla_decode_paged_split.with_attr("tilelang_pass_configs", AS_WRITTEN)


def mla_decode_paged(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """As latent_mla.mla_decode, with pools x1 and x2 and a table x5."""
    whole = one_part(schedule, kernel["heads"], sm, "tokens", "seen")
    return [
        Step(decode(kernel, schedule, sm), whole, overlap=True),
        Step(decode_split(kernel, schedule, sm), f"!{whole}", overlap=True),
        Step(decode_combine(kernel, schedule, sm), f"!{whole}", overlap=True),
    ]
