"""Values mixed by the weights that softmax gave their keys: the second half of attention over a block."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from .bfloat import BYTES
from .matmul import FAR, LINE, divisor, loops, prefetch

APART = LINE  # elements between rows of sums, or rows of 2 KiB would all want the same few lines of a cache


def weigh(
    symbol: str,
    size: int,
    strides: tuple[int, int],
    lanes: int,
    rows: int,
    width: int,
    stored: str,
    in_order: bool,
) -> Any:
    """A function (s, values, next, acc, carry, keys, used): acc = acc * carry + s^T values.

    s: float32[keys, lanes], of which the first `used` lanes count; values: float32, `keys` rows of `size`
    elements; acc: float32[lanes, size + APART]; carry: float32[lanes]; strides: of rows of values and next.
    At most `rows` lanes and `width` columns are in registers together. This is all arithmetic, so memory has
    time: on the way, `size` elements of as many rows from `next` on, `stored` as in bfloat.py, are asked into
    the second-level cache, by each tile a part of each row's columns. in_order: by the first tile alone, in
    the order of addresses, which suits a Zen 3's prefetchers: there a key of 512 elements in the third cache
    took 16 rows 243 ns by columns, a loop in C++ 204 in order and 201 with nothing asked (the
    peak: 158), and attention of 16 heads over caches in memory 3 to 6 % less, APART included.
    """
    width, tiles = divisor(size, width), -(-lanes // rows)
    starts = [lanes * tile // tiles for tile in range(tiles + 1)]
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(symbol)
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        kinds = {**dict.fromkeys(("S", "VALUES", "NEXT", "ACC", "CARRY"), "float32"), "NEXT": stored}
        pointers = {name: T.arg(name.lower(), T.handle(kind)) for name, kind in kinds.items()}
        keys, used = T.arg("keys", T.int32()), T.arg("used", T.int32())
        far = T.int64(FAR)
        shapes = {
            "S": (keys, lanes),
            "VALUES": (far,),
            "NEXT": (far,),
            "ACC": (lanes, size + APART),
            "CARRY": (lanes,),
        }
        buffers = {}
        for name, shape in shapes.items():
            kind, data = kinds[name], pointers[name]
            buffers[name] = IRBuilder.name(name, T.decl_buffer(shape, kind, data=data, align=BYTES[kind]))
        with loops(chunk=T.serial(size // width)) as (chunk,):
            for tile, (first, last) in enumerate(pairwise(starts)):
                with T.If(used > first), T.Then():
                    if in_order:
                        asked = chunk * width * keys, width, 0 if tile else width
                    else:
                        asked = chunk * width + width // tiles * tile, strides[1], width // tiles
                    mix(buffers, first, last - first, chunk * width, width, keys, strides[0], asked)
    return builder.get()


def mix(
    buffers: Mapping[str, Any],
    first: int,
    rows: int,
    column: Any,
    width: int,
    keys: Any,
    stride: int,
    asked: tuple[Any, int, int],
) -> None:
    """Rows first.. and columns column.. over all keys. asked: for each key where, how far apart and how many.

    LLVM lets pointers share an index if the steps of one are 1, 2, 4 or 8 times those of the other, and a
    product whose operand is read through an index takes two slots of the core's front end. NEXT goes in steps
    of rows, so S has a pointer of its own; in order it goes in steps of lines, but AVX2 has no product with
    one number of memory for all lanes. With a shared index, a key of 512 elements took 16 rows 188 ns; a loop
    of this shape in C++ took 114, both on a core that was probably shared.
    """
    S, VALUES, NEXT, ACC, CARRY = (buffers[name] for name in ("S", "VALUES", "NEXT", "ACC", "CARRY"))
    line = LINE * BYTES["float32"] // BYTES[str(NEXT.dtype)]
    at, step, count = asked
    sums = IRBuilder.name("sums", T.alloc_buffer((rows, width), "float32", scope="global"))
    with loops(r=T.unroll(rows), j=T.vectorized(width)) as (r, j):
        T.buffer_store(sums, ACC[first + r, column + j] * CARRY[first + r], [r, j])
    with loops(k=T.serial(keys)) as (k,):
        with loops(part=T.unroll(max(count // line, min(count, 1)))) as (part,):
            T.evaluate(prefetch(NEXT[at + k * step + part * line], level=2))
        with loops(r=T.unroll(rows), j=T.vectorized(width)) as (r, j):
            product = S[k, first + r] * VALUES[k * stride + column + j]
            T.buffer_store(sums, sums[r, j] + product, [r, j])
    with loops(r=T.unroll(rows), j=T.vectorized(width)) as (r, j):
        T.buffer_store(ACC, sums[r, j], [first + r, column + j])
