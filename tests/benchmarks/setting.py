"""What a section of the benchmark is told: threads, budget, where to build, and what the machine can do."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .ceilings import FLOATS, INT8, MATRICES, READ, Ceiling
from .timing import Batch


@dataclass(frozen=True)
class Setting:
    """ceilings: what the machine can do at most, by name."""

    threads: int
    budget: str
    build: Path
    ceilings: Mapping[str, Ceiling]

    def floors(self, read: float = 0, floats: float = 0, int8: float = 0) -> dict[str, Batch]:
        """Contenders that do so many bytes and operations at the ceilings, by the ceiling's name.

        Timed beside ours, round by round, their ratio is the share of the ceiling that we reach.
        """
        work = {READ: read, FLOATS: floats, INT8: int8, MATRICES: int8}
        limits = {
            name: self.ceilings[name] for name, amount in work.items() if amount and name in self.ceilings
        }
        return {name: Batch(limit, limit.work / work[name]) for name, limit in limits.items()}


def told(step: str, done: int, total: int) -> None:
    """A line for each step of a compile, on stderr."""
    if not done:
        print(f"  {step}", file=sys.stderr)
