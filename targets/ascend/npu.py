"""This machine's NPU, as CANN's library tells. Nothing of it is needed where there is none."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

LIBRARY = "libascendcl.so"
INITIALISED = 100002  # somebody else has called aclInit in this process
TOOLS = ("bin", "compiler/bin", "tools/bishengir/bin", "tools/hivmc/bin")  # of CANN: where programs are
LIMIT_S = 60  # for a program to say its version


@cache
def soc_here() -> str:
    """The SoC's name, such as Ascend910B3. Raises ValueError where there is no CANN, or no NPU."""
    try:
        cann = ctypes.CDLL(LIBRARY)
    except OSError:
        raise ValueError(f"no CANN on this machine: {LIBRARY} is not found") from None
    count = ctypes.c_uint32()
    if (
        cann.aclInit(None) not in (0, INITIALISED)
        or cann.aclrtGetDeviceCount(ctypes.byref(count))
        or not count.value
    ):
        raise ValueError("CANN finds no NPU on this machine")
    if cann.aclrtSetDevice(0):
        raise ValueError("CANN cannot open the first NPU of this machine")
    cann.aclrtGetSocName.restype = ctypes.c_char_p
    name = cann.aclrtGetSocName()
    if not name:
        raise ValueError("CANN does not tell which SoC this machine's NPU is")
    return str(name.decode())


def hivmc() -> str | None:
    """The vendor's last compiler: on PATH, or else in CANN's folder."""
    cann = os.environ.get("ASCEND_HOME_PATH") or os.environ.get("ASCEND_TOOLKIT_HOME")
    folders = [os.environ.get("PATH", os.defpath), *(f"{cann}/{each}" for each in TOOLS if cann)]
    return shutil.which("hivmc", path=os.pathsep.join(folders))


def hivmc_version() -> str:
    """What hivmc says when it is asked for its version, as the vendor's other compiler asks; where it says
    nothing, what it is: a hash. Nothing without one.
    """
    program = hivmc()
    return _version(program, os.stat(program).st_mtime_ns) if program else ""


@cache
def _version(program: str, changed_ns: int) -> str:
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=LIMIT_S)
        words = " ".join(done.stdout.split())
        if words and not done.returncode:
            return words[:200]
    return f"sha256 {sha256(Path(program).read_bytes()).hexdigest()[:16]}"


def why_simulated(soc: str) -> str:
    """Why times of kernels for that SoC are simulated on this machine; nothing where its NPU takes them."""
    if os.environ.get("MOEC_SIMULATE") == "1":
        return "MOEC_SIMULATE is 1"
    try:
        here = soc_here()
    except ValueError as error:
        return str(error)
    if here != soc:
        return f"this machine's NPU is {here}"
    return "" if hivmc() else "hivmc is neither on PATH nor in CANN, which ASCEND_HOME_PATH names"
