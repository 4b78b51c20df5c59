"""Arrays in the GPU's memory, and a kernel library's plain C interface, which takes them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ...compiler.ir import DTYPES, Array
from .driver import CudaError, Driver

TYPES = {"f32": 1, "u8": 2, "i8": 3, "i32": 6, "i64": 7, "bool": 9, "f16": 10, "bf16": 16}  # onnx's numbers
NUMBERS = {np.dtype(DTYPES[name]): number for name, number in TYPES.items() if name in DTYPES}
MARGIN = 64 << 10  # bytes on either side of an array
POISON = 0xFF  # of a margin: as numbers, NaN or -1


class Tensor(ctypes.Structure):
    """MoecTensor of runtime/api.h."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("rank", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 8),
    )


class Buffer:
    """An array in the GPU's memory. The margin around it holds NaN, and nobody may write there."""

    def __init__(self, gpu: Driver, shape: Sequence[int], dtype: Any, margin: int = MARGIN) -> None:
        """Its contents are undefined."""
        self.gpu, self.shape, self.dtype, self.margin = gpu, tuple(shape), np.dtype(dtype), margin
        self.size = int(np.prod(self.shape)) * self.dtype.itemsize
        self._start = gpu.allocate(self.size + 2 * margin)
        self.address = self._start + margin
        for place in (self._start, self.address + self.size) if margin else ():
            gpu.fill(place, POISON, margin)

    def __del__(self) -> None:
        try:
            self.gpu.free(self._start)
        except (CudaError, AttributeError):
            pass  # it was never allocated, or the context is gone with all its memory

    def write(self, array: Array) -> Buffer:
        """Has the array's contents, of its shape and type."""
        self.gpu.upload(self.address, array)
        return self

    def read(self) -> Array:
        """The contents."""
        array = np.empty(self.shape, self.dtype)
        self.gpu.download(array, self.address)
        return array

    def copy(self) -> Buffer:
        """Another one of the same contents."""
        made = Buffer(self.gpu, self.shape, self.dtype, self.margin)
        self.gpu.copy(made.address, self.address, self.size)
        return made

    def spoiled(self) -> str | None:
        """Where somebody wrote outside, or None."""
        for side, place in (("before", self._start), ("behind", self.address + self.size)):
            found = np.empty(self.margin, np.uint8)
            self.gpu.download(found, place)
            if (wrong := np.flatnonzero(found != POISON)).size:
                far = self.margin - int(wrong[-1]) if side == "before" else int(wrong[0])
                return f"{wrong.size} bytes {side} it were written, the nearest {far} bytes away"
        return None

    @property
    def tensor(self) -> Tensor:
        """As a kernel library takes it."""
        shape = (ctypes.c_int64 * 8)(*self.shape)
        return Tensor(self.address, len(self.shape), NUMBERS[self.dtype], shape)


def placed(gpu: Driver, array: Array, margin: int = MARGIN) -> Buffer:
    """The array in the GPU's memory."""
    return Buffer(gpu, array.shape, array.dtype, margin).write(array)


class Library:
    """A library of kernels. Only its first one is called here."""

    def __init__(self, path: Path) -> None:
        """Raises OSError if it cannot be loaded."""
        self._launch = ctypes.CDLL(str(path)).moec_launch
        self._launch.restype = ctypes.c_char_p
        tensors = ctypes.POINTER(Tensor)
        self._launch.argtypes = [
            *(ctypes.c_size_t, ctypes.c_size_t, tensors, ctypes.c_size_t, tensors),
            ctypes.c_void_p,
        ]

    def launch(self, operands: Sequence[Buffer], results: Sequence[Buffer], stream: int) -> None:
        """Begins a call, in the stream's order. Raises CudaError with the library's sentence."""
        x = (Tensor * len(operands))(*(each.tensor for each in operands))
        y = (Tensor * len(results))(*(each.tensor for each in results))
        if why := self._launch(0, len(operands), x, len(results), y, stream):
            raise CudaError(why.decode(errors="replace"))


@cache
def library(path: Path) -> Library:
    """The library of a file, loaded once."""
    return Library(path)
