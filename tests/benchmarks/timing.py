"""Timing side by side: every round runs each contender once, so drift of the machine falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Call = Callable[[], object]


def interleave(contenders: Mapping[str, Call], rounds: int, warm: int = 2) -> dict[str, float]:
    """Median seconds of a call of each contender, in `rounds` rounds after `warm` untimed ones."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(warm + rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            if number >= warm:
                samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in samples.items()}
