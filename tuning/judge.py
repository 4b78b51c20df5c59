"""Judges schedules in processes that may crash or hang: some build, side by side, and one measures.

Nothing is built while something is measured: on a machine of few cores that would be a measurement of both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from ..targets.base import Kernel, Schedules
from .builders import Builders, described
from .measure import Measurement
from .process import Died, Hung, Process


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
        build_s building each of its schedules; builders is how many candidates are built at a time, 0 where
        all are taken from elsewhere.
        """
        memory_bytes = memory_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        arguments = [device, json.dumps(dict(options)), str(memory_bytes)]
        self.bench = Process([*arguments, "measure"], start_s)
        self.fresh = Process([*arguments, "afresh"], start_s)
        self.building = Builders(arguments, builders, start_s, build_s)
        self._limit_s = limit_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Has all ready before the first trial. Raises CannotBuild if they cannot start."""
        for process in (self.bench, self.fresh):
            process.launch()
        self.building.start()
        for process in (self.bench, self.fresh):
            process.start()

    def close(self) -> None:
        """Ends all processes, and what they started, at once."""
        for each in (self.bench, self.fresh, self.building):
            each.close()

    @property
    def processor(self) -> str:
        """What it measures on, once it has started; nothing where that is this machine's CPU."""
        return str(self.bench.told.get("processor", ""))

    @property
    def builders(self) -> int:
        """How many candidates are built at a time."""
        return len(self.building.processes)

    def prepare(self, kernel: Kernel, candidates: Sequence[Schedules]) -> None:
        """Builds them, as many at a time as there are builders.

        Raises CannotBuild if a builder cannot start or this machine can build nothing.
        """
        self.building.build(kernel, candidates)

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
        return self._trial(self.bench, kernel, schedules, incumbent, points)

    def afresh(
        self,
        kernel: Kernel,
        schedules: Schedules,
        incumbent: Schedules | None,
        points: Collection[str] | None = None,
    ) -> Measurement:
        """As trial, in a process that has run nothing before."""
        return self._trial(self.fresh, kernel, schedules, incumbent, points)

    def _trial(
        self,
        process: Process,
        kernel: Kernel,
        schedules: Schedules,
        incumbent: Schedules | None,
        points: Collection[str] | None,
    ) -> Measurement:
        rivals = [each for each in (schedules, incumbent) if each is not None]
        built = self.building.build(kernel, rivals)
        for each in built:
            if isinstance(each, Measurement):
                return each
        request = {
            "kernel": described(kernel),
            "rivals": [[*each.items()] for each in rivals],
            "built": [str(folder) for folder in built],
            "points": points and [*points],
        }
        process.send({**request, "limit_s": self._limit_s})
        try:
            reply = process.receive(self._limit_s)
        except Hung:
            return Measurement("timeout", f"no result within {self._limit_s} s")
        except Died as died:
            return Measurement("crashed", str(died))
        return Measurement(**reply)
