"""What a build tells of its tuning: events whose names and fields stay as they are, from version to version.

start    kernels [{kernel, uses}]; budget {seconds, trials}, null for no limit; machine {isa, cpu, threads,
         generator}
trial    kernel; number, searched: it is that one of so many to be searched; trials: of it, so far;
         schedules: those tried, [{tokens, schedule, gain}]; status, reason, ratio, noise: as in the log;
         seconds: it took; gain: of the best so far; best_seconds: of that on one token; share: of the read
         bandwidth, at which weights are read then; left: seconds that all may take yet
kernel   its search has ended, or there was none: kernel; schedules: the best; gain, noise; trials, seconds:
         of this build; best_seconds, share; why, reason: as in the plan
warning  text: something was left out
end      what it cost and bought: seconds, trials, kernels, kept, timed, decode, prefill, interrupted; line:
         the same in words

As JSON each is an object on a line, with its name as "event". What is not known is null. A gain is the
default's time over another's; times are in seconds.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from ..targets.base import BUCKETS, Kernel, Schedules, Space, merged
from ..tuning.fingerprint import Fingerprint, Here
from ..tuning.log import Log
from ..tuning.plan import Plan, gains, served
from ..tuning.record import Record
from ..tuning.search import Budget, Progress
from ..tuning.worth import Worth, seconds_of

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Start:
    name: ClassVar = "start"
    kernels: Rows
    budget: Mapping[str, float | None]
    machine: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Trial:
    name: ClassVar = "trial"
    kernel: str
    number: int
    searched: int
    trials: int
    schedules: Rows
    status: str
    reason: str
    ratio: float | None
    noise: float | None
    seconds: float
    gain: float
    best_seconds: float | None
    share: float | None
    left: float | None


@dataclass(frozen=True, slots=True)
class Done:
    name: ClassVar = "kernel"
    kernel: str
    schedules: Rows
    gain: float
    noise: float | None
    trials: int
    seconds: float
    best_seconds: float | None
    share: float | None
    why: str
    reason: str


@dataclass(frozen=True, slots=True)
class Warned:
    name: ClassVar = "warning"
    text: str


@dataclass(frozen=True, slots=True)
class End:
    name: ClassVar = "end"
    worth: Worth


Event = Start | Trial | Done | Warned | End
Listener = Callable[[Event], None]


def nobody(event: Event) -> None:
    """For a build that nobody watches."""


def data(event: Event) -> dict[str, Any]:
    """An event as JSON has it."""
    fields = event.worth.json() if isinstance(event, End) else asdict(event)
    return {"event": event.name, **fields}


class Teller:
    """Turns the steps of a search into events. worth is what it all came to, once it has ended."""

    def __init__(self, listener: Listener = nobody) -> None:
        self.listener = listener
        self.worth: Worth | None = None
        self._known: dict[str, list[Record]] = {}  # of the kernels that are searched
        self._last: dict[str, float] = {}  # when a step of each ended, in seconds since the search began
        self._trials, self._seconds = Counter[str](), defaultdict[str, float](float)
        self._told: set[str] = set()

    def start(
        self,
        uses: Mapping[Kernel, int],
        spaces: Mapping[Kernel, Space],
        budget: Budget,
        log: Log,
        place: Fingerprint | Here,
        ceilings: Mapping[Kernel, float],
    ) -> None:
        """ceilings: seconds that a kernel takes at least for one token, where that is known."""
        self.spaces, self.budget, self.log, self.place, self.ceilings = spaces, budget, log, place, ceilings
        limits = {name: limit if math.isfinite(limit) else None for name, limit in asdict(budget).items()}
        rows = [{"kernel": str(kernel), "uses": count} for kernel, count in uses.items()]
        self.listener(Start(rows, limits, asdict(place.whole)))

    def step(self, step: Progress) -> None:
        """After a trial, or at the end of a kernel's search."""
        name = str(step.kernel)
        if name not in self._known:
            self._known[name] = [*self.log.of(step.kernel, self.place.of(step.kernel))]
        took = step.seconds - self._last.get(name, max(self._last.values(), default=0.0))
        self._known[name].append(step.record)
        self._trials[name], self._last[name] = step.trials, step.seconds
        self._seconds[name] += took
        if step.record.status == "done":
            self._ended(step)
        else:
            self._tried(step, took)

    def end(self, plan: Plan, worth: Worth) -> None:
        """At the end of all; tells first of the kernels whose search did not come to its end."""
        for kernel, choice in plan.items():
            known = [*self.log.of(kernel, self.place.of(kernel))]
            noise = next((each.noise for each in self.log.ranked(kernel, self.place.of(kernel))), None)
            kept = merged(choice.schedules) == self.spaces[kernel].defaults
            fast = self._fast(kernel, choice.schedules, known)
            said = choice.rows(), choice.gain, None if kept else noise
            self._tell(kernel, *said, fast, choice.why, choice.reason)
        for problem in self.log.problems:
            self.listener(Warned(problem))
        self.worth = worth
        self.listener(End(worth))

    def _tried(self, step: Progress, took: float) -> None:
        record, best = step.record, step.best.schedules if step.best else self.spaces[step.kernel].defaults
        self.listener(
            Trial(
                kernel=str(step.kernel),
                number=step.number,
                searched=step.kernels,
                trials=step.trials,
                schedules=rows(record),
                status=record.status,
                reason=record.reason,
                ratio=record.ratio,
                noise=record.noise,
                seconds=took,
                gain=step.gain,
                left=self._left(step),
                **self._fast(step.kernel, best, self._known[str(step.kernel)]),
            )
        )

    def _ended(self, step: Progress) -> None:
        default, best = self.spaces[step.kernel].defaults, step.best
        fast = self._fast(step.kernel, best.schedules if best else default, self._known[str(step.kernel)])
        if best is None or merged(best.schedules) == default:
            why, noise, reason = "default", None, "nothing that was tried beat it"
        else:
            why, noise, reason = "tuned", best.noise, f"the best of {step.trials} tried now"
        self._tell(step.kernel, rows(best or step.record), step.gain, noise, fast, why, reason)

    def _tell(
        self,
        kernel: Kernel,
        schedules: Rows,
        gain: float,
        noise: float | None,
        fast: Mapping[str, float | None],
        why: str,
        reason: str,
    ) -> None:
        """Each kernel once: those that differ in reals only are one."""
        name = str(kernel)
        if name not in self._told:
            self._told.add(name)
            cost = self._trials[name], self._seconds[name]
            speed = fast["best_seconds"], fast["share"]
            self.listener(Done(name, schedules, gain, noise, *cost, *speed, why, reason))

    def _fast(
        self, kernel: Kernel, schedules: Schedules, records: Sequence[Record]
    ) -> dict[str, float | None]:
        """How fast schedules are on one token."""
        seconds, ceiling = seconds_of(schedules, BUCKETS[0], records), self.ceilings.get(kernel)
        return {"best_seconds": seconds, "share": ceiling / seconds if ceiling and seconds else None}

    def _left(self, step: Progress) -> float | None:
        """What is left of the seconds, or as long as trials took so far."""
        seconds, most = self.budget.seconds - step.seconds, self.budget.trials
        if math.isfinite(most):
            done = sum(most if name in self._told else trials for name, trials in self._trials.items())
            seconds = min(seconds, step.seconds * (most * step.kernels / done - 1)) if done else math.inf
        return max(0.0, seconds) if math.isfinite(seconds) else None


def rows(record: Record) -> Rows:
    """A record's schedules and their gains."""
    return served(record.schedules, gains(record.schedules, record.ratios))
