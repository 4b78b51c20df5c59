"""A device without a toolchain: its kernels are slow, wrong, hang or crash, as the schedule's knobs say."""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moec.targets.base import CannotBuild, Kernel, Schedules


@dataclass
class FakeBench:
    seconds: float
    fault: str
    points: Sequence[str] = ("m=1", "m=64")

    def check(self) -> str | None:
        if self.fault == "segfault":
            ctypes.string_at(0)
        print("a kernel that talks", flush=True)
        if self.fault == "exit":
            os._exit(0)
        while self.fault == "flood":
            print("and talks" * 100_000)
        hoard = []
        while self.fault == "grow":
            hoard.append(bytearray(1 << 26))
        return "row 3 differs by 0.5 of 1e-4 allowed" if self.fault == "wrong" else None

    def time(self, point: str) -> float:
        if self.fault == "hang":
            time.sleep(3600)
        return self.seconds


@dataclass
class FakeDevice:
    """speed maps the knob "tile" to seconds: seconds[tile]."""

    seconds: dict[str, float]
    loads: int = 0

    def build(self, kernel: Kernel, schedules: Schedules, folder: Path) -> None:
        fault = str(schedules[1].get("fault", ""))
        print("a compiler that talks to stdout")
        if fault == "slow build":
            time.sleep(3600)
        if fault == "broken build":
            ctypes.string_at(0)
        if fault == "no compiler":
            raise CannotBuild("no C++ compiler on PATH; install g++")
        if fault == "memory":
            bytearray(1 << 40)
        if fault == "raise":
            raise ValueError("tile 3 does not divide 8")
        (folder / "built").write_text(json.dumps(schedules))

    def bench(self, kernel: Kernel, schedules: Schedules, built: Path) -> FakeBench:
        assert json.loads((built / "built").read_text())["1"] == schedules[1], "not what was built"
        self.loads += 1
        fault, seconds = str(schedules[1].get("fault", "")), self.seconds[str(schedules[1]["tile"])]
        return FakeBench(seconds * (self.loads if fault == "ages" else 1), fault)
