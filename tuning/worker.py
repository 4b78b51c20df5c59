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
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..targets.base import CannotBuild, Kernel, Schedule

PAIRS = 9  # per point, at least: fewer say little about noise
MOST_PAIRS = 31
POINT_SECONDS = 0.1  # enough for one point, once it has PAIRS
LOST = 1.15  # four pairs in a row this much slower, and the rest of a point is not worth waiting for
HOPELESS = 1.25  # more than the points to come would make up for


class Bench(Protocol):
    """A kernel built with one schedule and loaded, ready to be called at each point of its profile."""

    @property
    def points(self) -> Sequence[str]:
        """Names of the sizes it is timed at ("m=1", "m=64"), the same for every schedule of a kernel."""

    def check(self) -> str | None:
        """Why its outputs are not the reference's, or None."""

    def time(self, point: str) -> float:
        """Seconds of one call."""


class Device(Protocol):
    """What a target's device module offers the worker."""

    def bench(self, kernel: Kernel, schedule: Schedule) -> Bench:
        """Builds and loads one kernel. Raises CannotBuild if this machine can build none at all."""


Samples = dict[str, list[float]]


def race(benches: Sequence[Bench]) -> list[Samples]:
    """Seconds per call of each bench at each point, taken in turns so that drift hits all alike.

    The order flips every round: who runs second may find warmer caches. Of two, a first one that is hopeless
    at the points so far is not timed at the others.
    """
    samples: list[Samples] = [{} for _ in benches]
    for point in benches[0].points:
        for taken, bench in zip(samples, benches):
            bench.time(point)  # warm up
            taken[point] = []
        started, rounds = time.monotonic(), 0
        while not _enough([taken[point] for taken in samples], time.monotonic() - started):
            for taken, bench in list(zip(samples, benches))[:: -1 if rounds % 2 else 1]:
                taken[point].append(bench.time(point))
            rounds += 1
        if len(benches) == 2 and _behind(*samples) > HOPELESS:
            break
    return samples


def _behind(mine: Samples, its: Samples) -> float:
    """What the points to come must make up for: the product of the ratios of those so far, at their best.

    At its best, a point has the low quartile of the pairs' ratios, or the ratio of the fastest runs: whatever
    else the machine does only ever adds to a run.
    """
    return math.prod(
        min(
            sorted(one / other for one, other in zip(mine[point], its[point]))[len(mine[point]) // 4],
            min(mine[point]) / min(its[point]),
        )
        for point in mine
    )


def _enough(taken: Sequence[Sequence[float]], seconds: float) -> bool:
    pairs = len(taken[0])
    if len(taken) == 1:  # nothing to compare with, so these are for the record only
        return pairs >= 3
    if pairs >= 4 and all(mine > LOST * its for mine, its in zip(*taken)):
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
        schedules = [
            schedule for schedule in (request["schedule"], request["incumbent"]) if schedule is not None
        ]
        self._keep(kernel, schedules)
        try:
            benches: list[Bench] = []
            for schedule in reversed(schedules):  # the incumbent first: it is the one already loaded
                bench, wrong = self._bench(kernel, schedule)
                if wrong:
                    return {"status": "wrong", "reason": wrong}
                benches.insert(0, bench)
            candidate, *incumbent = race(benches)
        except CannotBuild as cannot:
            if self.builds == 0:  # not the schedule's fault, then
                return {"fatal": str(cannot)}
            return {"status": "crashed", "reason": str(cannot)[:300]}
        except MemoryError:
            return {"status": "crashed", "reason": "out of memory"}
        except Exception as error:
            return {"status": "crashed", "reason": f"{type(error).__name__}: {error}"[:300]}
        return {"status": "ok", "samples": candidate, "against": incumbent[0] if incumbent else None}

    def _bench(self, kernel: Kernel, schedule: Schedule) -> tuple[Bench, str | None]:
        key = _key(kernel, schedule)
        if (bench := self.loaded.get(key)) is None:
            bench = self.device.bench(kernel, schedule)
            self.builds += 1
            if wrong := bench.check():
                return bench, wrong
            self.loaded[key] = bench
        return bench, None

    def _keep(self, kernel: Kernel, schedules: Sequence[Schedule]) -> None:
        """Unloads all others first: the next candidate finds the memory of the last one free."""
        keys = {_key(kernel, schedule) for schedule in schedules}
        self.loaded = {key: bench for key, bench in self.loaded.items() if key in keys}


def _key(kernel: Kernel, schedule: Schedule) -> str:
    return f"{kernel!r} {sorted(schedule.items())}"


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
