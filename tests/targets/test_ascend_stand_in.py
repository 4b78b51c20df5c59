"""The stand-in for ACL: what is wrong with a call is reported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from . import ascend_stand_in

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="loads libascendcl.so from LD_LIBRARY_PATH")

STEPS: Mapping[str, tuple[Sequence[str], str]] = {
    "no context": (["acl.aclInit(None)", "acl.aclrtMalloc(r(new), 64, 0)"], "memory without a context"),
    "not initialised": (["acl.aclrtMalloc(r(new), 64, 0)"], "memory before aclInit"),
    "freed twice": (["free(data)", "free(data)"], "was freed, which was never allocated so"),
    "freed as another": (["acl.aclrtFreeHost(data)"], "was freed, which was never allocated so"),
    "freed while it is used": (["fill(data)", "free(data)", "wait()"], "which was freed"),
    "past the end": (["acl.aclrtMemcpy(data, 65, buffer, 65, 1)"], "which lie elsewhere"),
    "more than there is room": (["acl.aclrtMemcpy(data, 8, buffer, 16, 1)"], "a copy of 16 bytes into 8"),
    "the wrong way": (["acl.aclrtMemcpy(data, 64, buffer, 64, 2)"], "which lie elsewhere"),
    "not aligned": (["within(P(data.value + 8), other, 8)"], "within the device that is not aligned"),
    "onto itself": (["within(data, data, 64)"], "a copy onto itself"),
    "the host later": (
        ["acl.aclrtMemcpyAsync(data, 64, buffer, 64, 1, stream)"],
        "memory of the host that is not locked",
    ),
    "no stream": (["acl.aclrtSynchronizeStream(data)"], "waiting for a stream that is none"),
    "a stream in use": (["fill(data)", "acl.aclrtDestroyStream(stream)"], "with work in it"),
    "an event too early": (["acl.aclrtStreamWaitEvent(stream, event)"], "an event that was not recorded"),
    "an event too late": (
        ["record()", "acl.aclrtStreamWaitEvent(stream, event)", "acl.aclrtDestroyEvent(event)"],
        "an event was destroyed that a stream waits for",
    ),
    "time of no clock": (
        ["record()", "wait()", "acl.aclrtEventElapsedTime(ms, event, event)"],
        "time from an event that has none",
    ),
    "the wrong cores": (["load('sum', 0x41415246)"], "was loaded with magic 41415246; it has 43554245"),
    "loaded twice": (["load('widen', V)", "load('widen', V)"], "was loaded twice"),
    "another function": (
        ["load('widen', V)", "acl.aclrtBinaryGetFunction(binary, b'sum', r(function))"],
        "there is no sum in widen",
    ),
    "arguments that lack one": (["launch('widen', 4, 48)"], "48 bytes of arguments; it has 56"),
    "memory that is none": (["launch('widen', 4, 56)"], "widen got (nil)"),
    "another grid": (["launch('widen', 4, 56, data, other, 32, 5, 1, 1)"], "has not as many blocks"),
    "no workspace": (["launch('sum', 1, 64, data, other, data)"], "sum got (nil) for 24 bytes"),
}
MISUSE = """
import ctypes, struct, sys
P, N, r, V = ctypes.c_void_p, ctypes.c_size_t, ctypes.byref, 0x41415246
acl = ctypes.CDLL("libascendcl.so")
new, data, other, stream, event, binary, function = (P() for _ in range(7))
ms, buffer = ctypes.c_float(), ctypes.create_string_buffer(256)
if len(sys.argv) > 2:
    acl.aclInit(None)
    acl.aclrtSetDevice(0)
    acl.aclrtMalloc(r(data), 64, 0)
    acl.aclrtMalloc(r(other), 64, 0)
    acl.aclrtCreateStream(r(stream))
    acl.aclrtCreateEventExWithFlag(r(event), 1)

free = acl.aclrtFree
def fill(place): acl.aclrtMemsetAsync(place, 64, 0, 64, stream)
def wait(): acl.aclrtSynchronizeStream(stream)
def record(): acl.aclrtRecordEvent(event, stream)
def within(to, start, size): acl.aclrtMemcpyAsync(to, size, start, size, 3, stream)
def load(name, magic):
    option = (ctypes.c_uint32 * 5)(2, magic)
    options = struct.pack("@PN", ctypes.addressof(option), 1)
    return acl.aclrtBinaryLoadFromFile(f"{sys.argv[1]}/{name}.o".encode(), options, r(binary))
def launch(name, blocks, size, *given):
    assert not load(name, 0x43554245 if name == "sum" else V)
    assert not acl.aclrtBinaryGetFunction(binary, name.encode(), r(function))
    sync = P()
    acl.aclrtGetHardwareSyncAddr(r(sync))
    kinds = "".join("P" if isinstance(each, P) else "i" for each in given)
    own = struct.pack("@" + kinds, *(each.value if isinstance(each, P) else each for each in given))
    packed = (struct.pack("@PPP", sync.value, 0, 0) + own).ljust(size, bytes(1))
    acl.aclrtLaunchKernelWithHostArgs(function, blocks, stream, None, packed, N(size), None, N(0))
    wait()
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ascend_stand_in.driver(tmp_path_factory.mktemp("acl"))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ascend_stand_in.library(tmp_path_factory.mktemp("ascend"))


@pytest.mark.parametrize("name", STEPS)
def test_the_stand_in_reports_misuse(name: str, stand_in: Path, library: Path, tmp_path: Path) -> None:
    steps, why = STEPS[name]
    opened = [] if name in ("no context", "not initialised") else ["opened"]
    command = [sys.executable, "-c", "\n".join((MISUSE, *steps)), str(library.parent / "ascend"), *opened]
    settings = {"LD_LIBRARY_PATH": str(stand_in.parent), "STAND_IN_LOG": str(tmp_path / "log")}
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    wrong = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("wrong")]
    assert len(wrong) == 1, wrong
    assert why in wrong[0]
