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
from .bfloat import STORED, widened
from .matmul import FAR, LINE, divisor
from .softmax import merge, soften
from .weigh import prefetch, weigh

# Products come for as many rows at a time.
HEIGHTS = (1, 2, 4)


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


def widen(symbol: str, lanes: int) -> Any:
    """A function (x, y, count): `count` bfloat16 as float32."""
    width = 4 * lanes

    @T.prim_func(s_tir=True)
    def nest(x: T.handle("uint16"), y: T.handle("float32"), count: T.int32):
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        X = T.decl_buffer((count,), "uint16", data=x, align=2)
        Y = T.decl_buffer((count,), "float32", data=y, align=4)
        for c in T.serial(T.truncdiv(count, width)):
            for j in T.vectorized(width):
                Y[c * width + j] = widened(X[c * width + j])
        for j in T.serial(T.truncmod(count, width)):
            Y[count - 1 - j] = widened(X[count - 1 - j])

    return nest


def panel(
    name: str,
    widths: tuple[int, int],
    value: int,
    strides: tuple[int, int, int],
    lanes: int,
    schedule: Schedule,
    ahead: int = 0,
    stored: str = "float32",
) -> list[Any]:
    """The three functions of one width of panel; strides: of both parts of a key and of a value.

    ahead: elements of a value that are not in the cache when scores are made; stored: how the next keys are.
    """
    keys, unroll, rows, width = (int(schedule[knob]) for knob in ("keys", "unroll", "tile", "width"))
    return [
        score(f"{name}_score", widths, strides[:2], lanes, keys, unroll, ahead),
        soften(f"{name}_soften", lanes),
        weigh(f"{name}_weigh", value, strides[2], lanes, min(rows, lanes), width, stored),
    ]


def grouped(kernel: Kernel, schedule: Schedule, isa: Isa, prefix: str) -> Sequence[Any]:
    """In the order of runtime/attention.cc: panels of few rows, of many, merge; widen for narrow caches."""
    key, value, stored = kernel["dk"], kernel["dv"], STORED[kernel.cache]
    sizes = (key, 0), value, (key, 0, value)
    narrow = stored != "float32"
    ahead = 0 if narrow else value
    return [
        *panel(f"{prefix}_few", *sizes, int(schedule["few"]), schedule, ahead, stored),
        *panel(f"{prefix}_many", *sizes, int(schedule["many"]), schedule, ahead, stored),
        merge(f"{prefix}_merge", value, isa.lanes),
        *([widen(f"{prefix}_widen", isa.lanes)] if narrow else []),
    ]


def latent(kernel: Kernel, schedule: Schedule, isa: Isa, prefix: str) -> Sequence[Any]:
    """In the order of runtime/attention.cc's LatentFunction."""
    nope, rope, width, value = (kernel[name] for name in ("nope", "rope", "latent", "value"))
    nr, few, many = (int(schedule[knob]) for knob in ("nr", "few", "many"))
    weights, stored = STORED[kernel.weights], STORED[kernel.cache]
    absorbed = (width, rope), width, (width, rope, width)
    strides = padded(nope, nr), rope, padded(value, nr)
    expanded = panel(f"{prefix}_keys", (nope, rope), value, strides, many, schedule, stored=stored)
    turned = rotary.rotate(f"{prefix}_rotate", rope, isa.lanes, kernel["pairs_in"], kernel["pairs_out"])
    return [
        *panel(f"{prefix}_few", *absorbed, few, schedule, stored=stored),
        *panel(f"{prefix}_many", *absorbed, many, schedule, stored=stored),
        expanded[0],
        expanded[2],
        merge(f"{prefix}_merge_latent", width, isa.lanes),
        merge(f"{prefix}_merge_value", value, isa.lanes),
        turned,
        *products(f"{prefix}_nope", nope, nr, isa, weights),
        *products(f"{prefix}_latent", width, nr, isa, weights),
        *([widen(f"{prefix}_widen", isa.lanes)] if stored != "float32" else []),
    ]


def products(name: str, k: int, nr: int, isa: Isa, stored: str) -> list[Any]:
    """The matmul tile for each of HEIGHTS."""
    return [matmul.tile(f"{name}{rows}", rows, k, nr, isa.lanes, unroll=2, stored=stored) for rows in HEIGHTS]


def padded(size: int, to: int) -> int:
    """size rounded up to a multiple."""
    return -(-size // to) * to


BUILDERS: Mapping[str, Callable[[Kernel, Schedule, Isa, str], Sequence[Any]]] = {
    "attention": grouped,
    "latent_attention": latent,
}
