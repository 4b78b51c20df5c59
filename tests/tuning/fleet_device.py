"""The fake device as a fleet has it: it notes which worker it is of, and ends it where it is told to."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from fake_device import FakeBench, FakeDevice

from moec.targets.base import Kernel, Schedules


@dataclass
class FleetDevice(FakeDevice):
    """folder holds a file for each time that a schedule with the fault "lose" ends its worker."""

    folder: str = ""

    def bench(self, kernel: Kernel, schedules: Schedules, built: Path) -> FakeBench:
        worker = os.getppid()
        (Path(self.folder) / f"worker {worker}").touch()
        for ticket in Path(self.folder).glob("ticket *"):
            if schedules[1].get("fault") == "lose":
                ticket.unlink()
                os.kill(worker, signal.SIGKILL)
                signal.pause()  # this process ends with it
        return super().bench(kernel, schedules, built)
