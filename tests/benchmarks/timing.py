"""Timing side by side: every round runs each contender, so drift of the machine falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Call = Callable[[], object]
BURST = 3


def interleave(contenders: Mapping[str, Call], rounds: int) -> dict[str, float]:
    """Median seconds of a call of each contender, in `rounds` rounds after a first that is not timed.

    A round calls each a few times and drops the first: idle threads of the one before still spin then.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(1 + rounds):
        for name, call in contenders.items():
            times = [seconds(call) for _ in range(BURST)][1:]
            samples[name] += times if number else []
    return {name: statistics.median(times) for name, times in samples.items()}


def seconds(call: Call) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
