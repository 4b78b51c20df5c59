"""Judges schedules in processes that may crash or hang: some build, side by side, and one measures.

Nothing is built while something is measured: on a machine of few cores that would be a measurement of both.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..targets.base import CannotBuild, Kernel, Schedules
from .measure import Measurement
from .process import Died, Hung, Process
from .record import spelled


class Worker:
    """The processes of one device. Use it as a context manager: what they are and leave goes with it."""

    def __init__(
        self,
        device: str,
        options: Mapping[str, Any],
        limit_s: int = 60,
        start_s: int = 120,
        memory_bytes: int | None = None,
        builders: int = 1,
        build_s: int = 60,
    ) -> None:
        """device is "module:callable", called with options. limit_s bounds checking and timing one candidate,
        build_s building one; builders is how many are built at a time.
        """
        memory_bytes = memory_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        arguments = [device, json.dumps(dict(options)), str(memory_bytes)]
        self._bench = Process(arguments, start_s)
        self._builders = [Process(arguments, start_s) for _ in range(max(1, builders))]
        self._limit_s, self._build_s = limit_s, build_s
        self._folder = Path(tempfile.mkdtemp(prefix="moec-"))
        self._kernel: Kernel | None = None
        self._built: dict[str, Path | Measurement] = {}
        self._builds = False  # whether anything was ever built here

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Has all ready before the first trial. Raises CannotBuild if they cannot start."""
        processes = (self._bench, *self._builders)
        for process in processes:
            process.launch()
        for process in processes:
            process.start()

    def close(self) -> None:
        """Ends all processes, and what they started, at once."""
        for process in (self._bench, *self._builders):
            process.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def renew(self) -> None:
        """Ends the process that measures; the next trial starts another."""
        self._bench.close()

    @property
    def builders(self) -> int:
        """How many candidates are built at a time."""
        return len(self._builders)

    def prepare(self, kernel: Kernel, candidates: Sequence[Schedules]) -> None:
        """Builds them, as many at a time as there are builders.

        Raises CannotBuild if a builder cannot start or this machine can build nothing.
        """
        if kernel != self._kernel:
            self._forget(kernel)
        missing = [each for each in candidates if spelled(each) not in self._built]
        try:
            while missing:
                batch, missing = missing[: len(self._builders)], missing[len(self._builders) :]
                self._build(kernel, batch)
        except BaseException:
            for builder in self._builders:  # replies that nobody waits for any more
                builder.close()
            raise

    def _build(self, kernel: Kernel, batch: Sequence[Schedules]) -> None:
        pairs = list(zip(self._builders, batch))
        folders = [self._ask(builder, kernel, schedules) for builder, schedules in pairs]
        deadline = time.monotonic() + self._build_s
        for (builder, schedules), folder in zip(pairs, folders):
            self._built[spelled(schedules)] = self._outcome(builder, folder, deadline)

    def _ask(self, builder: Process, kernel: Kernel, schedules: Schedules) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        request = {"kernel": _spelled(kernel), "build": [*schedules.items()], "folder": str(folder)}
        builder.send({**request, "limit_s": self._build_s})
        return folder

    def _outcome(self, builder: Process, folder: Path, deadline: float) -> Path | Measurement:
        try:
            reply = builder.receive(deadline - time.monotonic())
        except Hung:
            return Measurement("timeout", f"did not build within {self._build_s} s")
        except Died as died:
            return Measurement("crashed", f"{died} while it was built")
        if reply["status"] != "built":
            if reply.get("cannot") and not self._builds:  # not the schedule's fault, then
                raise CannotBuild(reply["reason"])
            return Measurement(reply["status"], reply["reason"])
        self._builds = True
        return folder

    def _forget(self, kernel: Kernel) -> None:
        for folder in self._built.values():
            if isinstance(folder, Path):
                shutil.rmtree(folder, ignore_errors=True)
        self._kernel, self._built = kernel, {}

    def trial(
        self,
        kernel: Kernel,
        schedules: Schedules,
        incumbent: Schedules | None,
        points: Collection[str] | None = None,
    ) -> Measurement:
        """One candidate, built, checked against the reference and timed in turns with the incumbent.

        Raises CannotBuild if a worker cannot start or this machine can build nothing.
        """
        rivals = [each for each in (schedules, incumbent) if each is not None]
        self.prepare(kernel, rivals)
        built = [self._built[spelled(each)] for each in rivals]
        for each in built:
            if isinstance(each, Measurement):
                return each
        request = {
            "kernel": _spelled(kernel),
            "rivals": [[*each.items()] for each in rivals],
            "built": [str(folder) for folder in built],
            "points": points and [*points],
        }
        self._bench.send({**request, "limit_s": self._limit_s})
        try:
            reply = self._bench.receive(self._limit_s)
        except Hung:
            return Measurement("timeout", f"no result within {self._limit_s} s")
        except Died as died:
            return Measurement("crashed", str(died))
        return Measurement(**reply)


def _spelled(kernel: Kernel) -> dict[str, Any]:
    return {name: getattr(kernel, name) for name in ("kind", "dims", "reals", "dtype")}
