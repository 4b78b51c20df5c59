"""What all tiles of weights in few bits share: how operands lie, and what a group adds to a panel's sums.

x comes in records of a group of 32 columns: 32 codes, their float32 scale, and the int32 that a sum of theirs
begins at (start in dot.py). Weights are read as int32, each four or eight codes of one of their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from tvm.ir import PointerType, PrimType
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ....compiler.ops.quantize import GROUP
from .matmul import FAR, LINE, prefetch

PAGE = 4096  # bytes; hardware follows reads in each page for itself

# A record in int32: codes, then scale, then start.
CODES = GROUP // 4
SCALE, START, RECORD = CODES, CODES + 1, CODES + 2
LOW_NIBBLES = 0x0F0F0F0F


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a tile: rows of x, columns of a panel, of which so many vectors are summed together.

    ahead: groups by which weights are asked for early, a power of two; every line of them or the first.
    """

    rows: int
    k: int
    nr: int
    lanes: int
    together: int
    bits: int
    ahead: int
    every: bool

    @property
    def groups(self) -> int:
        return self.k // GROUP

    @property
    def group_bytes(self) -> int:
        """Of a group's codes in a panel."""
        return 4 * self.bits * self.nr


def registers(name: str, kind: str, *sizes: int) -> Any:
    """Memory of fixed places, which LLVM keeps in registers as far as they go."""
    return IRBuilder.name(name, T.alloc_buffer(sizes, kind, scope="global"))


def pointers(**kinds: str) -> dict[str, Any]:
    """Parameters of a function that point to elements of these types."""
    return {name: T.arg(name.lower(), T.handle(kind)) for name, kind in kinds.items()}


def buffer(name: str, kind: str, sizes: Sequence[Any], pointer: Any) -> Any:
    """Memory at a pointer, aligned as its elements are."""
    align = max(int(kind[-2:]) // 8, 1)
    return IRBuilder.name(name, T.decl_buffer(sizes, kind, data=pointer, align=align))


@dataclass(frozen=True, slots=True)
class Operands:
    """What a tile takes; see quantized.tile."""

    X: Any
    XAT: Any
    W: Any
    S: Any
    Y: Any
    YAT: Any
    E: Any
    panels: Any

    def group(self, p: Any, g: Any, shape: Shape) -> Group:
        """A group of panel p.

        All rows of x are at constant distances from one pointer. At sums of two registers, where LLVM would
        rather have them, tiles of 12 rows took 7 (int4) to 12 % (int8) longer. It does not look through the
        mask, which changes nothing: records are aligned.
        """
        record = self.X[self.XAT[0] + T.cast(g * RECORD, "int64")]
        address = T.reinterpret("int64", T.address_of(record)) & T.int64(-4)
        pointer = T.bind(T.reinterpret("handle", address), PointerType(PrimType("int32")))
        return Group(shape, self, p, g, buffer("XG", "int32", [T.int64(FAR)], pointer))

    def ask(self, p: Any, g: Any, shape: Shape, columns: range) -> None:
        """Prefetch these columns of a later group of panel p into the second cache.

        With the first line alone the hardware streams on from there, but begins no page (4096 bytes) that
        nobody asked for; every line takes instructions, and places in the first cache's queue of misses. On a
        Xeon with AVX512-VNNI and AMX, tiles alone were 1.16 times as fast with it at one row, 1.5 at four,
        1.8 at eight. On two cores of a Zen 3, in AVX2, experts in 4 bits took 0.56, 0.70 and 0.73 of the time
        at one token when every line was asked for by turns (stream) 4, 8 and 16 KB ahead, beside the first
        lines of 8 KB ahead; in order, 2 KB ahead, 0.9 of the first of those, in another run.
        """
        if not shape.ahead:
            return
        later, steps = g + shape.ahead, range(shape.bits if shape.every else 1)
        ends = columns.stop if shape.every else columns.start + 1
        for step, column in product(steps, range(columns.start, ends, LINE)):
            T.evaluate(prefetch(self.W[p, later * shape.bits + step, column], 2))
        for column in range(columns.start, ends, 2 * LINE):  # a scale has half the bytes
            T.evaluate(prefetch(self.S[p, later, column], 2))

    def stream(self, p: Any, g: Any, shape: Shape, on: bool) -> None:
        """Prefetch for a tile that takes whole groups, one behind the other through its panels.

        While it works on a block of `ahead` groups it asks for the next, by turns in each of its pages, into
        the first cache. on: whether what is read next lies behind the last panel; else the last block is
        asked for again, which is there.

        On two cores of a Xeon with AMX, beside asking in order (ask), experts in 4 bits took 0.87 of the time
        at one token and 0.85 at 16, with 16 KB to a block; with 8 KB 0.90 and 0.90, with 32 KB 0.88 and 0.90;
        into the second cache 0.92 and 0.88. A plain loop over the same bytes in the tile's place, in order,
        took 0.92 and 0.93. Experts in 8 bits took 0.93 at one token, linear layers in 4 bits 0.80.
        """
        pages = shape.ahead * shape.group_bytes // PAGE
        if not pages or not shape.every:
            self.ask(p, g, shape, range(shape.nr))
            return
        part = PAGE // shape.ahead  # bytes of each page that are asked for with one group
        at = p * shape.groups + g
        turn = at & (shape.ahead - 1)
        start = at - turn + shape.ahead
        if not on:
            start = T.min(start, self.panels * shape.groups - shape.ahead)
        later = T.bind(start + turn)
        first = T.bind((later * shape.group_bytes - turn * (shape.group_bytes - part)) // 4)
        codes = buffer("WF", "int32", [T.int64(FAR)], self.W.data)
        scales = buffer("SF", "float16", [T.int64(FAR)], self.S.data)
        for page, line in product(range(pages), range(0, part, 4 * LINE)):
            T.evaluate(prefetch(codes[first + (page * PAGE + line) // 4]))
        for column in range(0, shape.nr, 2 * LINE):  # a scale has half the bytes
            T.evaluate(prefetch(scales[later * shape.nr + column]))


def operands(symbol: str, shape: Shape) -> Operands:
    """Name the function that is being written, and give it its parameters."""
    T.func_name(symbol)
    T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
    kinds = {"X": "int32", "XAT": "int64", "W": "int32", "S": "float16", "Y": "float32", "YAT": "int64"}
    at = pointers(**kinds, E="float32")
    panels, rows, far = T.arg("panels", T.int32()), shape.rows, T.int64(FAR)
    return Operands(
        X=buffer("X", "int32", [far], at["X"]),
        XAT=buffer("XAT", "int64", [rows], at["XAT"]),
        W=buffer("W", "int32", [panels, shape.groups * shape.bits, shape.nr], at["W"]),
        S=buffer("S", "float16", [panels, shape.groups, shape.nr], at["S"]),
        Y=buffer("Y", "float32", [far], at["Y"]),
        YAT=buffer("YAT", "int64", [rows], at["YAT"]),
        E=buffer("E", "float32", [far], at["E"]),
        panels=panels,
    )


@dataclass(frozen=True, slots=True)
class Group:
    """One group of a panel while its code is written: the tile's operands, panel p, group g.

    X: x from the first row's record of the group on.
    """

    shape: Shape
    of: Operands
    p: Any
    g: Any
    X: Any

    def x(self, row: int, word: int) -> Any:
        """An int32 of the record of a row of x: rows lie one behind the other."""
        return self.X[T.int64(row * self.shape.groups * RECORD + word)]

    def weights(self, step: int, vector: int) -> list[tuple[int, Any]]:
        """A step's codes of a vector of columns as bytes, each with the word of x that they meet."""
        bits, lanes = self.shape.bits, self.shape.lanes
        stored = T.bind(self.of.W[self.p, self.g * bits + step, T.ramp(vector * lanes, 1, lanes)])
        if bits == 8:
            return [(step, stored)]
        low = T.broadcast(T.int32(LOW_NIBBLES), lanes)
        shifted = T.shift_right(stored, T.broadcast(T.int32(4), lanes))
        return [(step, stored & low), (step + CODES // 2, shifted & low)]

    def scales(self, vector: int) -> Any:
        """A vector of columns' scales, float32."""
        lanes = self.shape.lanes
        columns = T.ramp(vector * lanes, 1, lanes)
        return T.bind(T.cast(self.of.S[self.p, self.g, columns], f"float32x{lanes}"))
