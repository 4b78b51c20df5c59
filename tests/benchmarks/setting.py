"""What a section of the benchmark is told: threads, budget, where to build, and what the machine can do."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from .ceilings import Ceilings

READ, FLOATS, INT8 = "read bandwidth", "float32 peak", "int8 peak"
MATRICES = "int8 peak in matrices"


@dataclass(frozen=True)
class Setting:
    """The machine's ceilings are measured right before the section."""

    threads: int
    budget: str
    build: Path
    ceilings: Ceilings

    def floors(self, read: float = 0, floats: float = 0, int8: float = 0) -> dict[str, float]:
        """Seconds that so many bytes and operations take at the ceilings, by the ceiling's name.

        As a peer among timings, its ratio to ours is the share of the ceiling that we reach.
        """
        limits = self.ceilings
        work = {
            READ: (read, limits.read_bytes),
            FLOATS: (floats, limits.float_operations),
            INT8: (int8, limits.int8_operations),
            MATRICES: (int8, limits.matrix_operations),
        }
        return {name: amount / rate for name, (amount, rate) in work.items() if amount and rate}


def told(step: str, done: int, total: int) -> None:
    """A line for each step of a compile, on stderr."""
    if not done:
        print(f"  {step}", file=sys.stderr)
