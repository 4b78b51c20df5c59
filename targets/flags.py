"""What this machine's CPU offers, in Linux's words, and what code for a level of x86-64 needs."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
V3 = ("avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm")  # of x86-64-v3


@cache
def cpu_flags() -> frozenset[str]:
    """What this CPU and its system offer, in Linux's words; empty where that can't be read."""
    if platform.machine() not in ("x86_64", "AMD64") or not CPU_INFO.exists():
        return frozenset()
    lines = CPU_INFO.read_text().splitlines()
    return frozenset(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())
