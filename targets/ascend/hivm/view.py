"""Views of memories: what a memref is. What was never written reads as NaN or -1.

Masks (i1) are packed, eight to a byte, the first in the lowest bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from ....compiler.ir import Array
from .memory import DTYPES, Memory, row_major


class OutOfBounds(MemoryError):
    """An access past a memory's end, or before it; says whose and where."""


class View:
    """Elements of a memory. base: in bytes; offset and strides: in elements.

    within: the first byte that it may touch and the one after its last: its buffer's.
    """

    def __init__(
        self,
        memory: Memory,
        base: int,
        type_: str,
        offset: int,
        shape: Sequence[int],
        strides: Sequence[int],
        within: tuple[int, int] | None = None,
    ) -> None:
        self.memory, self.base, self.type, self.offset = memory, base, type_, offset
        self.shape, self.strides = tuple(shape), tuple(strides)
        self.within = within or (0, memory.size)
        self.itemsize = int(DTYPES[type_].itemsize)  # bytes of an element; of a mask's 1
        self._span: tuple[int, int] | None = None
        self._run = 0

    @classmethod
    def buffer(cls, memory: Memory, base: int, type_: str, shape: Sequence[int]) -> View:
        """Elements one after the other from a byte on, and what is made of them may touch no other."""
        made = cls(memory, base, type_, 0, shape, row_major(shape))
        made.within = made.span
        return made

    @classmethod
    def whole(cls, memory: Memory, type_: str) -> View:
        """All of a memory, as elements of that type."""
        return cls(memory, 0, type_, 0, (memory.size // DTYPES[type_].itemsize,), (1,))

    def at(self, offset: int, shape: Sequence[int], strides: Sequence[int]) -> View:
        """Other elements of the same buffer."""
        return View(self.memory, self.base, self.type, offset, shape, strides, self.within)

    @property
    def size(self) -> int:
        """How many elements there are."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return (self.size + 7) // 8 if self.type == "i1" else self.size * self.itemsize

    @property
    def span(self) -> tuple[int, int]:
        """The first byte that it touches, and the one after its last."""
        if self._span is None:
            self._span = self._ends()
        return self._span

    @property
    def run(self) -> int:
        """How many elements lie one after the other before the next gap."""
        if not self._run:
            self._run = self._together()
        return self._run

    def _ends(self) -> tuple[int, int]:
        low = high = self.offset
        for dim, stride in zip(self.shape, self.strides):
            if dim == 0:
                return (0, 0)
            if stride < 0:
                low += (dim - 1) * stride
            else:
                high += (dim - 1) * stride
        if self.type == "i1":
            return (self.base + low // 8, self.base + high // 8 + 1)
        return (self.base + low * self.itemsize, self.base + (high + 1) * self.itemsize)

    def _together(self) -> int:
        length = 1
        for dim, stride in zip(reversed(self.shape), reversed(self.strides)):
            if dim == 1:
                continue
            if stride != length:
                break
            length *= max(dim, 1)
        return length

    @property
    def dense(self) -> bool:
        """Whether it has no gaps."""
        return self.size == 0 or self.run == self.size

    def check(self) -> None:
        """Raises OutOfBounds; keeps the memory's peak."""
        low, high = self.span
        first, end = self.within
        if low < high and (low < first or high > end or low < 0 or high > self.memory.size):
            raise OutOfBounds(
                f"{self} touches bytes {low} to {high} of {self.memory.name}, expected at most those from "
                f"{max(first, 0)} to {min(end, self.memory.size)}"
            )
        self.memory.peak = max(self.memory.peak, high)

    @property
    def known(self) -> bool:
        """Whether all its bytes are, and those in its gaps."""
        memory = self.memory
        return memory.data is not None and (
            memory.known is None or bool(memory.known[slice(*self.span)].all())
        )

    def learn(self, known: bool) -> None:
        """Says whether they are."""
        if self.memory.data is not None and self.memory.known is not None:
            self.memory.known[slice(*self.span)] = known

    def read(self) -> Array:
        """Its elements; not a copy, but for masks."""
        if self.type == "i1":
            return self._strided(self._bits(), self.base * 8 - self.span[0] * 8 + self.offset, 1).view(
                np.bool_
            )
        return self._elements()

    def write(self, values: Any) -> None:
        """Sets its elements, rounded to its type as numpy does it."""
        if self.type != "i1":
            self._elements()[...] = values
            return
        bits = self._bits()
        self._strided(bits, self.base * 8 - self.span[0] * 8 + self.offset, 1)[...] = values
        self._data()[slice(*self.span)] = np.packbits(bits, bitorder="little")

    def _data(self) -> Array:
        if self.memory.data is None:
            raise ValueError(f"{self.memory.name} has a size and no contents")
        return self.memory.data

    def _bits(self) -> Array:
        return np.unpackbits(self._data()[slice(*self.span)], bitorder="little")

    def _elements(self) -> Array:
        at = self.base + self.offset * self.itemsize
        strides = [stride * self.itemsize for stride in self.strides]
        return np.ndarray(self.shape, DTYPES[self.type], self._data().data, at if self.size else 0, strides)

    def _strided(self, flat: Array, at: int, itemsize: int) -> Array:
        return np.ndarray(self.shape, flat.dtype, flat.data, at, [each * itemsize for each in self.strides])

    def bytes_touched(self) -> Array:
        """The place of each byte that it touches, in no order."""
        places = np.full(self.shape, self.offset, np.int64)
        for axis, (dim, stride) in enumerate(zip(self.shape, self.strides)):
            shape = [1] * len(self.shape)
            shape[axis] = dim
            places += (np.arange(dim) * stride).reshape(shape)
        if self.type == "i1":
            return np.unique(self.base + places // 8)
        return ((self.base + places * self.itemsize)[..., None] + np.arange(self.itemsize)).reshape(-1)

    def __str__(self) -> str:
        return f"{self.memory.name}[{'x'.join(map(str, self.shape))}x{self.type}]"
