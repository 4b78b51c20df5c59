"""Tiles of weights stored in 4 or 8 bits: products of codes summed by groups of 32 along k, then scaled.

x is rounded to records of codes once, by a function of its own.

What bounds a tall tile on AVX512-VNNI: two ports do all vector arithmetic. A group takes 8 products for a row
and a vector of columns, and two more instructions for its scales: 80 % of the peak at most. For all rows of a
tile together come 12 to unpack codes of 4 bits and 4 for scales, so 12 rows take 136 slots for 96 products,
71 %. Such mixes with nothing to wait for took 59.5 and 66 cycles on an Emerald Rapids (81 and 73 %); tiles of
12 rows take 71 to 72 (66 to 68 %; int8 67), weights in the second cache. Codes unpacked once for all tiles of
a panel would be next; with AMX, amx.py goes another way.

With AVX2 alone numbers of x are loaded by instructions of their own, so they should meet many columns: on a
Zen 3, where the exact sum of a group takes a row and a vector 8 cycles by vpmaddubsw and vpmaddwd for each
word (what the benchmarks call the int8 peak) and in 4 bits less, tiles of 4 bits took 10.2 to 11.1 with one
vector of columns together, 9.2 to 10.0 with two, 8.4 to 9.3 with four, at 4 to 12 rows. Tiles of 8 bits took
17 to 21 in most shapes: of their four instructions for a word three are thought to share two ports.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ....compiler.ops.quantize import GROUP
from ...base import Kernel, Schedule
from ...regions import BITS
from ..isa import Isa
from . import amx
from .codes import RECORD, SCALE, START, Group, Shape, buffer, operands, pointers, registers
from .dot import ONES, ONES_FLOAT, Dot, call, dot
from .matmul import FINISH, divisor, finished, loops


def tile(symbol: str, shape: Shape, by: Dot, finish: str) -> Any:
    """A function (x, xat, w, scales, y, yat, extra, panels).

        y[yat[i] + p * width + j] = finish(sum over k of x[row i, k] * w[p, k, j])

    x: records, row i's from x[xat[0] + i * k / 32 * RECORD] on, in int32; w: int32[panels, k / 32 * bits,
    nr]; scales: float16[panels, k / 32, nr]; the others as in matmul.tile.
    """
    rows, nr, lanes = shape.rows, shape.nr, shape.lanes
    width = nr // 2 if finish == "swiglu" else nr
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        of = operands(symbol, shape)
        with loops(p=T.serial(of.panels)) as (p,):
            C = registers("C", "float32", rows, nr)
            for first in range(0, nr // lanes, shape.together):
                vectors = range(first, first + shape.together)
                for i, v in ((i, v) for i in range(rows) for v in vectors):
                    T.buffer_store(C, T.broadcast(T.float32(0), lanes), [i, T.ramp(v * lanes, 1, lanes)])
                with loops(g=T.serial(shape.groups)) as (g,):
                    if shape.together * lanes == nr:
                        of.stream(p, g, shape, on=finish != "accumulate")  # of an expert few panels come
                    else:
                        of.ask(p, g, shape, range(first * lanes, vectors.stop * lanes))
                    add(of.group(p, g, shape), by, C, vectors)
            with loops(i=T.unroll(rows), v=T.unroll(width // lanes), j=T.vectorized(lanes)) as (i, v, j):
                to = of.YAT[i] + T.cast(p * width + v * lanes + j, "int64")
                result = finished(finish, lambda i, j: C[i, j], width, of.Y, of.E, to, i, v * lanes + j)
                T.buffer_store(of.Y, result, [to])
    return builder.get()


def add(group: Group, by: Dot, C: Any, vectors: range) -> None:
    """A group's products to some vectors of the sums C; one step's codes meet all rows before the next's."""
    shape, (kind, size) = group.shape, by.sums
    lanes, rows = shape.lanes, range(shape.rows)
    A = registers("A", kind, shape.rows, shape.together * size)

    def sums(i: int, v: int) -> list[Any]:
        return [i, T.ramp((v - vectors.start) * size, 1, size)]

    for i, v in ((i, v) for v in vectors for i in rows):
        T.buffer_store(A, by.start(group.x(i, START)), sums(i, v))
    for step, v in ((step, v) for step in range(shape.bits) for v in vectors):
        for word, codes in group.weights(step, v):
            weight = tuple(map(T.bind, by.weight(codes)))
            for i in rows:
                T.buffer_store(A, by.add(A[*sums(i, v)], weight, group.x(i, word)), sums(i, v))
    for v in vectors:
        columns, scale = T.ramp(v * lanes, 1, lanes), group.scales(v)
        ones = T.bind(scale * T.broadcast(T.float32(-ONES_FLOAT), lanes))  # exact: scales were float16
        for i in rows:
            total = T.reinterpret(f"float32x{lanes}", by.total(A[*sums(i, v)], group.x(i, START)))
            mine = T.broadcast(T.reinterpret("float32", group.x(i, SCALE)), lanes)
            scaled = call(f"float32x{lanes}", "llvm.fma", total, scale, ones)
            T.buffer_store(C, C[i, columns] + scaled * mine, [i, columns])


def rounding(symbol: str, zero: int) -> Any:
    """A function (x, q, groups): groups of 32 float32 to as many records.

    scale = the largest magnitude / 127, codes = x / scale to the nearest integer, half to even; start =
    ONES - zero * the codes' sum. A group of zeros has scale 0, one with a NaN that.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(symbol)
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        at = pointers(X="float32", Q="int32")
        groups = T.arg("groups", T.int32())
        X = buffer("X", "float32", [groups, GROUP], at["X"])
        Q = buffer("Q", "int32", [groups, RECORD], at["Q"])
        with loops(g=T.serial(groups)) as (g,):
            lanes = GROUP // 2  # split further where registers are narrower
            parts = [T.bind(X[g, T.ramp(v, 1, lanes)]) for v in (0, lanes)]
            largest = T.bind(T.reinterpret("float32", reduced("smax", reduce(T.max, map(magnitude, parts)))))
            scale = T.bind(largest / T.float32(127))
            by = T.broadcast(T.Select(scale == T.float32(0), T.float32(1), scale), lanes)
            codes = [T.bind(nearest(part / by)) for part in parts]
            for v, part in enumerate(codes):
                bytes_ = T.reinterpret(f"int32x{lanes // 4}", T.cast(part, f"int8x{lanes}"))
                T.buffer_store(Q, bytes_, [g, T.ramp(v * lanes // 4, 1, lanes // 4)])
            T.buffer_store(Q, T.reinterpret("int32", scale), [g, SCALE])
            total = reduced("add", reduce(lambda a, b: a + b, codes))
            T.buffer_store(Q, total * T.int32(-zero) + T.int32(ONES), [g, START])
    return builder.get()


def lanes_of(vector: Any) -> int:
    """How many elements a vector has."""
    return int(vector.dtype.rpartition("x")[2])


def magnitude(x: Any) -> Any:
    """A vector of float32 without signs, as int32: in the same order, NaN above all."""
    lanes = lanes_of(x)
    return T.reinterpret(f"int32x{lanes}", x) & T.broadcast(T.int32(0x7FFFFFFF), lanes)


def reduced(operation: str, vector: Any) -> Any:
    """One int32 of all elements."""
    return call("int32", f"llvm.vector.reduce.{operation}", vector)


def nearest(x: Any) -> Any:
    """A vector of float32 as integers up to 127; only quotients by a denormal scale are beyond."""
    lanes = lanes_of(x)
    most = T.broadcast(T.float32(127), lanes)
    return T.cast(T.nearbyint(T.max(T.min(x, most), T.float32(0) - most)), f"int32x{lanes}")


def tiles(kernel: Kernel, schedule: Schedule, isa: Isa, prefix: str) -> Sequence[Any]:
    """Tiles of 1, 2, .. mr rows, then the function that rounds x; with AMX those of amx.py."""
    k, nr, mr, sums, ahead = (kernel["k"], *(int(schedule[knob]) for knob in ("nr", "mr", "sums", "ahead")))
    bits, finish = BITS[kernel.weights], FINISH[kernel.kind]
    by, asked = dot(isa, bits), (ahead, schedule["ask"] == "all")

    def height(rows: int) -> Any:
        together = divisor(nr // isa.lanes, max(1, sums // rows))
        shape = Shape(rows, k, nr, isa.lanes, together, bits, *asked)
        return tile(f"{prefix}_{rows}", shape, by, finish)

    made = [*map(height, range(1, mr + 1)), rounding(f"{prefix}_rounding", by.zero)]
    if isa.dot == amx.INSTRUCTION:
        made += [
            amx.folding(f"{prefix}_folding", k),
            amx.comparing(f"{prefix}_comparing", k, nr),
            amx.tile(f"{prefix}_tall", k, nr, bits, finish),
        ]
    return made


BUILDERS = dict.fromkeys(FINISH, tiles)
