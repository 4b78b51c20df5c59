"""Tall tiles of products of bytes in AMX's registers: 3 * 16 rows of x by 16 columns, summed over all of k.

These registers are filled from memory and know nothing but products, so scaling the sum of each group takes
longer than AMX takes for its products: storing it takes as long as they do, and more to read and add it up.
Here scales go into the numbers instead. Under one scale a row, x * scale_g / T is rounded to 16 bits, and so
is w * scale_g / S under one a column; of each the high and the low byte are numbers of their own:

    sum x w = T S (2^16 sum xh wh + 2^8 (sum xl wh + sum xh wl) + sum xl wl)

Three products of bytes for each are needed then, but no sum before the last. xl wl is left out, or rather wl,
which is unsigned, stands for its middle there. With rounding that leaves sqrt((74 * 74 / x w)^2 + (0.3 / x)^2
+ (0.3 / w)^2) of a sum, x and w being root mean squares in units of 16 bits. Measured, of the largest result:
5e-5 for uniform numbers, 2e-4 where some columns of x are up to 90 times as large as most. A row of few huge
numbers and a column of unlike scales would be worse off: the functions that fold and compare find them, and
the driver gives them to the exact tiles.

w is unpacked while what was unpacked before is multiplied: vectors and matrices work side by side. On an
Emerald Rapids 48 rows by 16 columns took 133 cycles a group, 72 being the products alone and 192 what VNNI's
peak takes (144 % of it; from memory 123; int8 117 and 100): what bounds it is x, which comes from the second
cache for each 16 columns. A program on the core's other thread makes tile instructions take three to five
times as long, and VNNI's hardly: then these tiles did 53 to 56 %, VNNI's 61 to 65.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ....compiler.ops.quantize import GROUP
from .codes import CODES, RECORD, SCALE, buffer, pointers, registers
from .dot import call
from .matmul import FAR, finished, loops, prefetch

INSTRUCTION = "tdpbsud"
LANES, LINE = 16, 16  # int32 of a vector and of a cache line
TILES = 3  # of up to 16 rows
STEP = 2 * GROUP  # columns of x in a tile register
X_TILE, W_TILE = 2 * TILES, 2 * TILES + 1  # registers; before them high and low sums of each tile
MOST_X, MOST_W = 127 * 257, 32767
# A row of x is, for each STEP, high then low bytes; then this line: its scale, middle * the sum of its low
# bytes, and whether it fits, as int32.
SCALE_AT, MIDDLE_AT, FITS_AT = 0, 1, 2
MIDDLE = 127.5
# Mean of squares of high bytes that a row has at least: its largest number is 24 times the root mean square.
LEAST_SQUARE = 28
MOST_RATIO = 16  # of scales of a column


def row_size(k: int) -> int:
    """int32 of a row of x."""
    return -(-k // STEP) * 2 * LINE + LINE


def tile_op(name: str, *arguments: Any) -> None:
    """An instruction on tile registers, which are named by their numbers."""
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *arguments))


def configure(height: Any) -> None:
    """Say how big the registers are: a row's bytes from byte 16 on, in two each, rows from byte 48."""
    memory = registers("config", "int32", 16)
    words = dict.fromkeys(range(16), T.int32(0)) | dict.fromkeys(range(4, 8), T.int32(64 << 16 | 64))
    words |= {
        0: T.int32(1),
        12: height * T.int32(0x01010101),
        13: height * T.int32(0x010101) + T.int32(16 << 24),
    }
    for word, value in words.items():
        T.buffer_store(memory, value, [word])
    tile_op("ldtilecfg", T.address_of(memory[0]))


class Scratch:
    """Arrays of vectors of 16 that begin at cache lines: those that cross lines take twice as long to store.

    TVM aligns memory to 16 bytes at most, so they are parts of one piece, from its first line on.
    """

    def __init__(self, **sizes: Sequence[int]) -> None:
        self.sizes = sizes
        ends = [LINE * prod(each) for each in sizes.values()]
        self.start = dict(zip(sizes, (sum(ends[:place]) for place in range(len(ends)))))
        self.memory = registers("scratch", "int32", sum(ends) + LINE)
        address = T.reinterpret("uint64", T.address_of(self.memory[0]))
        skip = T.shift_right(T.uint64(64) - (address & T.uint64(63)), T.uint64(2)) & T.uint64(LINE - 1)
        self.first = T.bind(T.cast(skip, "int32"))

    def at(self, name: str, *place: Any) -> Any:
        """Where a vector is in the memory."""
        index: Any = 0
        for size, part in zip(self.sizes[name], place, strict=True):
            index = index * size + part
        return self.first + self.start[name] + index * LINE

    def get(self, name: str, *place: Any) -> Any:
        """A vector of int32."""
        return self.memory[T.ramp(self.at(name, *place), 1, LANES)]

    def put(self, vector: Any, name: str, *place: Any) -> None:
        """Store a vector."""
        ints = T.reinterpret(f"int32x{LANES}", vector)
        T.buffer_store(self.memory, ints, [T.ramp(self.at(name, *place), 1, LANES)])

    def move(self, name: str, register: int, *place: Any, how: str = "load") -> None:
        """Load a tile register from there on, or store it."""
        address = T.address_of(self.memory[self.at(name, *place)])
        tile_op(f"tile{how}d64", T.int8(register), address, T.int64(4 * LANES))


def words(number: int) -> Any:
    """A vector of int16, all the same."""
    return T.broadcast(T.int16(number), 2 * LANES)


@dataclass(frozen=True, slots=True)
class Weights:
    """A panel's codes W int32[k / 32 * bits, nr] and scales S float16[k / 32, nr]."""

    W: Any
    S: Any
    bits: int
    groups: int
    scratch: Scratch

    def unpack(self, step: Any, v: Any, by: Any) -> Iterator[None]:
        """Write a step's bytes of some columns, in 2 * bits parts; by: MOST_W over the largest scale."""
        for half in range(2):
            g = T.min(2 * step + half, self.groups - 1)  # past the last any do: x has zeros there
            rounded = T.cast(self.scale(g, v) * by + T.broadcast(T.float32(0.5), LANES), f"int32x{LANES}")
            both = rounded | T.shift_left(rounded, T.broadcast(T.int32(16), LANES))
            factor = T.bind(T.reinterpret(f"int16x{2 * LANES}", both))
            for line in range(self.bits):
                self.ask(step, v, half * self.bits + line)
                stored = self.W[g * self.bits + line, T.ramp(v * LANES, 1, LANES)]
                for quad, *codes in self.codes(line, stored):
                    self.split(step, half * CODES + quad, *(times(each, factor) for each in codes))
                yield

    def ask(self, step: Any, v: Any, part: int) -> None:
        """Prefetch what lies behind the panel, in order, as much as a step of a vector of columns is."""
        turn, nr = v * -(-self.groups // 2) + step, int(self.W.shape[1])
        codes, scales = (
            buffer(each.name + "F", each.dtype, [T.int64(FAR)], each.data) for each in (self.W, self.S)
        )
        T.evaluate(prefetch(codes[self.groups * self.bits * nr + (turn * 2 * self.bits + part) * LINE], 2))
        if part == 0:
            T.evaluate(prefetch(scales[self.groups * nr + turn * 2 * LINE], 2))

    def scale(self, g: Any, v: Any) -> Any:
        """A group's scales, float32."""
        return T.cast(self.S[g, T.ramp(v * LANES, 1, LANES)], f"float32x{LANES}")

    def largest(self, v: Any) -> Any:
        """The largest of each column."""
        most = registers("most", "float32", LANES)
        every = T.ramp(0, 1, LANES)
        T.buffer_store(most, T.broadcast(T.float32(0), LANES), [every])
        with loops(g=T.serial(self.groups)) as (g,):
            T.buffer_store(most, T.max(most[every], self.scale(g, v)), [every])
        return T.bind(most[every])

    def codes(self, line: int, stored: Any) -> list[tuple[int, Any, Any]]:
        """Even and odd codes, signed and in the upper bits of int16, of each word of x that they meet."""
        flip = T.broadcast(T.int32(-0x77777778 if self.bits == 4 else -0x7F7F7F80), LANES)
        signed = T.bind(T.reinterpret(f"int16x{2 * LANES}", stored ^ flip))
        up = [T.shift_left(signed, words(by)) for by in ((12, 8, 4) if self.bits == 4 else (8,))]
        if self.bits == 8:
            return [(line, up[0], signed & words(-0x100))]
        top = words(-0x1000)
        return [(line, up[0], up[2] & top), (line + CODES // 2, up[1] & top, signed & top)]

    def split(self, step: Any, quad: int, even: Any, odd: Any) -> None:
        """Write the high bytes and the low bytes of numbers of 16 bits."""
        even, odd = (T.bind(T.reinterpret(f"uint16x{2 * LANES}", each)) for each in (even, odd))
        eight, low = (T.broadcast(T.uint16(each), 2 * LANES) for each in (8, 0xFF))
        high = T.broadcast(T.uint16(0xFF00), 2 * LANES)
        self.scratch.put(T.shift_right(even, eight) | odd & high, "bytes", step % 2, 0, quad)
        self.scratch.put(even & low | T.shift_left(odd, eight), "bytes", step % 2, 1, quad)


def times(codes: Any, factor: Any) -> Any:
    """Products of int16 over 2^15, rounded."""
    return call(f"int16x{2 * LANES}", "llvm.x86.avx512.pmul.hr.sw.512", codes, factor)


def tile(symbol: str, k: int, nr: int, bits: int, finish: str) -> Any:
    """A function (x, w, scales, y, yat, extra, rows), one panel of what quantized.tile computes.

    x: rows as `folding` makes them, one behind the other, that fit; scales that are alike; rows: 1 .. 48.
    """
    groups, steps, size = k // GROUP, -(-k // STEP), row_size(k)
    vectors, width = nr // LANES, nr // 2 if finish == "swiglu" else nr
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(symbol)
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        kinds = {"X": "int32", "W": "int32", "S": "float16", "Y": "float32", "YAT": "int64"}
        at = pointers(**kinds, E="float32")
        rows, far = T.arg("rows", T.int32()), T.int64(FAR)
        X, W = buffer("X", "int32", [far], at["X"]), buffer("W", "int32", [groups * bits, nr], at["W"])
        S, Y = buffer("S", "float16", [groups, nr], at["S"]), buffer("Y", "float32", [far], at["Y"])
        YAT, E = buffer("YAT", "int64", [far], at["YAT"]), buffer("E", "float32", [far], at["E"])
        height = T.bind(T.truncdiv(rows + TILES - 1, T.int32(TILES)))
        # Tiles are of the same height; the last ones may begin with rows of those before.
        first = [T.bind(T.min(height * t, rows - height)) for t in range(TILES)]
        configure(height)
        scratch = Scratch(bytes=(2, 2, 2 * CODES), sums=(2 * TILES, LANES), panel=(TILES * LANES, vectors))
        weights = Weights(W, S, bits, groups, scratch)

        def word(t: int, i: Any, place: int) -> Any:
            """A number of the last line of a tile's row."""
            return T.reinterpret("float32", X[T.cast((first[t] + i) * size + size - LINE + place, "int64")])

        def value(start: Any, row: Any, column: Any) -> Any:
            """The result of a row and a column; start: where the rows of its tile begin."""
            return T.reinterpret("float32", scratch.memory[scratch.at("panel", start + row, 0) + column])

        def load(t: int, step: Any, plane: int) -> None:
            there = T.address_of(X[T.cast(first[t] * size + step * 2 * LINE + plane * LINE, "int64")])
            tile_op("tileloadd64", T.int8(X_TILE), there, T.int64(4 * size))

        def multiply(step: Any, others: Iterator[None]) -> None:
            """A step's products; others: what is written between them."""
            for plane in range(2):
                scratch.move("bytes", W_TILE, step % 2, plane, 0)
                for t in range(TILES):
                    load(t, step, 0)
                    product = ("tdpbssd", "tdpbsud")[plane]
                    tile_op(product, T.int8(2 * t + plane), T.int8(X_TILE), T.int8(W_TILE))
                    next(others, None)
                    if plane == 0:
                        load(t, step, 1)
                        tile_op("tdpbssd", T.int8(2 * t + 1), T.int8(X_TILE), T.int8(W_TILE))
                        next(others, None)
            for _ in others:
                pass

        with loops(v=T.serial(vectors)) as (v,):
            most = weights.largest(v)
            none, all_ = (T.broadcast(T.float32(each), LANES) for each in (0, MOST_W))
            by = T.bind(T.Select(most > none, all_ / most, none))
            for register in range(2 * TILES):
                tile_op("tilezero", T.int8(register))
            for _ in weights.unpack(T.int32(0), v, by):
                pass
            with loops(step=T.serial(steps - 1)) as (step,):
                multiply(step, weights.unpack(step + 1, v, by))
            multiply(T.int32(steps - 1), iter(()))
            # A code of b bits times its factor is 2^(b - 1) times as small as their product.
            column = T.bind(most * T.broadcast(T.float32(2 ** (bits - 1) / MOST_W * 127 / MOST_X), LANES))
            for t in range(TILES):
                for plane in range(2):
                    scratch.move("sums", 2 * t + plane, 2 * t + plane, 0, how="store")
                with loops(i=T.serial(height)) as (i,):
                    high, low = (
                        T.cast(scratch.get("sums", 2 * t + plane, i), f"float32x{LANES}")
                        for plane in range(2)
                    )
                    powers = [T.broadcast(T.float32(1 << 8 * (2 - plane)), LANES) for plane in range(2)]
                    total = high * powers[0] + (low * powers[1] + T.broadcast(word(t, i, MIDDLE_AT), LANES))
                    scaled = total * column * T.broadcast(word(t, i, SCALE_AT), LANES)
                    scratch.put(scaled, "panel", t * LANES + i, v)
        tile_op("tilerelease")  # the system saves the registers otherwise
        for t in range(TILES):
            begin, start = T.bind(height * t - first[t]), T.bind(t * LANES - first[t])
            found = partial(value, start)
            ends, parts = T.serial(begin, height), T.serial(width // LANES)
            with loops(i=ends, v=parts, j=T.vectorized(LANES)) as (i, v, j):
                row = first[t] + i
                to = YAT[T.cast(row, "int64")] + T.cast(v * LANES + j, "int64")
                T.buffer_store(Y, finished(finish, found, width, Y, E, to, row, v * LANES + j), [to])
    return builder.get()


def folding(symbol: str, k: int) -> Any:
    """A function (q, x, rows): records of rows of x to rows for the tile above, at a cache line each."""
    groups, size, lanes = k // GROUP, row_size(k), LANES
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(symbol)
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        at = pointers(Q="int32", X="int32")
        rows = T.arg("rows", T.int32())
        Q = buffer("Q", "int32", [rows, groups, RECORD], at["Q"])
        X = buffer("X", "int32", [rows, size], at["X"])
        largest = registers("largest", "int32", 1)
        low, square = registers("low", "int32", lanes), registers("square", "int32", lanes)
        every, zeros = T.ramp(0, 1, lanes), T.broadcast(T.int32(0), lanes)
        with loops(r=T.serial(rows)) as (r,):
            T.buffer_store(largest, T.int32(0), [0])
            with loops(g=T.serial(groups)) as (g,):  # as int32: in the same order, NaN above all
                T.buffer_store(largest, T.max(largest[0], Q[r, g, SCALE]), [0])
            most = T.bind(T.reinterpret("float32", largest[0]))
            T.buffer_store(low, zeros, [every])
            T.buffer_store(square, zeros, [every])
            with loops(g=T.serial(groups)) as (g,):
                share = T.reinterpret("float32", Q[r, g, SCALE]) / most * T.float32(MOST_X // 127)
                by = T.bind(T.broadcast(T.Select(most > T.float32(0), share, T.float32(0)), lanes))
                for part in range(2):
                    words_ = Q[r, g, T.ramp(part * lanes // 4, 1, lanes // 4)]
                    codes = T.cast(T.reinterpret(f"int8x{lanes}", words_), f"float32x{lanes}")
                    number = T.bind(T.cast(T.nearbyint(codes * by), f"int32x{lanes}"))
                    eight = T.broadcast(T.int32(8), lanes)
                    high = T.bind(T.shift_right(number + T.broadcast(T.int32(128), lanes), eight))
                    rest = T.bind(number - T.shift_left(high, eight))
                    T.buffer_store(low, low[every] + rest, [every])
                    T.buffer_store(square, square[every] + high * high, [every])
                    for plane, each in enumerate((high, rest)):
                        start = (
                            T.truncdiv(g, 2) * 2 * LINE
                            + plane * LINE
                            + T.truncmod(g, 2) * CODES
                            + part * lanes // 4
                        )
                        put(X, each, r, start)
            if groups % 2:
                for plane, part in ((0, 0), (0, 1), (1, 0), (1, 1)):
                    put(X, zeros, r, (groups // 2 * 2 + plane) * LINE + CODES + part * lanes // 4)
            last = size - LINE
            T.buffer_store(X, largest[0], [r, last + SCALE_AT])
            middle = T.cast(total(low[every]), "float32") * T.float32(MIDDLE)
            T.buffer_store(X, T.reinterpret("int32", middle), [r, last + MIDDLE_AT])
            finite = largest[0] < T.int32(0x7F800000)
            fits = (total(square[every]) >= T.int32(LEAST_SQUARE * k)) | (largest[0] == T.int32(0))
            T.buffer_store(X, T.Select(finite & fits, T.int32(1), T.int32(0)), [r, last + FITS_AT])
    return builder.get()


def put(X: Any, bytes_: Any, r: Any, start: Any) -> None:
    """A vector of small int32 as bytes of a row."""
    packed = T.reinterpret(f"int32x{LANES // 4}", T.cast(bytes_, f"int8x{LANES}"))
    T.buffer_store(X, packed, [r, T.ramp(start, 1, LANES // 4)])


def total(vector: Any) -> Any:
    """The sum of a vector of int32."""
    return call("int32", "llvm.vector.reduce.add", vector)


def comparing(symbol: str, k: int, nr: int) -> Any:
    """A function (s, alike): of scales float16[k / 32, nr] whether a tall tile may have them, int32.

    They do if in each column they are numbers, and the largest is at most MOST_RATIO times any but 0.
    """
    groups = k // GROUP
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(symbol)
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        at = pointers(S="uint16", A="int32")
        S, A = buffer("S", "uint16", [groups, nr], at["S"]), buffer("A", "int32", [1], at["A"])
        most, least = registers("most", "int32", LANES), registers("least", "int32", LANES)
        every, bits = T.ramp(0, 1, LANES), T.broadcast(T.int32(0xFFFF), LANES)
        one = T.broadcast(T.int32(1), LANES)

        def number(vector: Any) -> Any:
            half = T.reinterpret(f"float16x{LANES}", T.cast(vector, f"uint16x{LANES}"))
            return T.cast(half, f"float32x{LANES}")

        T.buffer_store(A, T.int32(1), [0])
        with loops(v=T.serial(nr // LANES)) as (v,):
            T.buffer_store(most, T.broadcast(T.int32(0), LANES), [every])
            T.buffer_store(least, bits, [every])
            with loops(g=T.serial(groups)) as (g,):  # as integers: in the same order, others above all
                scale = T.bind(T.cast(S[g, T.ramp(v * LANES, 1, LANES)], f"int32x{LANES}"))
                T.buffer_store(most, T.max(most[every], scale), [every])
                T.buffer_store(least, T.min(least[every], (scale - one) & bits), [every])  # 0 above all
            small = number(least[every] + one) * T.broadcast(T.float32(MOST_RATIO), LANES)
            finite = most[every] < T.broadcast(T.int32(0x7C00), LANES)
            alike = T.Select(finite & (number(most[every]) <= small), one, one - one)
            T.buffer_store(A, A[0] & call("int32", "llvm.vector.reduce.and", alike), [0])
    return builder.get()
