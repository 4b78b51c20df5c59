"""The process that builds, checks and times candidates, so that one that crashes or hangs harms nobody else.

    python -m moec.tuning.worker MODULE:DEVICE OPTIONS MEMORY_BYTES

It speaks JSON lines: {"ready": true} first, then one reply a request (see measure.Worker, the other end).
Whatever kernels and compilers print goes to stderr. The benches of a request stay loaded until
one comes that does not name them, so the incumbent of a search is built once; after a crash the next request
simply builds it again.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from ..targets.base import CannotBuild, Kernel, Schedules
from .record import spelled

PAIRS = 9  # per point, about: fewer say little about noise
MOST_PAIRS, FEWEST = 31, 5
POINT_SECONDS = 0.06  # enough for one point, once it has PAIRS; twice that once it has FEWEST
LOST = 1.15  # four pairs in a row this much slower, and the rest of a point is not worth waiting for


class Bench(Protocol):
    """A kernel built and loaded, ready to be called at each point of its profile."""

    @property
    def points(self) -> Sequence[str]:
        """Names of the calls it is timed at, by their tokens ("m=1", "m=64"); a kernel's never differ."""

    def check(self) -> str | None:
        """Why its outputs are not the reference's, or None."""

    def time(self, point: str) -> float:
        """Seconds of one call."""


class Device(Protocol):
    """What a target's device module offers the worker."""

    def bench(self, kernel: Kernel, schedules: Schedules) -> Bench:
        """Builds and loads one kernel. Raises CannotBuild if this machine can build none at all."""


Samples = dict[str, list[float]]


def race(benches: Sequence[Bench], points: Collection[str] | None = None) -> list[Samples]:
    """Seconds per call of each bench at each point, taken in turns so that drift hits all alike.

    The order flips every round: who runs second may find warmer caches. A loser at one point may be the best
    at another, so each is timed at all of them; that it loses at one is soon seen.
    """
    samples: list[Samples] = [{} for _ in benches]
    for point in benches[0].points:
        if points is not None and point not in points:
            continue
        for taken, bench in zip(samples, benches):
            bench.time(point)  # warm up
            taken[point] = []
        started, rounds = time.monotonic(), 0
        while not _enough([taken[point] for taken in samples], time.monotonic() - started):
            for taken, bench in list(zip(samples, benches))[:: -1 if rounds % 2 else 1]:
                taken[point].append(bench.time(point))
            rounds += 1
    return samples


def _enough(taken: Sequence[Sequence[float]], seconds: float) -> bool:
    pairs = len(taken[0])
    if len(taken) == 1:  # nothing to compare with, so these are for the record only
        return pairs >= 3
    if pairs >= 4 and all(mine > LOST * its for mine, its in zip(*taken)):
        return True
    if pairs >= FEWEST and seconds > 2 * POINT_SECONDS:
        return True
    return pairs >= MOST_PAIRS or (pairs >= PAIRS and seconds > POINT_SECONDS)


class Desk:
    """Answers requests with one device."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.loaded: dict[str, Bench] = {}
        self.builds = 0

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to one trial: its status, and the samples of candidate and incumbent if it is ok."""
        kernel = _kernel(request["kernel"])
        rivals = [dict(pairs) for pairs in (request["schedules"], request["incumbent"]) if pairs is not None]
        self._keep(kernel, rivals)
        try:
            benches: list[Bench] = []
            for schedules in reversed(rivals):  # the incumbent first: it is the one already loaded
                bench, wrong = self._bench(kernel, schedules)
                if wrong:
                    return {"status": "wrong", "reason": wrong}
                benches.insert(0, bench)
            candidate, *incumbent = race(benches, request["points"])
        except CannotBuild as cannot:
            if self.builds == 0:  # not the schedule's fault, then
                return {"fatal": str(cannot)}
            return {"status": "crashed", "reason": str(cannot)[:300]}
        except MemoryError:
            return {"status": "crashed", "reason": "out of memory"}
        except Exception as error:
            return {"status": "crashed", "reason": f"{type(error).__name__}: {error}"[:300]}
        return {"status": "ok", "samples": candidate, "against": incumbent[0] if incumbent else None}

    def _bench(self, kernel: Kernel, schedules: Schedules) -> tuple[Bench, str | None]:
        key = _key(kernel, schedules)
        if (bench := self.loaded.get(key)) is None:
            bench = self.device.bench(kernel, schedules)
            self.builds += 1
            if wrong := bench.check():
                return bench, wrong
            self.loaded[key] = bench
        return bench, None

    def _keep(self, kernel: Kernel, rivals: Sequence[Schedules]) -> None:
        """Unloads all others first: the next candidate finds the memory of the last one free."""
        keys = {_key(kernel, schedules) for schedules in rivals}
        self.loaded = {key: bench for key, bench in self.loaded.items() if key in keys}


def _key(kernel: Kernel, schedules: Schedules) -> str:
    return f"{kernel!r} {spelled(schedules)}"


def _kernel(data: Mapping[str, Any]) -> Kernel:
    dims, reals = (tuple((name, number) for name, number in data[part]) for part in ("dims", "reals"))
    return Kernel(data["kind"], dims, reals, data["dtype"])


def main(arguments: Sequence[str]) -> None:
    """Opens the device and answers until stdin ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # from here on, what anything prints is not a reply
    name, options, memory_bytes = arguments
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes), int(memory_bytes)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    module, _, attribute = name.partition(":")
    desk = Desk(getattr(importlib.import_module(module), attribute)(**json.loads(options)))
    print('{"ready": true}', file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(request["limit_s"] + 10)  # ends this process even if the one that waits for it is gone
        print(json.dumps(desk.answer(request)), file=replies, flush=True)
        signal.alarm(0)


if __name__ == "__main__":
    main(sys.argv[1:])
