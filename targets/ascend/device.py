"""An NPU as a device for tuning: this machine's (measured.py), or else simulated.

Simulated, kernels are checked on this CPU and timed by the simulated timeline; then nothing is measured. What
the vendor's compiler rejects, or changes on its own, cannot be tried.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import sample
from ..base import CannotBuild, Kernel, Schedules, serving
from ..cases import Draw
from ..cases_bf16 import CACHED, CASES
from ..routing import even
from . import measured, npu, timeline, trial, vendor
from .hivm.calls import Asked
from .hivm.constants import Constants
from .host import object_code
from .lowering import lowering
from .refitted import known
from .soc import Soc, named
from .space import steps
from .toolchain import NotInstalled, versions
from .trial import Checked

ROWS = (1, 2, 16, 64, 256, 1024)  # one count in each bucket of tokens
# Of kernels with a cache: one new token for each of so many sequences, and the first tokens of one sequence.
DECODE, PREFILL = (1, 2, 16, 64, 128), (128, 1024)
SEEN = 4096  # tokens in the cache when one more is decoded
MOST_BYTES = 256 << 20  # of one weight that is checked: with fewer experts than a model has
MOST_WORK = 2e9  # multiply-adds of one call that is checked: seconds on a CPU
SEEN_OF_WORK = 64  # rows of a cache that Kernel.work is told for


@dataclass(frozen=True, slots=True)
class Device:
    """An NPU of that SoC, by its name: this machine's, or simulated.

    cold: whether weights are in no cache when a call begins; a simulated call finds nothing there in any
    case. trace: a file of a recorded routing (see routing.py), for the kernels that it suits. constants: of
    the simulated timeline, where they are others than there, by name.
    """

    soc: str
    cold: bool = True
    trace: str = ""
    simulated: bool = True
    constants: Mapping[str, float] = field(default_factory=dict)

    @property
    def processor(self) -> str:
        """The NPU's name; nothing where it is simulated. Raises ValueError where there is none."""
        return "" if self.simulated else npu.soc_here()

    @property
    def tools(self) -> Mapping[str, str]:
        """What is built with, that is no package of this Python."""
        return versions()

    def build(self, kernel: Kernel, schedules: Schedules, folder: Path) -> None:
        """Has every step compiled for both machines; the cache keeps what is made, where bench finds it. What
        an NPU runs is put into the folder.

        Raises Rejected where it does not fit, ValueError where it becomes another kernel than was asked for,
        NotInstalled.
        """
        on = named(self.soc)
        for schedule in schedules.values():
            for step in steps(kernel, schedule, on):
                try:
                    linalg = lowering()(step, on)
                    plan = vendor.planned(linalg, on, step.compiler)
                    vendor.synchronised(linalg, on, step.compiler)
                    object_code(linalg)
                except NotInstalled:
                    raise
                except CannotBuild as error:  # of this kernel alone; others can be built
                    raise ValueError(str(error)) from error
                if plan.notes:
                    raise ValueError(f"{step.function} is not compiled as it is written{instead(plan)}")
        if not self.simulated:
            measured.finished(kernel, schedules, on, folder)

    def bench(
        self, kernel: Kernel, schedules: Schedules, built: Path | None = None
    ) -> Bench | measured.Bench:
        """The kernel on the NPU, or as a simulation has it. built: where it was built before."""
        draws = sample.draws(kernel, CASES[kernel.kind], self.trace)
        if self.simulated:
            return Bench(named(self.soc), kernel, schedules, draws, known(self.constants))
        scratch = None
        if built is None:
            scratch = tempfile.TemporaryDirectory(prefix="moec-")
            built = Path(scratch.name)
            self.build(kernel, schedules, built)
        bench = measured.Bench(kernel, schedules, built, calls(kernel, draws), self.cold)
        bench.scratch = scratch
        return bench


class Bench:
    """A kernel's schedules, by the tokens from which each serves: to be compared, and timed in simulation."""

    def __init__(
        self,
        soc: Soc,
        kernel: Kernel,
        schedules: Schedules,
        draws: Mapping[str, Draw] = {"": even},
        known: Constants = timeline.PUBLISHED,
    ) -> None:
        self.soc, self.kernel, self.schedules, self.known = soc, kernel, schedules, known
        self.calls = calls(kernel, draws)
        self.points = list(self.calls)
        self._seconds: dict[str, float] = {}

    def check(self) -> str | None:
        """Why the outputs of some calls are not the reference's, or None."""
        return next((f"with {name}, {why}" for name, why, _ in self.checks() if why), None)

    def checks(self, told: Callable[[str], None] = lambda name: None) -> Iterator[Checked]:
        """What came of each call that is checked; told: called with its name before it is.

        Of large kernels that is few tokens, on few experts.
        """
        kernel = sample.affordable(self.kernel, MOST_BYTES)
        return trial.checks(kernel, self.schedules, self.soc, told, affordable(kernel))

    def time(self, point: str) -> float:
        """Simulated seconds of a call: always the same. Raises CannotSimulate."""
        if point not in self._seconds:
            asked = self.calls[point]
            schedule = self.schedules[serving(self.schedules, asked.tokens)]
            self._seconds[point] = (
                timeline.seconds(self.kernel, schedule, self.soc, asked, self.known).us * 1e-6
            )
        return self._seconds[point]


def instead(plan: vendor.Plan) -> str:
    """What became of a function that was changed, and the compiler's last word on it."""
    changed = [f"{name}={vendor.spelled(value)}" for name, value in plan.became.items()]
    return f"{', but with ' if changed else ''}{', '.join(changed)}: {plan.notes[-1]}"


def affordable(kernel: Kernel) -> Callable[[dict[str, Any]], bool]:
    """Which calls of a kernel are checked, by the arguments of Sample.example: a single token always is."""

    def is_small(options: dict[str, Any]) -> bool:
        tokens, cached = options["rows"] * options.get("batch", 1), options.get("cached", 0)
        work = tokens * kernel.work * max(1.0, cached / SEEN_OF_WORK)
        return work <= MOST_WORK or (tokens == 1 and not cached)

    return is_small


def calls(kernel: Kernel, draws: Mapping[str, Draw]) -> dict[str, Asked]:
    """The points that a kernel is timed at, by their names: "m=64 zipf", "m=16 decode"."""
    if kernel.kind in CACHED:
        decode = {f"m={batch} decode": Asked(1, batch, SEEN) for batch in DECODE}
        return decode | {f"m={rows} prefill": Asked(rows, 1, 0) for rows in PREFILL}
    each = {
        f"m={rows} {word}".strip(): Asked(rows, draw=draw) for rows in ROWS for word, draw in draws.items()
    }
    alone = f"m=1 {next(iter(draws))}".strip()  # the experts of a single token are as many wherever they are
    return {name: asked for name, asked in each.items() if asked.rows > 1 or name == alone}
