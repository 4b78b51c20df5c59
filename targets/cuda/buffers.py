"""A kernel library's plain C interface, which takes arrays in the GPU's memory, and copies of these."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ..buffers import Buffer, Tensor
from .driver import CudaError, Driver


def copy_of(gpu: Driver, buffer: Buffer) -> Buffer:
    """Another one of the same contents."""
    made = Buffer(gpu, buffer.shape, buffer.dtype, buffer.margin)
    gpu.copy(made.address, buffer.address, buffer.size)
    return made


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
