"""What Qwen3 does to heads one by one: turns them, and writes keys and values into their caches."""

from collections.abc import Callable, Mapping, Sequence

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Step
from ..sm import Sm
from ..widths import widest
from . import attention

INTERLEAVED = 0  # PAIRS of targets/regions.py; the other is halves


def rotary(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """Each thread turns `vector` neighbouring pairs of a head. m: rows of x, batch * heads * tokens."""
    r, threads = kernel["r"], int(schedule["threads"])
    half = r // 2
    vector = min(widest(half), 4)
    pieces = half // vector
    pairs_in, pairs_out = kernel["pairs_in"], kernel["pairs_out"]
    m, batch, tokens = (T.dynamic(name) for name in ("m", "batch", "tokens"))

    @T.macro
    def read(x, row, pair, whole, first, second):
        if pairs_in == INTERLEAVED:
            for v in T.vectorized(2 * vector):
                whole[v] = x[row, 2 * pair + v]
            for v in T.unroll(vector):
                first[v] = T.cast(whole[2 * v], "float32")
                second[v] = T.cast(whole[2 * v + 1], "float32")
        else:
            for v in T.vectorized(vector):
                whole[v] = x[row, pair + v]
            for v in T.vectorized(vector):
                whole[vector + v] = x[row, half + pair + v]
            for v in T.unroll(vector):
                first[v] = T.cast(whole[v], "float32")
                second[v] = T.cast(whole[vector + v], "float32")

    @T.macro
    def write(y, row, pair, whole):
        if pairs_out == INTERLEAVED:
            for v in T.vectorized(2 * vector):
                y[row, 2 * pair + v] = whole[v]
        else:
            for v in T.vectorized(vector):
                y[row, pair + v] = whole[v]
            for v in T.vectorized(vector):
                y[row, half + pair + v] = whole[vector + v]

    @T.prim_func
    def rotary_kernel(
        x0: T.Tensor((m, r), "bfloat16"),
        x1: T.Tensor((batch, tokens, half), "float32"),
        x2: T.Tensor((batch, tokens, half), "float32"),
        y0: T.Tensor((m, r), "bfloat16"),
    ):
        with T.Kernel(m // tokens, T.ceildiv(tokens * pieces, threads), threads=threads) as (head, block):
            at = block * threads + T.get_thread_binding(0)
            t = at // pieces
            pair = at % pieces * vector
            b = T.alloc_var("int32")
            whole = T.alloc_local((2 * vector,), "bfloat16")
            first = T.alloc_local((vector,), "float32")
            second = T.alloc_local((vector,), "float32")
            cos = T.alloc_local((vector,), "float32")
            sin = T.alloc_local((vector,), "float32")
            T.pdl_trigger()
            T.pdl_sync()
            b = T.truncdiv(head * tokens, T.truncdiv(m, batch))
            if t < tokens:
                read(x0, head * tokens + t, pair, whole, first, second)
                for v in T.vectorized(vector):
                    cos[v] = x1[b, t, pair + v]
                for v in T.vectorized(vector):
                    sin[v] = x2[b, t, pair + v]
                step = 2 if pairs_out == INTERLEAVED else 1
                other = 1 if pairs_out == INTERLEAVED else vector
                for v in T.unroll(vector):
                    whole[step * v] = T.cast(first[v] * cos[v] - second[v] * sin[v], "bfloat16")
                    whole[step * v + other] = T.cast(second[v] * cos[v] + first[v] * sin[v], "bfloat16")
                write(y0, head * tokens + t, pair, whole)

    return [Step(rotary_kernel, overlap=True)]


def append(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """Only new rows are written: the cache, y0, is the operand's own memory."""
    h, d, threads = kernel["h"], kernel["d"], int(schedule["threads"])
    vector = widest(d)
    pieces = d // vector
    batch, tokens, room = (T.dynamic(name) for name in ("batch", "tokens", "room"))

    @T.prim_func
    def append_kernel(
        x1: T.Tensor((batch, h, tokens, d), "bfloat16"),
        x3: T.Tensor((batch, 2), "int64"),
        y0: T.Tensor((batch, h, room, d), "bfloat16"),
    ):
        with T.Kernel(T.ceildiv(tokens * pieces, threads), h, batch, threads=threads) as (block, head, b):
            at = block * threads + T.get_thread_binding(0)
            t = at // pieces
            copied = T.alloc_local((vector,), "bfloat16")
            T.pdl_trigger()
            T.pdl_sync()
            place = T.cast(x3[b, 1], "int32") - tokens + t
            if t < tokens and place >= 0 and place < room:
                for v in T.vectorized(vector):
                    copied[v] = x1[b, head, t, at % pieces * vector + v]
                for v in T.vectorized(vector):
                    y0[b, head, place, at % pieces * vector + v] = copied[v]

    return [Step(append_kernel, overlap=True)]


BUILDERS: Mapping[str, Callable[[Kernel, Schedule, Sm], Sequence[Step]]] = {
    "rotary": rotary,
    "append": append,
    "attention": attention.attention,
}
