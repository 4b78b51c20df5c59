"""A device without a toolchain: its kernels are slow, wrong, hang or crash, as the schedule's knobs say."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass

from moec.targets.base import CannotBuild, Kernel, Schedules


@dataclass
class FakeBench:
    seconds: float
    fault: str
    points: Sequence[str] = ("m=1", "m=64")

    def check(self) -> str | None:
        if self.fault == "segfault":
            ctypes.string_at(0)
        return "row 3 differs by 0.5 of 1e-4 allowed" if self.fault == "wrong" else None

    def time(self, point: str) -> float:
        if self.fault == "hang":
            time.sleep(3600)
        return self.seconds


@dataclass
class FakeDevice:
    """speed maps the knob "tile" to seconds: seconds[tile]."""

    seconds: dict[str, float]
    builds: int = 0

    def bench(self, kernel: Kernel, schedules: Schedules) -> FakeBench:
        schedule = schedules[1]
        fault = str(schedule.get("fault", ""))
        print("a compiler that talks to stdout")
        if fault == "no compiler":
            raise CannotBuild("no C++ compiler on PATH; install g++")
        if fault == "memory":
            bytearray(1 << 40)
        if fault == "raise":
            raise ValueError("tile 3 does not divide 8")
        self.builds += 1
        return FakeBench(self.seconds[str(schedule["tile"])], fault)
