"""Attention over blocks of keys: the rows of queries that share keys are the vector lanes.

    score   s[k, i] = sum_d first[k, d] * q[d, i] + sum_d second[k, d] * q[.. + d, i]
    soften  s becomes weights; running maximum and sum, down the lanes (softmax.py)
    weigh   acc[i, v] = acc[i, v] * carry[i] + sum_k s[k, i] * values[k, v]

Heads over one latent cache, tokens of one head, or both may sit side by side. Keys and values are read as
they lie in the cache, once per panel of `lanes` rows. q is transposed, zero padded to full lanes and already
scaled.

One token of 16 heads over 4096 keys of 576 and values of 512, on two cores with AVX-512 that were quiet: at
the peak of multiplication 0.41 ms; 0.47 where all lies in the second cache, 0.56 in the third, 0.71 from
memory, which plain loads read in 0.54. The same loops in C++, asking in the order of addresses, took as long,
with 16, 32 and 64 keys and tiles of 16x1, 8x2 and 6x4; without asking 1.5 times as long. Asking 128 keys
ahead, for every other line or for lines into the first cache too was slower. Panels of two vectors load each
element of a key for two products: in one run 128 heads reached 84 % of the peak, with panels of one 78; in a
later one 79. This takes caches that start at a cache line; else loads of values are two each, and 128 heads
with panels of one reached 57 %.

On two cores of a Zen 3, at 0.31 ns a cycle, scores of a key of 576 in the second cache took 180 ns (178 at
the peak), soften 8, values 197 with 24 keys at a time and 170 with 96 (158), since sums come and go with each
block. From memory longer blocks gained nothing: 16 heads over 4096 took 1.07 ms with 24 keys, 1.15 with 32
and 1.10 with 48, where the peak is 0.73. Nor did unrolled keys, asking into the first cache or evenly among
tiles, spans of 1024 and 2048, and for 128 heads projecting for some while others attend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm.script import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ...base import Kernel, Schedule
from ..isa import Isa
from . import matmul, rotary
from .bfloat import BYTES, STORED, widened
from .coded import decode
from .matmul import FAR, LINE, divisor, loops, prefetch
from .softmax import merge, soften
from .weigh import weigh

# Products come for as many rows at a time.
HEIGHTS = (1, 2, 4)


def score(
    symbol: str,
    widths: tuple[int, int],
    strides: tuple[int, int],
    lanes: int,
    rows: int,
    unroll: int,
    asked: int,
    stored: str,
) -> Any:
    """A function (first, second, next, q, s, keys): scores of each key with each row of a panel.

    first, second: float32, `keys` rows of `widths` elements, `strides` apart (second is not read if its width
    is 0); q: float32[sum(widths), lanes]; s: float32[keys, lanes]. Keys go `rows` at a time, the last tile
    ending with the last key; fewer than `rows` go one by one. On the way, `asked` elements for each key are
    asked into the second-level cache, from `next` on, `stored` as in bfloat.py, at several places by turns.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(symbol)
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        kinds = {**dict.fromkeys(("FIRST", "SECOND", "NEXT", "Q", "S"), "float32"), "NEXT": stored}
        pointers = {name: T.arg(name.lower(), T.handle(kind)) for name, kind in kinds.items()}
        keys = T.arg("keys", T.int32())
        far = (T.int64(FAR),)
        shapes = {"FIRST": far, "SECOND": far, "NEXT": far, "Q": (sum(widths), lanes), "S": (keys, lanes)}
        buffers = {}
        for name, shape in shapes.items():
            kind, data = kinds[name], pointers[name]
            buffers[name] = IRBuilder.name(name, T.decl_buffer(shape, kind, data=data, align=BYTES[kind]))
        with T.If(keys >= rows):
            with T.Then(), loops(group=T.serial(T.truncdiv(keys + rows - 1, rows))) as (group,):
                start = T.min(group * rows, keys - rows)
                multiply(buffers, start, rows, widths, strides, unroll, group * rows * asked, asked)
            with T.Else(), loops(key=T.serial(keys)) as (key,):
                multiply(buffers, key, 1, widths, strides, unroll, 0, 0)
    return builder.get()


def multiply(
    buffers: Mapping[str, Any],
    start: Any,
    rows: int,
    widths: tuple[int, int],
    strides: tuple[int, int],
    unroll: int,
    wanted: Any,
    asked: int,
) -> None:
    """Scores of keys start.., `rows` of them, which lie at constant distances from one pointer; a pointer for
    each takes longer, see weigh.py. Elements of NEXT are asked for from `wanted` on.
    """
    NEXT, Q, S = (buffers[name] for name in ("NEXT", "Q", "S"))
    lanes, line = int(S.shape[1]), LINE * BYTES["float32"] // BYTES[str(NEXT.dtype)]
    sums = IRBuilder.name("sums", T.alloc_buffer((rows, lanes), "float32", scope="global"))
    with loops(r=T.unroll(rows), j=T.vectorized(lanes)) as (r, j):
        T.buffer_store(sums, T.float32(0), [r, j])
    for X, width, stride, at in zip((buffers["FIRST"], buffers["SECOND"]), widths, strides, (0, widths[0])):
        turn = divisor(width, unroll) if width else 1
        lines = 0 if at else -(-rows * asked * turn // (width * line))
        with loops(step=T.serial(width // turn)) as (step,):
            with loops(i=T.unroll(lines)) as (i,):
                T.evaluate(prefetch(NEXT[wanted + (i * (width // turn) + step) * line], level=2))
            with loops(u=T.unroll(turn), r=T.unroll(rows), j=T.vectorized(lanes)) as (u, r, j):
                product = X[(start + r) * stride + step * turn + u] * Q[at + step * turn + u, j]
                T.buffer_store(sums, sums[r, j] + product, [r, j])
    with loops(r=T.unroll(rows), j=T.vectorized(lanes)) as (r, j):
        T.buffer_store(S, sums[r, j], [start + r, j])


def widen(symbol: str, lanes: int) -> Any:
    """A function (x, y, count): `count` bfloat16 as float32."""
    width = 4 * lanes

    @tirx.prim_func(s_tir=True)
    def nest(x: tirx.handle("uint16"), y: tirx.handle("float32"), count: tirx.int32):
        tirx.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        X = tirx.decl_buffer((count,), "uint16", data=x, align=2)
        Y = tirx.decl_buffer((count,), "float32", data=y, align=4)
        for c in tirx.serial(tirx.truncdiv(count, width)):
            for j in tirx.vectorized(width):
                Y[c * width + j] = widened(X[c * width + j])
        for j in tirx.serial(tirx.truncmod(count, width)):
            Y[count - 1 - j] = widened(X[count - 1 - j])

    return nest


def panel(
    name: str,
    widths: tuple[int, int],
    value: int,
    strides: tuple[int, int, int, int],
    form: tuple[int, int, int, Isa],
    asked: int,
    stored: str,
) -> list[Any]:
    """The three functions of one width of panel.

    form: its lanes, vectors of sums in registers at most, and steps of scores at a time. strides: of both
    parts of a key, of a value and of what is asked for while values are mixed. asked: elements for each key
    that are asked for with scores, `stored` as in bfloat.py.
    """
    lanes, sums, unroll, isa = form
    keys = sums // -(-lanes // isa.lanes)
    rows = min(keys, lanes)
    width = min(4, sums // rows) * isa.lanes
    return [
        score(f"{name}_score", widths, strides[:2], lanes, keys, unroll, asked, stored),
        soften(f"{name}_soften", lanes),
        weigh(f"{name}_weigh", value, strides[2:], lanes, rows, width, stored, in_order=isa.registers == 16),
    ]


def panels(schedule: Schedule, isa: Isa) -> dict[str, tuple[int, int, int, Isa]]:
    """The form of panels of few rows and of many."""
    return {
        form: (int(schedule[form]), int(schedule[f"{form}_sums"]), int(schedule["unroll"]), isa)
        for form in ("few", "many")
    }


def grouped(kernel: Kernel, schedule: Schedule, isa: Isa, prefix: str) -> Sequence[Any]:
    """In the order of runtime/attention.cc: panels of few rows, of many, merge; widen for narrow caches."""
    key, value, stored = kernel["dk"], kernel["dv"], STORED[kernel.cache]
    sizes = (key, 0), value, (key, 0, value, value)
    forms = panels(schedule, isa).items()
    return [
        *(one for form, told in forms for one in panel(f"{prefix}_{form}", *sizes, told, key, stored)),
        merge(f"{prefix}_merge", value, isa.lanes),
        *([widen(f"{prefix}_widen", isa.lanes)] if stored != "float32" else []),
    ]


def latent(kernel: Kernel, schedule: Schedule, isa: Isa, prefix: str) -> Sequence[Any]:
    """In the order of runtime/attention.cc's LatentFunction."""
    nope, rope, width, value = (kernel[name] for name in ("nope", "rope", "latent", "value"))
    nr, forms = int(schedule["nr"]), panels(schedule, isa)
    weights, stored = STORED[kernel.weights], STORED[kernel.cache]
    absorbed = (width, rope), width, (width, rope, width, width)
    asked = rope * (2 if stored == "int8" else 1)  # of keys, which are bfloat16 beside codes
    strides = padded(nope, nr), rope, padded(value, nr), width
    expanded = panel(f"{prefix}_keys", (nope, rope), value, strides, forms["many"], 0, stored)
    turned = rotary.rotate(f"{prefix}_rotate", rope, isa.lanes, kernel["pairs_in"], kernel["pairs_out"])
    return [
        *(
            one
            for form, told in forms.items()
            for one in panel(f"{prefix}_{form}", *absorbed, told, asked, stored)
        ),
        expanded[0],
        expanded[2],
        merge(f"{prefix}_merge_latent", width, isa.lanes),
        merge(f"{prefix}_merge_value", value, isa.lanes),
        turned,
        *products(f"{prefix}_nope", nope, nr, isa, weights),
        *products(f"{prefix}_latent", width, nr, isa, weights),
        *([widen(f"{prefix}_widen", isa.lanes)] if stored != "float32" else []),
        *([decode(f"{prefix}_decode", width)] if stored == "int8" else []),
    ]


def products(name: str, k: int, nr: int, isa: Isa, stored: str) -> list[Any]:
    """The matmul tile for each of HEIGHTS. A few rows read weights from memory and ask for them early; more
    come in turns, which find them in the cache.
    """
    return [
        matmul.tile(f"{name}{rows}", rows, k, nr, isa, unroll=2, ahead=128 if rows < 4 else 0, stored=stored)
        for rows in HEIGHTS
    ]


def padded(size: int, to: int) -> int:
    """size rounded up to a multiple."""
    return -(-size // to) * to


BUILDERS: Mapping[str, Callable[[Kernel, Schedule, Isa, str], Sequence[Any]]] = {
    "attention": grouped,
    "latent_attention": latent,
}
