"""Arrays in a device's memory, as kernel libraries take them, with margins that show who wrote outside."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..compiler.ir import DTYPES, Array

TYPES = {"f32": 1, "u8": 2, "i8": 3, "i32": 6, "i64": 7, "bool": 9, "f16": 10, "bf16": 16}  # onnx's numbers
NUMBERS = {np.dtype(DTYPES[name]): number for name, number in TYPES.items() if name in DTYPES}
MARGIN = 64 << 10  # bytes on either side of an array
POISON = 0xFF  # of a margin: as numbers, NaN or -1


class Memory(Protocol):
    """A device's memory; what is refused raises a RuntimeError."""

    def allocate(self, size: int) -> int: ...
    def free(self, address: int) -> None: ...
    def upload(self, address: int, array: Array) -> None: ...
    def download(self, array: Array, address: int) -> None: ...
    def fill(self, address: int, byte: int, size: int) -> None: ...


class Tensor(ctypes.Structure):
    """MoecTensor of runtime/device/direct.cc."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("rank", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 8),
    )


class Buffer:
    """An array in a device's memory. The margin around it is poisoned, and nobody may write there."""

    def __init__(self, memory: Memory, shape: Sequence[int], dtype: Any, margin: int = MARGIN) -> None:
        """Its contents are undefined."""
        self.memory, self.shape, self.dtype, self.margin = memory, tuple(shape), np.dtype(dtype), margin
        self.size = int(np.prod(self.shape)) * self.dtype.itemsize
        self._start = memory.allocate(self.size + 2 * margin)
        self.address = self._start + margin
        for place in (self._start, self.address + self.size) if margin else ():
            memory.fill(place, POISON, margin)

    def __del__(self) -> None:
        try:
            self.memory.free(self._start)
        except (RuntimeError, AttributeError):
            pass  # it was never allocated, or the device is gone with all its memory

    def write(self, array: Array) -> Buffer:
        """Has the array's contents, of its shape and type."""
        self.memory.upload(self.address, array)
        return self

    def read(self) -> Array:
        """The contents."""
        array = np.empty(self.shape, self.dtype)
        self.memory.download(array, self.address)
        return array

    def spoiled(self) -> str | None:
        """Where somebody wrote outside, or None."""
        for side, place in (("before", self._start), ("behind", self.address + self.size)):
            found = np.empty(self.margin, np.uint8)
            self.memory.download(found, place)
            if (wrong := np.flatnonzero(found != POISON)).size:
                far = self.margin - int(wrong[-1]) if side == "before" else int(wrong[0])
                return f"{wrong.size} bytes {side} it were written, the nearest {far} bytes away"
        return None

    @property
    def tensor(self) -> Tensor:
        """As a kernel library takes it."""
        shape = (ctypes.c_int64 * 8)(*self.shape)
        return Tensor(self.address, len(self.shape), NUMBERS[self.dtype], shape)


def placed(memory: Memory, array: Array, margin: int = MARGIN) -> Buffer:
    """The array in the device's memory."""
    return Buffer(memory, array.shape, array.dtype, margin).write(array)
