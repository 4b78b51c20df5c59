"""The CUDA driver, as far as measuring takes it: memory, streams, events and graphs of the first GPU.

Plain ctypes on libcuda.so.1, nothing else to install. Sizes are bytes, addresses and handles are ints.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ...compiler.ir import Array

ATTRIBUTES = {"major": 75, "minor": 76, "multiprocessors": 16, "l2_bytes": 38}  # CU_DEVICE_ATTRIBUTE_*
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream
RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: loading a module meanwhile is no error


class CudaError(RuntimeError):
    """What the driver refused, in its words. After an illegal address no later call works in this process."""


class Driver:
    """The first GPU, with its primary context current in the thread that made it. Raises CudaError."""

    def __init__(self) -> None:
        try:
            self._cuda = ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise CudaError("no NVIDIA driver on this machine: libcuda.so.1 is not found") from None
        self._cuda.cuGetErrorString.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]
        self.call("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self._device = device.value
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)

    def call(self, name: str, *arguments: Any) -> None:
        """One function of the driver. Raises CudaError unless it succeeds."""
        if code := getattr(self._cuda, name)(*arguments):
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(code, ctypes.byref(text))
            why = (text.value or b"unknown error").decode()
            raise CudaError(f"{name} failed: {why} (error {code})")

    @property
    def name(self) -> str:
        """The GPU's name."""
        text = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", text, len(text), self._device)
        return text.value.decode()

    @property
    def version(self) -> str:
        """The newest CUDA that the driver runs: "13.0"."""
        found = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(found))
        return f"{found.value // 1000}.{found.value % 1000 // 10}"

    def attribute(self, name: str) -> int:
        """One of ATTRIBUTES."""
        found = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(found), ATTRIBUTES[name], self._device)
        return found.value

    def free_bytes(self) -> int:
        """How much of its memory is free."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def allocate(self, size: int) -> int:
        """The address of that much memory, aligned to 256 bytes at least."""
        found = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(found), ctypes.c_size_t(max(size, 1)))
        return found.value

    def free(self, address: int) -> None:
        """Gives it back."""
        self.call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, array: Array) -> None:
        """Writes the array there; done when it returns."""
        array = np.ascontiguousarray(array)
        if array.nbytes:
            size = ctypes.c_size_t(array.nbytes)
            self.call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), ctypes.c_void_p(array.ctypes.data), size)

    def download(self, array: Array, address: int) -> None:
        """Fills the array, which is contiguous, from there."""
        if array.nbytes:
            size = ctypes.c_size_t(array.nbytes)
            self.call("cuMemcpyDtoH_v2", ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(address), size)

    def copy(self, target: int, source: int, size: int, stream: int = 0) -> None:
        """Copies inside the GPU's memory, in the stream's order."""
        places = ctypes.c_uint64(target), ctypes.c_uint64(source)
        self.call("cuMemcpyDtoDAsync_v2", *places, ctypes.c_size_t(size), ctypes.c_void_p(stream))

    def fill(self, address: int, byte: int, size: int, stream: int = 0) -> None:
        """Sets every byte, in the stream's order."""
        if size:
            place, many = ctypes.c_uint64(address), ctypes.c_size_t(size)
            self.call("cuMemsetD8Async", place, ctypes.c_ubyte(byte), many, ctypes.c_void_p(stream))

    def stream(self) -> int:
        """A new stream, which lives as long as the process."""
        found = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(found), NON_BLOCKING)
        return found.value or 0

    def wait(self, stream: int) -> None:
        """Until all that was asked of the stream is done; what failed there raises now."""
        self.call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def event(self) -> int:
        """A new event, which lives as long as the process."""
        found = ctypes.c_void_p()
        self.call("cuEventCreate", ctypes.byref(found), 0)
        return found.value or 0

    def record(self, event: int, stream: int) -> None:
        """Marks a moment in the stream."""
        self.call("cuEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream))

    def seconds(self, first: int, last: int) -> float:
        """From one recorded event to the other; waits for it."""
        found = ctypes.c_float()
        self.call("cuEventSynchronize", ctypes.c_void_p(last))
        self.call("cuEventElapsedTime", ctypes.byref(found), ctypes.c_void_p(first), ctypes.c_void_p(last))
        return found.value / 1e3

    def captured(self, stream: int, body: Callable[[], None]) -> int:
        """What body asks of the stream, as a graph ready to be launched."""
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), RELAXED)
        try:
            body()
        finally:
            ended = self._cuda.cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph))
        if ended or not graph.value:
            raise CudaError(f"cuStreamEndCapture failed: the stream's work is no graph (error {ended})")
        try:
            self.call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_uint64(0))
        finally:
            self.call("cuGraphDestroy", graph)
        return ready.value or 0

    def launch(self, graph: int, stream: int) -> None:
        """Begins the graph's work, in the stream's order."""
        self.call("cuGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def drop(self, graph: int) -> None:
        """Forgets a graph."""
        self.call("cuGraphExecDestroy", ctypes.c_void_p(graph))


@cache
def driver() -> Driver:
    """This process's driver. Raises CudaError where there is none, or no GPU."""
    return Driver()
