"""The GPUs that the CUDA target writes code for: what each has, as data."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sm:
    """A GPU's architecture, as nvcc names it, and what it has of each resource.

    shared_bytes: of shared memory that a block may have; registers: of a multiprocessor, 32 bits each;
    l2_bytes: of the cache in front of its memory.
    """

    name: str
    major: int
    minor: int
    shared_bytes: int
    registers: int
    multiprocessors: int
    l2_bytes: int

    def __str__(self) -> str:
        return self.name


# The H200, and by its compute capability the H100, which was not tried: limits by the CUDA programming guide,
# counts as the H200 tells.
SMS = (Sm("sm_90a", 9, 0, 227 << 10, 65536, 132, 60 << 20),)

MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


def named(name: str) -> Sm:
    """The architecture of that name. Raises ValueError with what there is."""
    for sm in SMS:
        if sm.name == name:
            return sm
    raise ValueError(f"the cuda target has no code for {name!r}; there is {', '.join(map(str, SMS))}")


def host() -> Sm:
    """The architecture of this machine's first GPU. Raises ValueError where there is none, or one unknown."""
    capability = compute_capability()
    for sm in SMS:
        if (sm.major, sm.minor) == capability:
            return sm
    known = ", ".join(f"{sm.major}.{sm.minor} ({sm})" for sm in SMS)
    found = ".".join(map(str, capability))
    raise ValueError(f"this machine's GPU has compute capability {found}; there is code for {known}")


def compute_capability() -> tuple[int, int]:
    """Of the first GPU, as the driver tells. Raises ValueError where there is no driver, or no GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise ValueError("no NVIDIA driver on this machine: libcuda.so.1 is not found") from None
    device, found = ctypes.c_int(), [ctypes.c_int(), ctypes.c_int()]
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        raise ValueError("the NVIDIA driver finds no GPU on this machine")
    for value, attribute in zip(found, (MAJOR, MINOR)):
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            raise ValueError("the NVIDIA driver does not tell the GPU's compute capability")
    return found[0].value, found[1].value
