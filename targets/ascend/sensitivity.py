"""Which choices between schedules stand on a guess: by halving and doubling each of those."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from ..base import CannotBuild, Flip, Kernel, Schedule
from ..cases_bf16 import CASES
from ..sample import draws
from . import timeline
from .cache import Passing, kept
from .device import calls
from .hivm.calls import Asked
from .hivm.constants import GUESSED, Constants
from .hivm.machine import Fault
from .hivm.sampled import CannotSimulate
from .hivm.view import OutOfBounds
from .soc import Soc

FACTORS = (0.5, 2.0)
LEAST = 0.01  # of a time: less is no difference


@dataclass(frozen=True, slots=True)
class Variant:
    """A constant multiplied by a factor, and simulated microseconds of each schedule with it."""

    constant: str
    factor: float
    us: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """us: simulated, of each schedule by the constants as they are."""

    kernel: Kernel
    soc: Soc
    schedules: tuple[Schedule, ...]
    us: tuple[float, ...]
    variants: tuple[Variant, ...]

    def against(self, place: int = 0) -> list[Flip]:
        """Where a schedule would be beaten by one that does not beat it by the constants as they are."""
        rivals = [other for other, us in enumerate(self.us) if us >= self.us[place]]
        found = []
        for each in self.variants:
            best = min(rivals, key=lambda other: (each.us[other], other != place))
            if (faster := each.us[place] / each.us[best] - 1) > LEAST:
                found.append(Flip(each.constant, each.factor, self.schedules[best], faster))
        return found


def flips(
    kernel: Kernel,
    point: str,
    schedules: Sequence[Schedule],
    soc: Soc,
    trace: str = "",
    known: Constants = timeline.PUBLISHED,
) -> list[Flip]:
    """Where a guess decides that the first of these schedules is the fastest of them in a call.

    point, trace: which call, as Device has them. Kept in the cache, but for a recorded routing, which is a
    file that may change. Raises CannotBuild.
    """

    def found() -> bytes:
        asked = calls(kernel, draws(kernel, CASES[kernel.kind], trace)).get(point)
        if asked is None:
            raise CannotBuild(f"{kernel} is not timed at {point} any more")
        try:
            each = sensitivity(kernel, schedules, soc, asked, known=known).against()
        except (CannotSimulate, Fault, OutOfBounds, ValueError) as error:
            raise CannotBuild(f"{kernel} at {point} cannot be simulated: {error}") from None
        made = json.dumps([asdict(flip) for flip in each]).encode()
        if trace:
            raise Passing(made)
        return made

    shaped_by = (repr(kernel), point, [sorted(each.items()) for each in schedules], soc, known, sources())
    return [Flip(**each) for each in json.loads(kept("flips", shaped_by, found))]


@cache
def sources() -> str:
    """A hash of all that is the target's: others may write or time other kernels."""
    digest = sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


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
