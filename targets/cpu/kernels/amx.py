"""Products of bytes in AMX's tile registers: up to 16 rows of x by 16 columns, a group of codes at a time.

A tile register is filled from memory and has no arithmetic of its own, so codes of x are gathered, nibbles
unpacked and sums scaled by way of the first-level cache.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from ....compiler.ops.quantize import GROUP
from .codes import CODES, START, Group, Shape, registers

INSTRUCTION = "tdpbsud"
LANES = 16
LEAST_ROWS = 4  # below, vectors are no slower
TOGETHER = 2  # vectors; each has two registers of the eight
X_TILE, W_TILE, SUMS_TILE = 0, 1, 1 + TOGETHER  # the first register of each


def tile_op(name: str, *arguments: Any) -> None:
    """An instruction on tile registers, which are named by their numbers."""
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *arguments))


class Amx:
    """Products by tdpbsud: signed codes of x, unsigned ones of the weight."""

    def begin(self, shape: Shape) -> None:
        """Say how big the registers are: a row's bytes from byte 16 on, in two each, rows from byte 48."""
        sizes = {X_TILE: (shape.rows, GROUP)}
        for v in range(shape.together):
            sizes[W_TILE + v] = CODES, 4 * LANES
            sizes[SUMS_TILE + v] = shape.rows, 4 * LANES
        config = bytearray(64)
        config[0] = 1  # the palette
        for register, (rows, row_bytes) in sizes.items():
            config[16 + 2 * register] = row_bytes
            config[48 + register] = rows
        memory = registers("config", "int32", 16)
        for word in range(16):
            number = int.from_bytes(config[4 * word : 4 * word + 4], "little")
            T.buffer_store(memory, T.int32(number), [word])
        tile_op("ldtilecfg", T.address_of(memory[0]))

    def group(self, group: Group, vectors: range) -> None:
        """Gather x, fill the registers, multiply, and scale what comes out."""
        rows = group.shape.rows
        x = registers("codes", "int32", rows, CODES)
        for i in range(rows):
            codes = group.X[T.ramp(group.at(i, 0), T.int64(1), CODES)]
            T.buffer_store(x, codes, [i, T.ramp(0, 1, CODES)])
        tile_op("tileloadd64", T.int8(X_TILE), T.address_of(x[0, 0]), T.int64(GROUP))
        sums = registers("sums", "int32", group.shape.together, rows, LANES)
        for v in vectors:
            index = v - vectors.start
            w, sums_tile = W_TILE + index, SUMS_TILE + index
            self.load(group, v, w)
            tile_op("tilezero", T.int8(sums_tile))
            tile_op(INSTRUCTION, T.int8(sums_tile), T.int8(X_TILE), T.int8(w))
            tile_op("tilestored64", T.int8(sums_tile), T.address_of(sums[index, 0, 0]), T.int64(4 * LANES))
        for v in vectors:
            each = (sums[v - vectors.start, i, T.ramp(0, 1, LANES)] for i in range(rows))
            group.add(v, [s + T.broadcast(group.x(i, START), LANES) for i, s in enumerate(each)])

    def load(self, group: Group, vector: int, register: int) -> None:
        """A group's codes of a vector of columns: 8 bits from where they are, 4 bits unpacked on the way."""
        shape = group.shape
        if shape.bits == 8:
            first = group.W[group.p, group.g * shape.bits, vector * LANES]
            tile_op("tileloadd64", T.int8(register), T.address_of(first), T.int64(4 * shape.nr))
            return
        w = registers("unpacked", "int32", CODES, LANES)
        for step in range(shape.bits):
            for word, codes in group.weights(step, vector):
                T.buffer_store(w, codes, [word, T.ramp(0, 1, LANES)])
        tile_op("tileloadd64", T.int8(register), T.address_of(w[0, 0]), T.int64(4 * LANES))

    def end(self) -> None:
        """Let go of the registers: the system saves them otherwise."""
        tile_op("tilerelease")
