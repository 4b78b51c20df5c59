"""What a target is (pure, on any machine) and what a device is (needs the machine)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

Schedule = Mapping[str, int | str]

# How calls of any size are served: each schedule from its count of tokens, the first from 1, up to the next.
Schedules = Mapping[int, Schedule]

BUCKETS = (1, 2, 5, 17, 65, 257)  # the counts of tokens from which schedules may differ


def bucket(tokens: int) -> int:
    """Where the bucket of calls of so many tokens begins."""
    return max((first for first in BUCKETS if first <= tokens), default=BUCKETS[0])


def serving(schedules: Iterable[int], tokens: int) -> int:
    """Of schedules by where they begin, the beginning of the one that serves calls of so many tokens."""
    return max(first for first in schedules if first <= tokens)


def spans(firsts: Iterable[int]) -> list[str]:
    """The counts of tokens that each schedule serves, for people: 1, 5 -> "1-4", "5+"."""
    starts = list(firsts)
    ended = zip(starts, (after - 1 for after in starts[1:]))
    return [*(f"{first}-{last}" if first < last else f"{first}" for first, last in ended), f"{starts[-1]}+"]


def merged(schedules: Schedules) -> Schedules:
    """The same without those that only repeat the one before."""
    ordered = sorted(schedules.items())
    pairs = zip([None, *(schedule for _, schedule in ordered)], ordered)
    return {first: schedule for before, (first, schedule) in pairs if schedule != before}


@dataclass(frozen=True, slots=True)
class Kernel:
    """One unit of generated code: what it computes and for which sizes, and nothing about who uses it.

    dims are the sizes fixed when it is generated (k=2048, n=1408); reals are numbers handed over at run time
    (eps, scale), so they shape no code. dtype says how weights are stored and, behind a "+", how a cache is
    where that is not f32: f32, int4, f32+bf16. A kernel on f16 says f16 instead of f32.
    """

    kind: str
    dims: tuple[tuple[str, int], ...]
    reals: tuple[tuple[str, float], ...] = ()
    dtype: str = "f32"

    def __getitem__(self, name: str) -> int:
        return dict(self.dims)[name]

    @property
    def weights(self) -> str:
        """How its weights are stored."""
        return self.dtype.partition("+")[0]

    @property
    def cache(self) -> str:
        """How the cache that it reads or writes is stored."""
        return self.dtype.partition("+")[2] or "f32"

    @property
    def half(self) -> str:
        """What it takes and gives in half the bytes, where it does: bf16 or f16."""
        return "f16" if "f16" in (self.weights, self.cache) else "bf16"

    @property
    def work(self) -> float:
        """Multiply-adds for one token, about: what it weighs when time to tune is shared out."""
        sizes = dict(self.dims)
        width = sizes["heads"] * sizes["latent"] if "latent" in sizes else sizes.get("k", 1)
        return float(width * sizes.get("n", 64) * sizes.get("share", 1))

    def __str__(self) -> str:
        return " ".join((self.kind, *(f"{name}={size}" for name, size in self.dims), self.dtype))


Rule = Callable[[Schedule], str | None]


@dataclass(frozen=True, slots=True)
class Space:
    """Every schedule worth trying for one kernel.

    choices maps each knob to its values; default is a schedule that is good without tuning; known are further
    points that were good elsewhere and are tried first. A rule gives the sentence why a schedule cannot run.

    layout names the knobs that weights are laid out by, so that all calls share their values. larger says
    where the default has other values for calls of more tokens: {17: {"mr": 12}} for 17 and more.
    """

    choices: Mapping[str, Sequence[int | str]]
    default: Schedule
    known: Sequence[Schedule] = ()
    rules: Sequence[Rule] = field(default=())
    layout: Sequence[str] = ()
    larger: Mapping[int, Schedule] = field(default_factory=dict)

    @property
    def defaults(self) -> Schedules:
        """The default for calls of any size."""
        changed = {first: {**self.default, **knobs} for first, knobs in self.larger.items()}
        return merged({BUCKETS[0]: self.default, **changed})

    def layout_of(self, schedule: Schedule) -> tuple[int | str | None, ...]:
        """What the weights' layout is by: schedules of equal ones can serve calls side by side."""
        return tuple(schedule.get(knob) for knob in self.layout)

    def objection(self, schedule: Schedule) -> str | None:
        """Why this schedule cannot run, or None."""
        for knob, values in self.choices.items():
            if schedule.get(knob) not in values:
                return f"{knob}={schedule.get(knob)!r} is not among {list(values)}"
        return next((why for rule in self.rules if (why := rule(schedule))), None)

    def objection_to(self, schedules: Schedules) -> str | None:
        """Why these cannot serve calls side by side, or None."""
        if BUCKETS[0] not in schedules or not set(schedules) <= set(BUCKETS):
            return f"schedules begin at {sorted(schedules)} tokens; expected 1 and some of {BUCKETS[1:]}"
        if len({self.layout_of(schedule) for schedule in schedules.values()}) != 1:
            return f"schedules differ in {', '.join(self.layout)}, which all calls share"
        return next((why for schedule in schedules.values() if (why := self.objection(schedule))), None)


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
    """A compiled kernel: its object code and its functions, in the order the runtime knows them, for each of
    its schedules.
    """

    kernel: Kernel
    schedules: Schedules
    object_code: bytes
    symbols: tuple[tuple[str, ...], ...]


class Target(Protocol):
    """Describes a machine and writes its kernels. Works on any machine."""

    @property
    def name(self) -> str: ...
    @property
    def capabilities(self) -> Capabilities: ...
    def space(self, kernel: Kernel) -> Space: ...
    def emit(self, kernel: Kernel, schedules: Schedules) -> Emitted: ...


@dataclass(frozen=True, slots=True)
class Flip:
    """With a guessed constant multiplied by a factor, another schedule would be the fastest: by that share
    (0.1: the one that was chosen takes a tenth longer).
    """

    constant: str
    factor: float
    other: Schedule
    faster: float


@runtime_checkable
class Guessing(Protocol):
    """A target that computes times, rather than measure them, from constants of which some are guessed."""

    @property
    def guesses(self) -> Sequence[str]:
        """The names of those."""

    def flips(
        self, kernel: Kernel, point: str, schedules: Sequence[Schedule], trace: str = ""
    ) -> Sequence[Flip]:
        """Where a guess decides that the first of these schedules is the fastest of them in a call.

        point, trace: which call, as tuning has them. Raises CannotBuild where times cannot be computed.
        """


@runtime_checkable
class Halving(Protocol):
    """A target whose kernels hand each other numbers of half the bytes as bf16 or, by --quant, otherwise."""

    def halved(self, quant: str) -> Target:
        """The target whose kernels do so as that says; the same where it says nothing about it."""


@runtime_checkable
class Finished(Protocol):
    """A target whose code is finished by a compiler of the machine that measures, which moec does not pin."""

    @property
    def finished_by(self) -> str:
        """That compiler's version: with another one, times are others. Nothing where none is used."""


@dataclass(frozen=True, slots=True)
class Took:
    """A call of a kernel by one schedule, as tuning names it ("m=64 zipf"), and seconds that it took."""

    kernel: Kernel
    schedule: Schedule
    point: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Refit:
    """A target's guesses fitted to times that were measured; pairs are of what was before and is after.

    constants: by name. calls: that were fitted to; left_out: that could not be computed. off: by what factor
    a computed time is off, in geometric mean. misranked: share of pairs of schedules of one call that are
    computed in the wrong order, of pairs that differ at all. slower: how much longer than the fastest takes
    what is computed to be the fastest, as a ratio in geometric mean.
    """

    constants: Mapping[str, tuple[float, float]]
    calls: int
    left_out: int
    off: tuple[float, float]
    misranked: tuple[float, float]
    slower: tuple[float, float]


@runtime_checkable
class Refitting(Guessing, Protocol):
    """One whose guesses can be fitted to times that a device took."""

    def refit(self, times: Sequence[Took]) -> Refit:
        """Raises CannotBuild where none of these can be computed."""
