"""The plan: which schedule each kernel is built with, and why."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..targets.base import Kernel, Schedule, Space
from .fingerprint import Fingerprint
from .log import Log
from .record import Record, bare, spelled


@dataclass(frozen=True, slots=True)
class Choice:
    """One kernel's schedule.

    why is "tuned" (this run searched and it won), "log" (an earlier run's winner) or "default" (nothing beat
    it, or nothing is known). gain is the default's time over this one's: 1.25 is a quarter faster. tried
    counts the schedules that were measured for this kernel on such a machine, over all runs.
    """

    schedule: Schedule
    why: str
    gain: float = 1.0
    tried: int = 0


class Plan(Mapping[Kernel, Choice]):
    """Kernel -> Choice, never changed, always in the same order: by what the kernel computes."""

    def __init__(self, choices: Mapping[Kernel, Choice]) -> None:
        self._choices = {kernel: choices[kernel] for kernel in sorted(choices, key=_order)}

    def __getitem__(self, kernel: Kernel) -> Choice:
        return self._choices[kernel]

    def __iter__(self) -> Iterator[Kernel]:
        return iter(self._choices)

    def __len__(self) -> int:
        return len(self._choices)

    def json(self) -> str:
        """The plan as text: equal plans are equal bytes."""
        rows = [
            {
                "kernel": {"kind": kernel.kind, "dims": dict(kernel.dims), "reals": dict(kernel.reals)},
                "dtype": kernel.dtype,
                "schedule": dict(sorted(choice.schedule.items())),
                "why": choice.why,
                "gain": round(choice.gain, 3),
                "tried": choice.tried,
            }
            for kernel, choice in self.items()
        ]
        return json.dumps(rows, indent=1)


def make_plan(
    kernels: Iterable[Kernel],
    spaces: Mapping[Kernel, Space],
    log: Log,
    fingerprint: Fingerprint,
    tuned: Collection[Kernel] = (),
) -> Plan:
    """The log's best schedule of each kernel that its space admits, else the default.

    tuned names the kernels (without their reals) that this run has searched; it only decides what `why` says.
    """
    return Plan({kernel: _choose(kernel, spaces[kernel], log, fingerprint, tuned) for kernel in kernels})


def _choose(
    kernel: Kernel, space: Space, log: Log, fingerprint: Fingerprint, tuned: Collection[Kernel]
) -> Choice:
    tried = {spelled(record.schedule) for record in log.of(kernel, fingerprint) if record.status == "ok"}
    best = admitted(space, log.ranked(kernel, fingerprint))
    if best is None or best.ratio is None or spelled(best.schedule) == spelled(space.default):
        return Choice(dict(space.default), "default", tried=len(tried))
    why = "tuned" if bare(kernel) in tuned else "log"
    return Choice(dict(best.schedule), why, 1 / best.ratio, len(tried))


def admitted(space: Space, ranked: Iterable[Record]) -> Record | None:
    """The first record whose schedule the space admits: a log is data from anywhere, the space decides."""
    return next((record for record in ranked if space.objection(record.schedule) is None), None)


def _order(kernel: Kernel) -> tuple[str, str]:
    return str(kernel), repr(kernel.reals)
