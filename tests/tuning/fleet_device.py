"""The fake device as a fleet has it: it notes where it builds and measures, and ends that if told to."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from fake_device import FakeBench, FakeDevice

from moec.targets.base import Kernel, Schedules


@dataclass
class FleetDevice(FakeDevice):
    """A CPU, or in place of a GPU what calls itself so. folder gets an empty file for each worker and process
    that builds or measures; in it is a ticket for each time that a schedule with such a fault ends a worker.
    """

    folder: str = ""
    gpu: str = ""

    def __post_init__(self) -> None:
        self.worker = os.getppid()  # not that of a copy of this process

    @property
    def processor(self) -> str:
        return self.gpu

    def build(self, kernel: Kernel, schedules: Schedules, folder: Path) -> None:
        self.note("builder", "lose builder", schedules)
        super().build(kernel, schedules, folder)

    def bench(self, kernel: Kernel, schedules: Schedules, built: Path) -> FakeBench:
        (Path(self.folder) / f"process {os.getpid()}").touch()
        self.note("worker", "lose", schedules)
        return super().bench(kernel, schedules, built)

    def note(self, name: str, fault: str, schedules: Schedules) -> None:
        """Which worker this process is of; and its end, where it has a ticket for it."""
        (Path(self.folder) / f"{name} {self.worker}").touch()
        if schedules[1].get("fault") == fault:
            for ticket in Path(self.folder).glob("ticket *"):
                ticket.unlink()
                os.kill(self.worker, signal.SIGKILL)
                signal.pause()  # this process ends with it
