"""ACL, the interface of CANN's runtime, as far as measuring takes it: memory, a stream and events of an NPU.

Plain ctypes on libascendcl.so, nothing else to install. Sizes are bytes, addresses and handles are ints.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ...compiler.ir import Array
from ..buffers import Buffer, Tensor
from . import npu

HUGE_PAGES_FIRST, TO_DEVICE, TO_HOST, TIME_LINE = 0, 1, 2, 8  # as runtime/acl_abi.h has them


class AclError(RuntimeError):
    """What ACL refused, or a kernel's library, in its words."""


class Acl:
    """The first NPU, open in the thread that made it. Raises ValueError where there is none."""

    def __init__(self) -> None:
        npu.soc_here()
        self._acl = ctypes.CDLL(npu.LIBRARY)
        self._acl.aclGetRecentErrMsg.restype = ctypes.c_char_p
        self.call("aclrtSetDevice", 0)
        self.stream = self._made("aclrtCreateStream")

    def call(self, name: str, *arguments: Any) -> None:
        """One function. Raises AclError unless it succeeds."""
        if code := getattr(self._acl, name)(*arguments):
            words = (self._acl.aclGetRecentErrMsg() or b"").decode(errors="replace")
            raise AclError(f"{name} failed: ACL's error {code} {words}".rstrip())

    def _made(self, name: str, *arguments: Any) -> int:
        found = ctypes.c_void_p()
        self.call(name, ctypes.byref(found), *arguments)
        return found.value or 0

    def allocate(self, size: int) -> int:
        """The address of that much memory."""
        return self._made("aclrtMalloc", ctypes.c_size_t(max(size, 1)), HUGE_PAGES_FIRST)

    def free(self, address: int) -> None:
        """Gives it back, once all that was asked for is done."""
        self.wait()
        self.call("aclrtFree", ctypes.c_void_p(address))

    def upload(self, address: int, array: Array) -> None:
        """Writes the array there; done when it returns."""
        self._copy(address, np.ascontiguousarray(array), TO_DEVICE)

    def download(self, array: Array, address: int) -> None:
        """Fills the array, which is contiguous, from there, once all that was asked for is done."""
        self.wait()
        self._copy(address, array, TO_HOST)

    def _copy(self, address: int, array: Array, way: int) -> None:
        size, device, host = array.nbytes, ctypes.c_void_p(address), ctypes.c_void_p(array.ctypes.data)
        first, second = (device, host) if way == TO_DEVICE else (host, device)
        if size:
            self.call("aclrtMemcpy", first, ctypes.c_size_t(size), second, ctypes.c_size_t(size), way)

    def fill(self, address: int, byte: int, size: int) -> None:
        """Sets every byte, in the stream's order."""
        if size:
            many, stream = ctypes.c_size_t(size), ctypes.c_void_p(self.stream)
            self.call("aclrtMemsetAsync", ctypes.c_void_p(address), many, byte, many, stream)

    def wait(self) -> None:
        """Until all that was asked of the stream is done; what failed there raises now."""
        self.call("aclrtSynchronizeStream", ctypes.c_void_p(self.stream))

    def event(self) -> int:
        """A new event, which lives as long as the process."""
        return self._made("aclrtCreateEventExWithFlag", TIME_LINE)

    def record(self, event: int) -> None:
        """Marks a moment in the stream."""
        self.call("aclrtRecordEvent", ctypes.c_void_p(event), ctypes.c_void_p(self.stream))

    def seconds(self, first: int, last: int) -> float:
        """From one recorded event to the other; waits for it."""
        found = ctypes.c_float()
        self.call("aclrtSynchronizeEvent", ctypes.c_void_p(last))
        self.call("aclrtEventElapsedTime", ctypes.byref(found), ctypes.c_void_p(first), ctypes.c_void_p(last))
        return found.value / 1e3


@cache
def acl() -> Acl:
    """This process's. Raises ValueError, AclError."""
    return Acl()


class Call:
    """Operands and results of one call, which it keeps."""

    def __init__(self, operands: Sequence[Buffer], results: Sequence[Buffer]) -> None:
        self.operands, self.results = operands, results
        self.x = (Tensor * len(operands))(*(each.tensor for each in operands))
        self.y = (Tensor * len(results))(*(each.tensor for each in results))


class Library:
    """A library of kernels, with their objects in ascend/ beside it. Only its first one is called here."""

    def __init__(self, path: Path) -> None:
        """Raises OSError if it cannot be loaded, AclError where it would simulate, or run nothing."""
        loaded = ctypes.CDLL(str(path))
        if loaded.moec_simulated():
            raise AclError(f"{path.name} does not find the NPU that this process has opened")
        self._launch = loaded.moec_launch
        self._launch.restype = ctypes.c_char_p

    def launch(self, call: Call, stream: int) -> None:
        """Begins a call, in the stream's order. Raises AclError with the library's sentence."""
        x, y = ctypes.c_size_t(len(call.x)), ctypes.c_size_t(len(call.y))
        if why := self._launch(ctypes.c_size_t(0), x, call.x, y, call.y, ctypes.c_void_p(stream)):
            raise AclError(why.decode(errors="replace"))
