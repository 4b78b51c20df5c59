"""Attention over blocks of keys: the rows of queries that share keys are the vector lanes.

    score   s[k, i] = sum_d first[k, d] * q[d, i] + sum_d second[k, d] * q[.. + d, i]
    soften  s becomes weights; running maximum and sum, down the lanes (softmax.py)
    weigh   acc[i, v] = acc[i, v] * carry[i] + sum_k s[k, i] * values[k, v]

Heads over one latent cache, tokens of one head, or both may sit side by side. Keys and values are read as
they lie in the cache, once per panel of `lanes` rows. q is transposed, zero padded to full lanes and already
scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm.script import tirx as T

from ...base import Kernel, Schedule
from ..isa import Isa
from . import matmul, rotary
from .matmul import FAR, LINE, divisor
from .softmax import merge, soften

# Products come for as many rows at a time.
HEIGHTS = (1, 2, 4)


def prefetch(element: Any) -> Any:
    """Ask for a buffer's element into the second-level cache; harmless beyond the buffer's end."""
    read, second_level, data = T.int32(0), T.int32(2), T.int32(1)
    return T.call_llvm_intrin("void", "llvm.prefetch", T.address_of(element), read, second_level, data)


def score(
    symbol: str,
    widths: tuple[int, int],
    strides: tuple[int, int],
    lanes: int,
    rows: int,
    unroll: int,
    ahead: int = 0,
) -> Any:
    """A function (first, second, next, q, s, keys): scores of each key with each row of a panel.

    first, second: float32, `keys` rows of `widths` elements, `strides` apart (second is not read if its width
    is 0); q: float32[sum(widths), lanes]; s: float32[keys rounded up to `rows`, lanes], noise beyond keys. On
    the way, about `ahead` elements for each key are asked into the second-level cache, from `next` on.
    """
    (one, two), (one_step, two_step) = widths, strides
    one_unroll, two_unroll = divisor(one, unroll), divisor(two, unroll) if two else 1
    of_tile = rows * ahead // LINE
    of_step = -(-of_tile * one_unroll // one)

    @T.prim_func(s_tir=True)
    def nest(
        first: T.handle("float32"),
        second: T.handle("float32"),
        next: T.handle("float32"),
        q: T.handle("float32"),
        s: T.handle("float32"),
        keys: T.int32,
    ):
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        FIRST = T.decl_buffer((keys * one_step,), "float32", data=first, align=4)
        SECOND = T.decl_buffer((keys * two_step + 1,), "float32", data=second, align=4)
        NEXT = T.decl_buffer((T.int64(FAR),), "float32", data=next, align=4)
        Q = T.decl_buffer((one + two, lanes), "float32", data=q, align=4)
        S = T.decl_buffer((keys + rows, lanes), "float32", data=s, align=4)
        for group in T.serial((keys + rows - 1) // rows):
            sums = T.alloc_buffer((rows, lanes), "float32", scope="global")
            for r in T.unroll(rows):
                for j in T.vectorized(lanes):
                    sums[r, j] = T.float32(0)
            for step in T.serial(one // one_unroll):
                for line in T.unroll(of_step):
                    T.evaluate(prefetch(NEXT[(group * of_tile + step * of_step + line) * LINE]))
                for u in T.unroll(one_unroll):
                    for r in T.unroll(rows):
                        for j in T.vectorized(lanes):
                            sums[r, j] = sums[r, j] + (
                                FIRST[T.min(group * rows + r, keys - 1) * one_step + step * one_unroll + u]
                                * Q[step * one_unroll + u, j]
                            )
            for step in T.serial(two // two_unroll):
                for u in T.unroll(two_unroll):
                    for r in T.unroll(rows):
                        for j in T.vectorized(lanes):
                            sums[r, j] = sums[r, j] + (
                                SECOND[T.min(group * rows + r, keys - 1) * two_step + step * two_unroll + u]
                                * Q[one + step * two_unroll + u, j]
                            )
            for r in T.unroll(rows):
                for j in T.vectorized(lanes):
                    S[group * rows + r, j] = sums[r, j]

    return nest


def weigh(symbol: str, size: int, stride: int, lanes: int, rows: int, width: int) -> Any:
    """A function (s, values, next, acc, carry, keys, tiles): acc = acc * carry + s^T values.

    s: float32[keys, lanes], of which tiles * rows lanes count; values: float32, `keys` rows of `size`
    elements, `stride` apart; acc: float32[lanes, size]; carry: float32[lanes]. This is all arithmetic, so
    memory has time: on the way, about keys * size elements from `next` on are asked into the second-level
    cache.
    """
    width = divisor(size, width)
    lines = max(width // LINE, 1)

    @T.prim_func(s_tir=True)
    def nest(
        s: T.handle("float32"),
        values: T.handle("float32"),
        next: T.handle("float32"),
        acc: T.handle("float32"),
        carry: T.handle("float32"),
        keys: T.int32,
        tiles: T.int32,
    ):
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        S = T.decl_buffer((keys, lanes), "float32", data=s, align=4)
        VALUES = T.decl_buffer((keys * stride,), "float32", data=values, align=4)
        NEXT = T.decl_buffer((T.int64(FAR),), "float32", data=next, align=4)
        ACC = T.decl_buffer((lanes, size), "float32", data=acc, align=4)
        CARRY = T.decl_buffer((lanes,), "float32", data=carry, align=4)
        for chunk, tile in T.grid(size // width, tiles):
            sums = T.alloc_buffer((rows, width), "float32", scope="global")
            for r in T.unroll(rows):
                for j in T.vectorized(width):
                    sums[r, j] = ACC[tile * rows + r, chunk * width + j] * CARRY[tile * rows + r]
            for k in T.serial(keys):
                for line in T.unroll(lines):
                    T.evaluate(
                        prefetch(NEXT[(((chunk * tiles + tile) * keys + k) // tiles * lines + line) * LINE])
                    )
                for r in T.unroll(rows):
                    for j in T.vectorized(width):
                        sums[r, j] = (
                            sums[r, j] + S[k, tile * rows + r] * VALUES[k * stride + chunk * width + j]
                        )
            for r in T.unroll(rows):
                for j in T.vectorized(width):
                    ACC[tile * rows + r, chunk * width + j] = sums[r, j]

    return nest


def panel(
    name: str,
    widths: tuple[int, int],
    value: int,
    strides: tuple[int, int, int],
    lanes: int,
    schedule: Schedule,
    ahead: int = 0,
) -> list[Any]:
    """The three functions of one width of panel; strides: of both parts of a key and of a value."""
    keys, unroll, rows, width = (int(schedule[knob]) for knob in ("keys", "unroll", "tile", "width"))
    return [
        score(f"{name}_score", widths, strides[:2], lanes, keys, unroll, ahead),
        soften(f"{name}_soften", lanes),
        weigh(f"{name}_weigh", value, strides[2], lanes, min(rows, lanes), width),
    ]


def grouped(kernel: Kernel, schedule: Schedule, isa: Isa, prefix: str) -> Sequence[Any]:
    """In the order of runtime/attention.cc: panels of few rows, of many, merge."""
    key, value = kernel["dk"], kernel["dv"]
    sizes = (key, 0), value, (key, 0, value)
    return [
        *panel(f"{prefix}_few", *sizes, int(schedule["few"]), schedule, ahead=value),
        *panel(f"{prefix}_many", *sizes, int(schedule["many"]), schedule, ahead=value),
        merge(f"{prefix}_merge", value, isa.lanes),
    ]


def latent(kernel: Kernel, schedule: Schedule, isa: Isa, prefix: str) -> Sequence[Any]:
    """In the order of runtime/attention.cc's LatentFunction."""
    nope, rope, width, value = (kernel[name] for name in ("nope", "rope", "latent", "value"))
    nr, few, many = (int(schedule[knob]) for knob in ("nr", "few", "many"))
    absorbed = (width, rope), width, (width, rope, width)
    expanded = panel(
        f"{prefix}_keys", (nope, rope), value, (padded(nope, nr), rope, padded(value, nr)), many, schedule
    )
    turned = rotary.rotate(f"{prefix}_rotate", rope, isa.lanes, kernel["pairs_in"], kernel["pairs_out"])
    return [
        *panel(f"{prefix}_few", *absorbed, few, schedule),
        *panel(f"{prefix}_many", *absorbed, many, schedule),
        expanded[0],
        expanded[2],
        merge(f"{prefix}_merge_latent", width, isa.lanes),
        merge(f"{prefix}_merge_value", value, isa.lanes),
        turned,
        *products(f"{prefix}_nope", nope, nr, isa),
        *products(f"{prefix}_latent", width, nr, isa),
    ]


def products(name: str, k: int, nr: int, isa: Isa) -> list[Any]:
    """The matmul tile for each of HEIGHTS."""
    return [matmul.tile(f"{name}{rows}", rows, k, nr, isa.lanes, unroll=2) for rows in HEIGHTS]


def padded(size: int, to: int) -> int:
    """size rounded up to a multiple."""
    return -(-size // to) * to


BUILDERS: Mapping[str, Callable[[Kernel, Schedule, Isa, str], Sequence[Any]]] = {
    "attention": grouped,
    "latent_attention": latent,
}
