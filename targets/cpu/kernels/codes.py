"""What all tiles of weights in few bits share: how operands lie, and what a group adds to a panel's sums.

x comes in records of a group of 32 columns: 32 codes, their float32 scale, and the int32 that a sum of theirs
begins at (see dot.py). Weights are read as int32, each four or eight codes of one of their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ....compiler.ops.quantize import GROUP

# A record in int32: codes, then scale, then start.
CODES = GROUP // 4
SCALE, START, RECORD = CODES, CODES + 1, CODES + 2
LOW_NIBBLES = 0x0F0F0F0F


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a tile: rows of x, columns of a panel, of which so many vectors are summed together."""

    rows: int
    k: int
    nr: int
    lanes: int
    together: int
    bits: int

    @property
    def groups(self) -> int:
        return self.k // GROUP


def registers(name: str, kind: str, *sizes: int) -> Any:
    """Memory of fixed places, which LLVM keeps in registers as far as they go."""
    return IRBuilder.name(name, T.alloc_buffer(sizes, kind, scope="global"))


@dataclass(frozen=True, slots=True)
class Group:
    """One group of a panel while its code is written: the tile's buffers, panel p, group g."""

    shape: Shape
    X: Any
    XAT: Any
    W: Any
    S: Any
    C: Any
    p: Any
    g: Any

    def x(self, row: int, word: int) -> Any:
        """An int32 of the record of a row of x."""
        return self.X[self.at(row, word)]

    def at(self, row: int, word: int) -> Any:
        """Where it is."""
        return self.XAT[row] + T.cast(self.g * RECORD + word, "int64")

    def weights(self, step: int, vector: int) -> list[tuple[int, Any]]:
        """A step's codes of a vector of columns as bytes, each with the word of x that they meet."""
        bits, lanes = self.shape.bits, self.shape.lanes
        stored = T.bind(self.W[self.p, self.g * bits + step, T.ramp(vector * lanes, 1, lanes)])
        if bits == 8:
            return [(step, stored)]
        low = T.broadcast(T.int32(LOW_NIBBLES), lanes)
        shifted = T.shift_right(stored, T.broadcast(T.int32(4), lanes))
        return [(step, stored & low), (step + CODES // 2, shifted & low)]

    def add(self, vector: int, totals: Sequence[Any]) -> None:
        """Scale the group's sums int32[lanes] of each row and add them to the panel's."""
        lanes = self.shape.lanes
        columns = T.ramp(vector * lanes, 1, lanes)
        scale = T.bind(T.cast(self.S[self.p, self.g, columns], f"float32x{lanes}"))
        for i, total in enumerate(totals):
            mine = T.broadcast(T.reinterpret("float32", self.x(i, SCALE)), lanes)
            sums = T.cast(total, f"float32x{lanes}")
            T.buffer_store(self.C, self.C[i, columns] + sums * (scale * mine), [i, columns])


class Products(Protocol):
    """How a tile sums products of codes."""

    def begin(self, shape: Shape) -> None:
        """What comes before all groups."""

    def group(self, group: Group, vectors: range) -> None:
        """Add one group's products to some vectors of the panel's sums."""

    def end(self) -> None:
        """What comes after."""
