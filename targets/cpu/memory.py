"""What stays in this machine's caches from one use of a weight to the next, and how to time that."""

from __future__ import annotations

import ctypes
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

CPU = Path("/sys/devices/system/cpu/cpu0/cache")
UNKNOWN = {2: 1 << 20, 3: 32 << 20}  # where the system does not say
UNITS = {"K": 10, "M": 20, "G": 30}
READ_BYTES = 512 << 20  # far more than any cache holds
SHARE = 8  # of the machine's memory, a part that copies of weights may take


@cache
def cache_sizes(folder: Path = CPU) -> dict[int, int]:
    """Bytes of the caches that hold data, by their level, as the system tells."""
    found = {}
    for index in sorted(folder.glob("index*")):
        try:
            kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
            if kind != "Instruction":
                found[int(level)] = int(size[:-1]) << UNITS[size[-1]]
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return found or UNKNOWN


def last_level() -> int:
    """Bytes of the largest cache."""
    return max(cache_sizes().values())


def is_cold(weights: float) -> bool:
    """Whether a model of so many bytes finds its weights in memory rather than in a cache."""
    return weights > last_level()


def between_uses(cold: bool, threads: int) -> int:
    """Bytes of other weights to read before the same ones again, so that they are where they would be.

    Cold: they are in no cache. Else in the last level, but not in those before it.
    """
    if cold:
        return 2 * last_level()
    inner = max((size for size in cache_sizes().values() if size < last_level()), default=0)
    return min(2 * inner * threads, last_level() // 2)


def most_copies(size: int) -> int:
    """How many copies of so many bytes fit what copies may take, one at least."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, whole // SHARE // max(size, 1))


def read_bandwidth(threads: int, runs: int = 7) -> float:
    """Bytes per second that this machine reads from memory with so many threads, at best.

    A thread compares two equal halves of its part; no loop that numpy has reads as fast as libc's.
    """
    half = READ_BYTES // 2 // threads
    memory = np.ones((threads, 2, half), np.uint8)
    places = [(each[0].ctypes.data, each[1].ctypes.data) for each in memory]
    compare = ctypes.CDLL(None).memcmp
    compare.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

    def seconds() -> float:
        started = time.perf_counter()
        list(pool.map(lambda place: compare(*place, half), places))
        return time.perf_counter() - started

    with ThreadPoolExecutor(threads) as pool:
        return memory.nbytes / min(seconds() for _ in range(runs))
