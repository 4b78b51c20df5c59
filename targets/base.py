"""What a target is (pure, on any machine) and what a device is (needs the machine)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Schedule = Mapping[str, int | str]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One unit of generated code: what it computes and for which sizes, and nothing about who uses it.

    dims are the sizes fixed when it is generated (k=2048, n=1408); reals are numbers handed over at run time
    (eps, scale), so they shape no code.
    """

    kind: str
    dims: tuple[tuple[str, int], ...]
    reals: tuple[tuple[str, float], ...] = ()
    dtype: str = "f32"

    def __getitem__(self, name: str) -> int:
        return dict(self.dims)[name]

    def __str__(self) -> str:
        return " ".join((self.kind, *(f"{name}={size}" for name, size in self.dims), self.dtype))


Rule = Callable[[Schedule], str | None]


@dataclass(frozen=True, slots=True)
class Space:
    """Every schedule worth trying for one kernel.

    choices maps each knob to its values; default is a schedule that is good without tuning; known are further
    points that were good elsewhere and are tried first. A rule gives the sentence why a schedule cannot run.
    """

    choices: Mapping[str, Sequence[int | str]]
    default: Schedule
    known: Sequence[Schedule] = ()
    rules: Sequence[Rule] = field(default=())

    def objection(self, schedule: Schedule) -> str | None:
        """Why this schedule cannot run, or None."""
        for knob, values in self.choices.items():
            if schedule.get(knob) not in values:
                return f"{knob}={schedule.get(knob)!r} is not among {list(values)}"
        return next((why for rule in self.rules if (why := rule(schedule))), None)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a machine says about itself: data, never code."""

    name: str
    vector_lanes: int
    registers: int
    features: tuple[str, ...] = ()


class CannotBuild(RuntimeError):
    """This machine lacks what the target's build needs; the text says what and how to get it."""


@dataclass(frozen=True, slots=True)
class Emitted:
    """A compiled kernel: its object code and its functions, in the order the runtime knows them."""

    kernel: Kernel
    schedule: Schedule
    object_code: bytes
    symbols: tuple[str, ...]


class Target(Protocol):
    """Describes a machine and writes its kernels. Works on any machine."""

    @property
    def name(self) -> str: ...
    @property
    def capabilities(self) -> Capabilities: ...
    def space(self, kernel: Kernel) -> Space: ...
    def emit(self, kernel: Kernel, schedule: Schedule) -> Emitted: ...
