"""How fast the GPU's memory is."""

from __future__ import annotations

from functools import cache

from .driver import driver

COPIED_BYTES = 1 << 30  # far more than its cache holds
RUNS = 7


@cache
def read_bandwidth() -> float:
    """Bytes per second that the first GPU moves at best, reading and writing. Raises CudaError."""
    gpu = driver()
    stream, first, last = gpu.stream(), gpu.event(), gpu.event()
    place = gpu.allocate(2 * COPIED_BYTES)

    def seconds() -> float:
        gpu.record(first, stream)
        gpu.copy(place + COPIED_BYTES, place, COPIED_BYTES, stream)
        gpu.record(last, stream)
        return gpu.seconds(first, last)

    try:
        return 2 * COPIED_BYTES / min(seconds() for _ in range(RUNS))
    finally:
        gpu.free(place)
