"""This machine's NPU, as CANN's library tells. Nothing of it is needed where there is none."""

from __future__ import annotations

import ctypes
from functools import cache

LIBRARY = "libascendcl.so"


@cache
def soc_here() -> str:
    """The SoC's name, such as Ascend910B3. Raises ValueError where there is no CANN, or no NPU."""
    try:
        cann = ctypes.CDLL(LIBRARY)
    except OSError:
        raise ValueError(f"no CANN on this machine: {LIBRARY} is not found") from None
    count = ctypes.c_uint32()
    if cann.aclInit(None) or cann.aclrtGetDeviceCount(ctypes.byref(count)) or not count.value:
        raise ValueError("CANN finds no NPU on this machine")
    if cann.aclrtSetDevice(0):
        raise ValueError("CANN cannot open the first NPU of this machine")
    cann.aclrtGetSocName.restype = ctypes.c_char_p
    name = cann.aclrtGetSocName()
    if not name:
        raise ValueError("CANN does not tell which SoC this machine's NPU is")
    return str(name.decode())
