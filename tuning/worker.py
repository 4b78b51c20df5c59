"""The process that builds, checks and times candidates, so that one that crashes or hangs harms nobody else.

    python -m moec.tuning.worker MODULE:DEVICE OPTIONS MEMORY_BYTES measure|afresh|build

It speaks JSON lines: {"ready": true} and what it is first, then one reply a request (see judge.Worker and
builders.Builders, the other end).
Whatever kernels and compilers print goes to stderr. The benches of a request stay loaded until one comes
that does not name them, so the incumbent of a search is checked once; after a crash the next request simply
loads it again. One that is to measure afresh only imports, and answers each request in a copy of itself.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import mmap
import os
import random
import resource
import signal
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, Protocol, TextIO

from ..targets.base import CannotBuild, Kernel, Schedules
from .measure import Measurement
from .race import HISTORY, race
from .record import spelled

PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal a process gets when the one that started it dies
ANSWERED = 42  # exit status of a copy: whatever else a candidate ends its process with is no reply
HUGE_PAGE = 2 << 20
MOST_WRITTEN = 64 << 20  # bytes of one file: what a candidate prints must not fill the disk


class Bench(Protocol):
    """A kernel loaded, ready to be called at each point of its profile."""

    @property
    def points(self) -> Sequence[str]:
        """Names of the calls it is timed at, by their tokens ("m=1", "m=64"); a kernel's never differ."""

    def check(self) -> str | None:
        """Why its outputs are not the reference's, or None."""

    def time(self, point: str) -> float:
        """Seconds of one call."""


class Device(Protocol):
    """What a target's device module offers the worker."""

    def build(self, kernel: Kernel, schedules: Schedules, folder: Path) -> None:
        """Builds one kernel into an empty folder. Raises CannotBuild if the machine lacks what it takes."""

    def bench(self, kernel: Kernel, schedules: Schedules, built: Path) -> Bench:
        """Loads what was built into that folder."""


def facts(device: Device, role: str) -> dict[str, Any]:
    """What a device may say of itself: what it measures on, if that is not this machine's CPU, and what it
    builds with, if that is no package of this Python. A process that builds finds no GPU or NPU, perhaps.
    """
    if role == "afresh":
        return {}
    if role == "measure":
        return {"processor": getattr(device, "processor", "")}
    return {"tools": dict(getattr(device, "tools", {}))}


class Desk:
    """Answers requests with one device."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.loaded: dict[str, Bench] = {}
        self.earlier: dict[str, dict[str, list[float]]] = {}

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to one request: what became of the build, or the Measurement of the trial."""
        kernel = _kernel(request["kernel"])
        try:
            if "build" in request:
                self.device.build(kernel, dict(request["build"]), Path(request["folder"]))
                return {"status": "built"}
            return asdict(self._trial(kernel, request))
        except CannotBuild as cannot:
            return {"status": "crashed", "reason": str(cannot)[:2000], "cannot": True}
        except MemoryError:
            return {"status": "crashed", "reason": "out of memory"}
        except Exception as error:
            return {"status": "crashed", "reason": f"{type(error).__name__}: {error}"[:300]}

    def _trial(self, kernel: Kernel, request: Mapping[str, Any]) -> Measurement:
        rivals = [dict(pairs) for pairs in request["rivals"]]
        self._keep([_key(kernel, schedules) for schedules in rivals])
        benches: list[Bench] = []
        for schedules, folder in reversed([*zip(rivals, request["built"])]):  # the incumbent: it is loaded
            bench, wrong = self._bench(kernel, schedules, Path(folder))
            if wrong:
                return Measurement("wrong", wrong)
            benches.insert(0, bench)
        last = _key(kernel, rivals[-1])
        samples, repeated = race(benches, request["points"], self.earlier.get(last))
        self._remember(last, samples[-1])
        return Measurement("ok", "", samples[0], samples[1] if len(samples) > 1 else None, repeated)

    def _bench(self, kernel: Kernel, schedules: Schedules, folder: Path) -> tuple[Bench, str | None]:
        key = _key(kernel, schedules)
        if (bench := self.loaded.get(key)) is None:
            bench = self.device.bench(kernel, schedules, folder)
            if wrong := bench.check():
                return bench, wrong
            self.loaded[key] = bench
        return bench, None

    def _keep(self, keys: Sequence[str]) -> None:
        """Unloads all others first: the next candidate finds the memory of the last one free."""
        self.loaded = {key: bench for key, bench in self.loaded.items() if key in keys}
        self.earlier = {key: samples for key, samples in self.earlier.items() if key in keys}

    def _remember(self, key: str, samples: Mapping[str, list[float]]) -> None:
        """The last samples of what may be the next incumbent too: they say how noisy the machine is."""
        known = self.earlier.setdefault(key, {})
        for point, seconds in samples.items():
            known[point] = [*known.get(point, ()), *seconds][-HISTORY:]


def _key(kernel: Kernel, schedules: Schedules) -> str:
    return f"{kernel!r} {spelled(schedules)}"


def _kernel(data: Mapping[str, Any]) -> Kernel:
    dims, reals = (tuple((name, number) for name, number in data[part]) for part in ("dims", "reals"))
    return Kernel(data["kind"], dims, reals, data["dtype"])


def main(arguments: Sequence[str]) -> None:
    """Opens the device and answers until stdin ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # from here on, what anything prints is not a reply
    name, options, memory_bytes, role = arguments
    end_with_parent()
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes), int(memory_bytes)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_WRITTEN, MOST_WRITTEN))
    module, _, attribute = name.partition(":")
    desk = Desk(getattr(importlib.import_module(module), attribute)(**json.loads(options)))
    print(json.dumps({"ready": True, **facts(desk.device, role)}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(request["limit_s"] + 10)  # ends this process even if the one that waits for it is gone
        if role == "afresh":
            apart(desk, request, replies)
        else:
            print(json.dumps(desk.answer(request)), file=replies, flush=True)
        signal.alarm(0)
        if stat.S_ISREG(os.fstat(2).st_mode):  # what this candidate printed leaves no room for the next
            os.ftruncate(2, 0)
            os.lseek(2, 0, os.SEEK_SET)


def end_with_parent() -> None:
    """Nobody else may measure here while this process does."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def apart(desk: Desk, request: Mapping[str, Any], replies: TextIO) -> None:
    """The reply of a copy of this process, which pays no imports. However it ends, so does this one."""
    if not (copy := os.fork()):
        _answer_and_end(desk, request, replies)
    code = os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
    if code < 0:
        os.kill(os.getpid(), -code)
    if code != ANSWERED:
        sys.exit(code)


def _answer_and_end(desk: Desk, request: Mapping[str, Any], replies: TextIO) -> NoReturn:
    try:
        end_with_parent()
        # All copies would have their memory at the same places, also within huge pages; processes do not.
        shift = mmap.mmap(-1, mmap.PAGESIZE * random.randint(1, HUGE_PAGE // mmap.PAGESIZE))
        print(json.dumps(desk.answer(request)), file=replies, flush=True)
        shift.close()
        os._exit(ANSWERED)
    finally:
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
