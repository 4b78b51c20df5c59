"""Candidates built side by side in processes that may crash or hang, each into a folder of its own."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..targets.base import CannotBuild, Kernel, Schedules
from .measure import Measurement
from .parcel import Parcel, unpacked
from .process import Died, Hung, Process
from .record import spelled


class Builders:
    """Some processes, and what they built of the kernel that is being tried."""

    def __init__(self, arguments: Sequence[str], count: int, start_s: float, limit_s: int) -> None:
        """arguments: those of the worker's module; count: of processes, 0 where all is built elsewhere;
        limit_s bounds building one schedule, of which a candidate may be several.
        """
        self.processes = [Process([*arguments, "build"], start_s) for _ in range(count)]
        self._limit_s = limit_s
        self._folder = Path(tempfile.mkdtemp(prefix="moec-"))
        self._kernel: Kernel | None = None
        self._built: dict[str, Path | Measurement] = {}
        self._builds = False  # whether anything was ever built here

    def start(self) -> None:
        """Has all ready. Raises CannotBuild if they cannot start."""
        for process in self.processes:
            process.launch()
        for process in self.processes:
            process.start()

    def close(self) -> None:
        """Ends the processes, and what they started, at once; what they built goes too."""
        for process in self.processes:
            process.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def tools(self) -> Mapping[str, str]:
        """What they build with that is no package of this Python, by name."""
        return next((process.told.get("tools", {}) for process in self.processes), {})

    def build(self, kernel: Kernel, candidates: Sequence[Schedules]) -> list[Path | Measurement]:
        """The folder of each candidate, or what became of it; as many are built at a time as there are
        processes, and none twice while the kernel stays the same.

        Raises CannotBuild if a process cannot start or this machine can build nothing.
        """
        self._turn_to(kernel)
        missing = [each for each in candidates if spelled(each) not in self._built]
        try:
            for first in range(0, len(missing), max(1, len(self.processes))):
                self._build(kernel, missing[first : first + len(self.processes)])
        except BaseException:
            for process in self.processes:  # replies that nobody waits for any more
                process.close()
            raise
        return [self._built[spelled(each)] for each in candidates]

    def take(self, kernel: Kernel, schedules: Schedules, parcel: Parcel) -> None:
        """Has what was built elsewhere as if it was built here. Raises ValueError if it came damaged."""
        self._turn_to(kernel)
        if spelled(schedules) not in self._built:
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            unpacked(parcel, folder)
            self._built[spelled(schedules)] = folder

    def _turn_to(self, kernel: Kernel) -> None:
        """Forgets what was built of another one."""
        if kernel != self._kernel:
            for folder in self._built.values():
                if isinstance(folder, Path):
                    shutil.rmtree(folder, ignore_errors=True)
            self._kernel, self._built = kernel, {}

    def _build(self, kernel: Kernel, batch: Sequence[Schedules]) -> None:
        pairs = list(zip(self.processes, batch))
        folders = [self._ask(process, kernel, schedules) for process, schedules in pairs]
        started = time.monotonic()
        for (process, schedules), folder in zip(pairs, folders):
            limit_s = self._limit_s * len(schedules)
            left = started + limit_s - time.monotonic()
            self._built[spelled(schedules)] = self._outcome(process, folder, left, limit_s)

    def _ask(self, process: Process, kernel: Kernel, schedules: Schedules) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        request = {"kernel": described(kernel), "build": [*schedules.items()], "folder": str(folder)}
        process.send({**request, "limit_s": self._limit_s * len(schedules)})
        return folder

    def _outcome(self, process: Process, folder: Path, left_s: float, limit_s: int) -> Path | Measurement:
        try:
            reply = process.receive(left_s)
        except Hung:
            return Measurement("timeout", f"did not build within {limit_s} s")
        except Died as died:
            return Measurement("crashed", f"{died} while it was built")
        if reply["status"] != "built":
            if reply.get("cannot") and not self._builds:  # not the schedule's fault, then
                raise CannotBuild(reply["reason"])
            return Measurement(reply["status"], reply["reason"])
        self._builds = True
        return folder


def described(kernel: Kernel) -> dict[str, Any]:
    """The kernel as a worker's process is told of it."""
    return {name: getattr(kernel, name) for name in ("kind", "dims", "reals", "dtype")}
