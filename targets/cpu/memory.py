"""What stays in this machine's caches from one use of a weight to the next, and how to time that."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

CPU = Path("/sys/devices/system/cpu/cpu0/cache")
UNKNOWN = {2: 1 << 20, 3: 32 << 20}  # where the system does not say
UNITS = {"K": 10, "M": 20, "G": 30}
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
