"""Timing side by side: every round runs each contender, so drift of the machine falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Row:
    """One comparison: our median seconds, a peer's, and how much faster we must be; required 0: no bar."""

    what: str
    peer: str
    ours_s: float
    peer_s: float
    required: float

    @property
    def ratio(self) -> float:
        return self.peer_s / self.ours_s


def rows(what: str, seconds: Mapping[str, float], bars: Mapping[str, float]) -> Iterator[Row]:
    """A row for each peer in the timings, where `moec` is ours."""
    for peer, theirs in seconds.items():
        if peer != "moec":
            yield Row(what, peer, seconds["moec"], theirs, bars.get(peer, 0.0))
