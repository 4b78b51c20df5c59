"""A prefill over a cache in pages, or of codes: rows are copied out of it first, then all is as without.

    gather   s4, s5 = rows of the pools x3, x4 by the table x8    [batch, 1, seen, latent | rope]
             or, of e4m3 codes x3 with scales x8, bf16(x3 * x8); in pages by the table x9
    expand, turn, attend as in latent_prefill, with s4 and s5 for the caches

That is a thousandth of the work: a row is read by every head of 128 tokens and more.
"""

from collections.abc import Sequence
from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Step
from .latent_pages import NAN, PAGE, is_page, line_of, slot_of
from .latent_prefill import attend as attend_rows
from .latent_prefill import attention, expansion, turn, way
from .latent_shared import BF16, E4M3, F32, I64, sizes

ROWS, THREADS, VECTOR = 16, 128, 8  # rows of a block; bf16 of a 16-byte access


def copying() -> Any:
    """Rows of the span; those before and behind it are 0, and NaN those of what is no page."""

    @T.macro
    def copy(pool, out, width, table, b, r, begin, end, pages, seen, factors=None):
        slot = T.alloc_var("int32", init=0)
        part = T.alloc_local((VECTOR,), BF16)
        for i in T.unroll(-(-ROWS * width // (THREADS * VECTOR))):
            index = i * THREADS + T.get_thread_binding()
            row, column = r * ROWS + index // (width // VECTOR), index % (width // VECTOR) * VECTOR
            if T.And(index < ROWS * width // VECTOR, row < seen):
                slot = slot_of(table, b, row, end)
                for j in T.vectorized(VECTOR):
                    part[j] = T.cast(0, BF16)
                if T.And(row >= begin, row < end):
                    for j in T.vectorized(VECTOR):
                        part[j] = T.cast(NAN, BF16)
                    if is_page(table, slot, pages):
                        if factors is None:
                            for j in T.vectorized(VECTOR):
                                part[j] = pool[slot, 0, line_of(table, row, row, end), column + j]
                        else:
                            code = T.alloc_local((VECTOR,), E4M3)
                            factor = T.alloc_var(F32, init=0.0)
                            factor = factors[slot, 0, line_of(table, row, row, end), 0]
                            for j in T.vectorized(VECTOR):
                                code[j] = pool[slot, 0, line_of(table, row, row, end), column + j]
                            for j in T.unroll(VECTOR):
                                part[j] = T.cast(T.cast(code[j], F32) * factor, BF16)
                for j in T.vectorized(VECTOR):
                    out[b, 0, row, column + j] = part[j]

    return copy


def gather(kernel: Kernel) -> Any:
    """Out of pages."""
    latent, rope = kernel["latent"], kernel["rope"]
    batch, _, seen, room, _ = sizes()
    pages, copy = T.dynamic("pages"), copying()

    @T.prim_func
    def latent_gather(
        x3: T.Tensor((pages, 1, PAGE, latent), BF16),
        x4: T.Tensor((pages, 1, PAGE, rope), BF16),
        x6: T.Tensor((batch, 2), I64),
        x8: T.Tensor((batch, room), I64),
        s4: T.Tensor((batch, 1, seen, latent), BF16),
        s5: T.Tensor((batch, 1, seen, rope), BF16),
    ):
        with T.Kernel(T.ceildiv(seen, ROWS), batch, threads=THREADS) as (r, b):
            T.pdl_sync()
            T.pdl_trigger()
            begin = T.cast(x6[b, 0], "int32")
            end = T.cast(x6[b, 1], "int32")
            copy(x3, s4, latent, x8, b, r, begin, end, pages, seen)
            copy(x4, s5, rope, x8, b, r, begin, end, pages, seen)

    return latent_gather


def widen(kernel: Kernel) -> Any:
    """Of codes, each sequence's own."""
    latent = kernel["latent"]
    batch, _, seen, room, _ = sizes()
    copy = copying()

    @T.prim_func
    def latent_widen(
        x3: T.Tensor((batch, 1, room, latent), E4M3),
        x6: T.Tensor((batch, 2), I64),
        x8: T.Tensor((batch, 1, room, 1), F32),
        s4: T.Tensor((batch, 1, seen, latent), BF16),
    ):
        with T.Kernel(T.ceildiv(seen, ROWS), batch, threads=THREADS) as (r, b):
            T.pdl_sync()
            T.pdl_trigger()
            begin = T.cast(x6[b, 0], "int32")
            end = T.cast(x6[b, 1], "int32")
            copy(x3, s4, latent, None, b, r, begin, end, None, seen, x8)

    return latent_widen


def gather_coded(kernel: Kernel) -> Any:
    """Of codes, out of pages."""
    latent, rope = kernel["latent"], kernel["rope"]
    batch, _, seen, room, _ = sizes()
    pages, copy = T.dynamic("pages"), copying()

    @T.prim_func
    def latent_gather_coded(
        x3: T.Tensor((pages, 1, PAGE, latent), E4M3),
        x4: T.Tensor((pages, 1, PAGE, rope), BF16),
        x6: T.Tensor((batch, 2), I64),
        x8: T.Tensor((pages, 1, PAGE, 1), F32),
        x9: T.Tensor((batch, room), I64),
        s4: T.Tensor((batch, 1, seen, latent), BF16),
        s5: T.Tensor((batch, 1, seen, rope), BF16),
    ):
        with T.Kernel(T.ceildiv(seen, ROWS), batch, threads=THREADS) as (r, b):
            T.pdl_sync()
            T.pdl_trigger()
            begin = T.cast(x6[b, 0], "int32")
            end = T.cast(x6[b, 1], "int32")
            copy(x3, s4, latent, x9, b, r, begin, end, pages, seen, x8)
            copy(x4, s5, rope, x9, b, r, begin, end, pages, seen)

    return latent_gather_coded


def expand(kernel: Kernel, schedule: Schedule) -> Any:
    """As latent_prefill.expand."""
    latent, width = kernel["latent"], kernel["heads"] * (kernel["nope"] + kernel["value"])
    batch, _, seen, _, _ = sizes()
    body = expansion(kernel, schedule)

    @T.prim_func
    def latent_expand_gathered(
        x6: T.Tensor((batch, 2), I64),
        x7: T.Tensor((width, latent), BF16),
        s0: T.Tensor((batch, seen, width), BF16),
        s4: T.Tensor((batch, 1, seen, latent), BF16),
    ):
        body(s4, x6, x7, s0, batch, seen)

    return latent_expand_gathered


def attend(kernel: Kernel, schedule: Schedule) -> Any:
    """As latent_prefill.attend."""
    heads, rope, value = (kernel[n] for n in ("heads", "rope", "value"))
    batch, tokens, seen, _, _ = sizes()
    wide, body = heads * (kernel["nope"] + value), attention(kernel, schedule)

    @T.prim_func
    def latent_prefill_gathered(
        x0: T.Tensor((batch, tokens, kernel["width"]), BF16),
        x6: T.Tensor((batch, 2), I64),
        s0: T.Tensor((batch, seen, wide), BF16),
        s1: T.Tensor((batch, tokens, heads * rope), BF16),
        s5: T.Tensor((batch, 1, seen, rope), BF16),
        y0: T.Tensor((batch, tokens, heads * value), BF16),
        scale: T.float32,
    ):
        body(x0, s5, x6, s0, s1, y0, scale, batch, tokens)

    return latent_prefill_gathered.with_attr("global_symbol", f"latent_prefill{way(schedule)}_gathered")


def materialised_paged(kernel: Kernel, schedule: Schedule, when: str) -> Sequence[Step]:
    """latent_attention_paged where `when` holds."""
    return [
        Step(gather(kernel), when, overlap=True),
        Step(expand(kernel, schedule), when, overlap=True),
        Step(turn(kernel), when, overlap=True),
        Step(attend(kernel, schedule), when, overlap=True),
    ]


def materialised_coded(kernel: Kernel, schedule: Schedule, when: str, paged: bool) -> Sequence[Step]:
    """latent_attention over codes, in pages or not, where `when` holds."""
    out, attending = (gather_coded, attend) if paged else (widen, attend_rows)
    return [
        Step(out(kernel), when, overlap=True),
        Step(expand(kernel, schedule), when, overlap=True),
        Step(turn(kernel), when, overlap=True),
        Step(attending(kernel, schedule), when, overlap=True),
    ]
