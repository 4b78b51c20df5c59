"""Which choices between schedules stand on a guess: by halving and doubling each of those."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..base import Kernel, Schedule
from . import timeline
from .hivm.calls import Asked
from .hivm.constants import GUESSED, Constants
from .soc import Soc

FACTORS = (0.5, 2.0)


@dataclass(frozen=True, slots=True)
class Variant:
    """A constant multiplied by a factor, and simulated microseconds of each schedule with it."""

    constant: str
    factor: float
    us: tuple[float, ...]

    @property
    def best(self) -> int:
        """The place of the fastest schedule."""
        return self.us.index(min(self.us))


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """us: simulated, of each schedule by the constants as they are."""

    kernel: Kernel
    soc: Soc
    schedules: tuple[Schedule, ...]
    us: tuple[float, ...]
    variants: tuple[Variant, ...]

    @property
    def best(self) -> int:
        """The place of the fastest schedule."""
        return self.us.index(min(self.us))

    @property
    def flips(self) -> list[Variant]:
        """Where another schedule would be the fastest."""
        return [variant for variant in self.variants if variant.best != self.best]

    def text(self) -> str:
        """For people."""
        lines = [f"simulated, not measured: {self.kernel} on {self.soc.name}"]
        for place, (schedule, us) in enumerate(zip(self.schedules, self.us)):
            lines.append(f"  {us:10.1f} us  {dict(schedule)}{'  <- chosen' if place == self.best else ''}")
        for each in self.flips:
            other, lost = self.schedules[each.best], each.us[self.best] / min(each.us) - 1
            lines.append(f"  {each.constant} x {each.factor:g}: {dict(other)} is {lost:.1%} faster")
        return "\n".join(lines if self.flips else [*lines, "  no guessed constant changes the choice"])

    def json(self) -> str:
        """For programs; one object. Times are simulated."""
        made: dict[str, Any] = {
            "simulated": True,
            "kernel": str(self.kernel),
            "soc": self.soc.name,
            "schedules": [dict(schedule) for schedule in self.schedules],
            "us": self.us,
            "chosen": self.best,
            "variants": [
                {"constant": each.constant, "factor": each.factor, "us": each.us, "chosen": each.best}
                for each in self.variants
            ],
        }
        return json.dumps(made)


def sensitivity(
    kernel: Kernel,
    schedules: Sequence[Schedule],
    soc: Soc,
    asked: Asked,
    constants: Sequence[str] = GUESSED,
    known: Constants = timeline.PUBLISHED,
) -> Sensitivity:
    """Each schedule's blocks are run once, then timed by all constants. Raises as timeline.seconds does."""
    changes = [(name, factor) for name in constants for factor in FACTORS]
    sets = [known, *(known.changed(name, factor) for name, factor in changes)]
    times = [
        [found.us for found in timeline.timed(timeline.sampled(kernel, schedule, soc, asked), soc, sets)]
        for schedule in schedules
    ]
    by_set = list(zip(*times))
    variants = tuple(Variant(name, factor, us) for (name, factor), us in zip(changes, by_set[1:]))
    return Sensitivity(kernel, soc, tuple(schedules), by_set[0], variants)
