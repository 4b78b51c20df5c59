"""A tile of products of bytes in AMX's registers: up to 16 rows of x by vectors of 16 columns.

These registers are filled from memory and know nothing but products, so sums of a group go by way of the
first cache. What is left to vectors takes longer than the products do: each sum of 32 products is scaled for
its row and its column. So both go on side by side: while a group is multiplied, the one before is scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ....compiler.ops.quantize import GROUP
from .codes import CODES, RECORD, SCALE, START, Group, Operands, Shape, operands, registers
from .dot import ONES
from .matmul import finished, loops

INSTRUCTION = "tdpbsud"
LANES = 16
LEAST_ROWS = {4: 10, 8: 8}  # by bits of a code; below, vectors are no slower
LINE = 16  # int32 in a cache line
X_TILE, W_TILES, SUMS_TILES = 0, (1, 2), (3, 4)  # registers; of two each, so that one waits for memory only


def tile_op(name: str, *arguments: Any) -> None:
    """An instruction on tile registers, which are named by their numbers."""
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *arguments))


def configure(rows: int) -> None:
    """Say how big the registers are: a row's bytes from byte 16 on, in two each, rows from byte 48."""
    sizes = {X_TILE: (rows, GROUP)}
    sizes |= dict.fromkeys(W_TILES, (CODES, 4 * LANES)) | dict.fromkeys(SUMS_TILES, (rows, 4 * LANES))
    config = bytearray(64)
    config[0] = 1  # the palette
    for register, (height, row_bytes) in sizes.items():
        config[16 + 2 * register] = row_bytes
        config[48 + register] = height
    memory = registers("config", "int32", 16)
    for word in range(16):
        number = int.from_bytes(config[4 * word : 4 * word + 4], "little")
        T.buffer_store(memory, T.int32(number), [word])
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

    def get(self, name: str, *place: Any, kind: str = "float32") -> Any:
        """A vector of that kind."""
        return T.reinterpret(f"{kind}x{LANES}", self.memory[T.ramp(self.at(name, *place), 1, LANES)])

    def put(self, vector: Any, name: str, *place: Any) -> None:
        """Store a vector."""
        ints = T.reinterpret(f"int32x{LANES}", vector)
        T.buffer_store(self.memory, ints, [T.ramp(self.at(name, *place), 1, LANES)])

    def move(self, name: str, register: int, *place: Any, how: str = "load", stride: int = 4 * LANES) -> None:
        """Load a tile register from there on, its rows `stride` bytes apart, or store it."""
        address = T.address_of(self.memory[self.at(name, *place)])
        tile_op(f"tile{how}d64", T.int8(register), address, T.int64(stride))


@dataclass(frozen=True, slots=True)
class Panel:
    """Panel p while its code is written."""

    shape: Shape
    of: Operands
    scratch: Scratch
    p: Any

    @property
    def vectors(self) -> range:
        return range(self.shape.nr // LANES)

    def group(self, g: Any) -> Group:
        return self.of.group(self.p, g, self.shape)

    def multiply(self, g: Any) -> None:
        """Sums of a group's products, and its scales as float32."""
        stride = T.int64(4 * self.shape.groups * RECORD)
        tile_op("tileloadd64", T.int8(X_TILE), T.address_of(self.group(g).x(0, 0)), stride)
        self.unpack(self.group(g))
        for v in self.vectors:
            w, sums = W_TILES[v % 2], SUMS_TILES[v % 2]
            self.load(g, v, w)
            self.scratch.move("ones", sums, 0, stride=0)
            tile_op(INSTRUCTION, T.int8(sums), T.int8(X_TILE), T.int8(w))
            if v:  # which is done by now
                self.scratch.move("sums", SUMS_TILES[(v - 1) % 2], g % 2, v - 1, 0, how="store")
        last = self.vectors[-1]
        self.scratch.move("sums", SUMS_TILES[last % 2], g % 2, last, 0, how="store")

    def unpack(self, group: Group) -> None:
        """Scales as float32, and codes of 4 bits as bytes."""
        for v in self.vectors:
            self.scratch.put(group.scales(v), "scales", group.g % 2, v)
            for step in range(CODES // 2 if self.shape.bits == 4 else 0):
                for word, codes in group.weights(step, v):
                    self.scratch.put(codes, "codes", v, word)

    def load(self, g: Any, v: int, register: int) -> None:
        """A group's codes of a vector of columns: 8 bits from where they are."""
        shape = self.shape
        if shape.bits == 4:
            self.scratch.move("codes", register, v, 0)
            return
        first = self.of.W[self.p, g * shape.bits, v * LANES]
        tile_op("tileloadd64", T.int8(register), T.address_of(first), T.int64(4 * shape.nr))

    def add(self, g: Any) -> None:
        """Scale the sums of a group and add them to the panel's."""
        scales = [T.bind(self.scratch.get("scales", g % 2, v)) for v in self.vectors]
        for i in range(self.shape.rows):
            mine, zero = self.scale(g, i), self.zero(g, i)
            for v in self.vectors:
                sums = self.scratch.get("sums", g % 2, v, i) - zero
                old = self.scratch.get("panel", i, v)
                self.scratch.put(old + sums * (scales[v] * mine), "panel", i, v)

    def scale(self, g: Any, row: int) -> Any:
        """A row's scale, for all columns."""
        return T.bind(T.broadcast(T.reinterpret("float32", self.group(g).x(row, SCALE)), LANES))

    def zero(self, g: Any, row: int) -> Any:
        """What the sum of no products looks like, weights being unsigned (see dot.py), for all columns."""
        start = T.reinterpret("uint32", self.group(g).x(row, START))
        bits = T.uint32(2 * ONES) - start  # ONES without what start has more than that
        return T.bind(T.broadcast(T.reinterpret("float32", bits), LANES))


def tile(symbol: str, shape: Shape, finish: str) -> Any:
    """As quantized.tile."""
    rows, vectors = shape.rows, shape.nr // LANES
    width = shape.nr // 2 if finish == "swiglu" else shape.nr
    sizes = {"ones": (1,), "codes": (vectors, CODES), "scales": (2, vectors), "sums": (2, vectors, rows)}
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        of = operands(symbol, shape)
        configure(rows)
        scratch = Scratch(**sizes, panel=(rows, vectors))
        scratch.put(T.broadcast(T.int32(ONES), LANES), "ones", 0)
        with loops(p=T.serial(of.panels)) as (p,):
            for i, v in ((i, v) for i in range(rows) for v in range(vectors)):
                scratch.put(T.broadcast(T.float32(-0.0), LANES), "panel", i, v)  # of 0.0 LLVM calls memset
            panel = Panel(shape, of, scratch, p)
            panel.multiply(T.int32(0))
            with loops(g=T.serial(shape.groups - 1)) as (g,):
                of.ask(p, g, shape, range(shape.nr))
                panel.multiply(g + 1)
                panel.add(g)
            panel.add(T.int32(shape.groups - 1))

            def total(i: Any, column: Any) -> Any:
                return T.reinterpret("float32", scratch.memory[scratch.at("panel", i, 0) + column])

            with loops(i=T.unroll(rows), v=T.unroll(width // LANES), j=T.vectorized(LANES)) as (i, v, j):
                to = of.YAT[i] + T.cast(p * width + v * LANES + j, "int64")
                result = finished(finish, total, width, of.Y, of.E, to, i, v * LANES + j)
                T.buffer_store(of.Y, result, [to])
        tile_op("tilerelease")  # the system saves the registers otherwise
    return builder.get()
