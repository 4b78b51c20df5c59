"""Timing side by side: every round runs each contender, so drift of the machine falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

Call = Callable[[], object]
Calls = Mapping[str, Call]
BURST, WARM = 4, 2
REST = 0.03
PATIENCE, FEW_ROUNDS = 10.0, 2


@dataclass(frozen=True)
class Batch:
    """A call that does what is compared `size` times."""

    call: Call
    size: float

    def __call__(self) -> object:
        return self.call()


def interleave(contenders: Calls, rounds: int) -> dict[str, float]:
    """Median seconds of a call of each contender, in `rounds` rounds after a first that is not timed; of a
    Batch, the seconds of one of those in it.

    A round calls each a few times and drops the first ones: threads have to wake up, and caches are others'.
    Before, it rests for REST seconds: PyTorch's threads spin for some 10 ms after a call, and whoever came
    next had a processor less (a layer of one token took 2.2 ms instead of 1.7).
    Whoever has taken PATIENCE seconds drops out after FEW_ROUNDS.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(1 + rounds):
        for name, call in contenders.items():
            if number > FEW_ROUNDS and sum(samples[name]) > PATIENCE:
                continue
            time.sleep(REST)
            times = [seconds(call) for _ in range(BURST)][WARM:]
            samples[name] += times if number else []
    return {name: statistics.median(times) / size(contenders[name]) for name, times in samples.items()}


def size(call: Call) -> float:
    """How many of what is compared a call does."""
    return call.size if isinstance(call, Batch) else 1.0


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


@dataclass(frozen=True)
class Errors:
    """How far results are from those in float64, by contender: root mean squares, relative."""

    what: str
    of: Mapping[str, float]

    def __str__(self) -> str:
        found = ", ".join(f"{name} {error:.2e}" for name, error in self.of.items())
        return f"{self.what}: error {found}"


def rows(what: str, seconds: Mapping[str, float], bars: Mapping[str, float]) -> Iterator[Row]:
    """A row for each peer in the timings, where `moec` is ours."""
    for peer, theirs in seconds.items():
        if peer != "moec":
            yield Row(what, peer, seconds["moec"], theirs, bars.get(peer, 0.0))
