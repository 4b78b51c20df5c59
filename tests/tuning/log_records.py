"""Records to fill logs with."""

from __future__ import annotations

from moec.targets.base import Kernel
from moec.tuning.fingerprint import Fingerprint
from moec.tuning.record import Record

KERNEL = Kernel("linear", (("k", 1024), ("n", 512)))
OTHER = Kernel("linear", (("k", 64), ("n", 512)))
HERE = Fingerprint("x86-64-v3", "some cpu", 2, "00ff")


def ok(
    tile: int, ratio: float, beats: bool = True, kernel: Kernel = KERNEL, place: Fingerprint = HERE
) -> Record:
    return Record(kernel, place, {"tile": tile}, "ok", "", {"m=1": [1e-3, 2e-3]}, ratio, beats)
