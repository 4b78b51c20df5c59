"""Ask for a schedule, measure it, tell.

A search goes over the kernels one by one, those that matter most first. Of each kernel it tries the default,
then schedules that were good elsewhere, then what a strategy asks for. The log is the truth and what the
strategy knows a view of it: it is told of the records, so a search that was interrupted goes on where it was,
and a kernel whose search has ended once on such a machine is not searched again, whatever the budget
(retune=True searches on).
"""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from ..targets.base import BUCKETS, Kernel, Schedules, Space
from .contest import Contest
from .fingerprint import Fingerprint, Here
from .log import Log
from .measure import Judge, Prepares
from .record import Record, bare, spelled
from .strategy import IDLE, Strategy, chosen
from .winners import NO_TRIALS

LEAST_SECONDS = 2.0  # some trials of one kernel
LEAST_WORK = 0.01  # of the work of all: a kernel with less is worth no more than its share of the seconds


@dataclass(frozen=True, slots=True)
class Budget:
    """How much to search: seconds for all kernels together, or trials for each."""

    seconds: float = math.inf
    trials: float = math.inf

    @classmethod
    def parse(cls, text: str) -> Self:
        """ "90s", "2m", "1h": seconds in all; "40t": trials a kernel; "0": none. Raises ValueError."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smht]?)", text.strip())
        number, unit = (float(match[1]), match[2]) if match else (0.0, "")
        if match is None or (number > 0 and not unit) or (unit == "t" and number % 1):
            raise ValueError(
                f"budget {text!r} is not understood; give seconds in all (90s, 2m, 1h), trials for each "
                "kernel (40t), or 0 for the defaults and what the log knows"
            )
        if unit == "t":
            return cls(trials=number)
        return cls(seconds=number * {"m": 60, "h": 3600}.get(unit, 1))

    @property
    def empty(self) -> bool:
        return not (self.seconds and self.trials)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a search stands after a trial, or, where the record is "done", at the end of that of a kernel."""

    kernel: Kernel
    number: int  # of this kernel, from 1
    kernels: int
    trials: int  # of this kernel
    record: Record
    best: Record | None  # so far
    seconds: float  # since the search began

    @property
    def gain(self) -> float:
        """The default's time over the best schedules' so far."""
        return 1 / self.best.ratio if self.best and self.best.ratio else 1.0


@dataclass(slots=True)
class Summary:
    """What a search did: which kernels it searched, trials measured, seconds, and whether Ctrl-C ended it."""

    kernels: list[Kernel] = field(default_factory=list)
    trials: int = 0
    seconds: float = 0.0
    interrupted: bool = False


def tune(
    spaces: Mapping[Kernel, Space],
    judge: Judge,
    budget: Budget,
    log: Log,
    place: Fingerprint | Here,
    *,
    weights: Mapping[Kernel, float] | None = None,
    retune: bool = False,
    versions: Mapping[str, str] | None = None,
    starts: Callable[[Kernel], Iterable[Schedules]] = lambda kernel: (),
    strategy: Callable[[Space], Strategy] = chosen,
    progress: Callable[[Progress], None] = lambda event: None,
    mirror: Callable[[Space, Iterable[Record]], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Summary:
    """Searches the spaces of kernels and appends what it learns to the log; make_plan then reads the log.

    weights say how much of a model's time each kernel takes (its calls times its cost, in any unit). Each
    kernel gets seconds enough for some trials, and what is left is shared by weight; where they do not last
    for all, the lightest are passed over. What a search leaves over goes to those after it. starts are asked
    for when a kernel's turn comes, and tried right after its default. Ctrl-C ends the search early and loses
    nothing but the trial in flight. mirror is shown a kernel's records after each trial. clock tells seconds.
    Raises CannotBuild if this machine cannot build or run kernels.
    """
    summary, started = Summary(), clock()
    if budget.empty:
        return summary
    shares = _shares(spaces, weights or {})
    untuned = [kernel for kernel in shares if retune or not log.tuned(kernel, place.of(kernel))]
    searched = _affordable(untuned, shares, budget.seconds)
    try:
        for number, kernel in enumerate(searched, 1):
            left = budget.seconds - (clock() - started)
            share = _share(searched[number - 1 :], shares, left)
            contest = Contest(kernel, spaces[kernel], judge, log, place.of(kernel), versions or {})
            search = Search(contest, strategy(spaces[kernel]), starts(kernel), clock)
            summary.kernels.append(bare(kernel))
            for record in search.run(Budget(share, budget.trials)):
                summary.trials += record.status not in NO_TRIALS
                summary.seconds = clock() - started
                if mirror is not None:
                    mirror(spaces[kernel], log.of(kernel, place.of(kernel)))
                progress(_progress(search, number, len(searched), record, summary.seconds))
        for kernel in untuned[len(searched) :]:
            why = "passed over: its share of the seconds was too small to search with"
            kept = dict(spaces[kernel].default)
            log.append(Record(kernel, place.of(kernel), kept, "done", why, profile=log.profile_of(kernel)))
    except KeyboardInterrupt:
        summary.interrupted = True
    summary.seconds = clock() - started
    return summary


def _shares(spaces: Mapping[Kernel, Space], weights: Mapping[Kernel, float]) -> dict[Kernel, float]:
    """The kernels that have a choice with their weights, largest first; one of those that differ in reals."""
    first: dict[Kernel, Kernel] = {}
    shares: dict[Kernel, float] = {}
    for kernel, space in spaces.items():
        if any(len(values) > 1 for values in space.choices.values()):
            chosen = first.setdefault(bare(kernel), kernel)
            shares[chosen] = shares.get(chosen, 0.0) + max(weights.get(kernel, 1.0), 1e-9)
    return dict(sorted(shares.items(), key=lambda item: (-item[1], str(item[0]))))


def _affordable(kernels: Sequence[Kernel], shares: Mapping[Kernel, float], seconds: float) -> list[Kernel]:
    """The heaviest kernels, as many as get LEAST_SECONDS each: one trial for everyone would find nothing."""
    total = sum(shares[kernel] for kernel in kernels)
    worth = [
        kernel for kernel in kernels if shares[kernel] >= total * min(LEAST_WORK, LEAST_SECONDS / seconds)
    ]
    return (worth or list(kernels))[: max(1, int(min(seconds / LEAST_SECONDS, len(kernels))))]


def _share(kernels: Sequence[Kernel], shares: Mapping[Kernel, float], seconds: float) -> float:
    """The first one's part of the seconds that are left for these kernels."""
    least = min(LEAST_SECONDS, max(0.0, seconds) / len(kernels))
    weight = shares[kernels[0]] / sum(shares[kernel] for kernel in kernels)
    return least + (seconds - least * len(kernels)) * weight


def _progress(search: Search, number: int, kernels: int, record: Record, seconds: float) -> Progress:
    contest = search.contest
    return Progress(contest.kernel, number, kernels, search.measured, record, contest.best, seconds)


class Search:
    """The search of one kernel's space."""

    def __init__(
        self,
        contest: Contest,
        strategy: Strategy,
        starts: Iterable[Schedules] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.contest, self.space, self.strategy, self.clock = contest, contest.space, strategy, clock
        self.measured = 0
        self.seen: set[str] = set()
        for record in contest.log.of(contest.kernel, contest.fingerprint):
            if record.status != "done":
                self._know(record)
        singly = ({BUCKETS[0]: schedule} for schedule in (*self.space.defaults.values(), *self.space.known))
        self.first = iter([self.space.defaults, *starts, *singly])
        self.ready: list[Schedules] = []  # asked for and built, but not tried

    def run(self, budget: Budget) -> Iterable[Record]:
        """Tries schedules until the budget is used up or nothing new comes; yields each record it wrote, at
        last the one that says so.
        """
        started, idle = self.clock(), 0
        while idle < IDLE and self.measured < budget.trials:
            seconds = self.clock() - started
            if seconds + self._settling(seconds) >= budget.seconds:
                break
            if not (self.ready or self._prepare()):
                break
            record = self.contest.enter(self.ready.pop(0))
            self.measured += record.status != "refused"
            idle = idle + 1 if record.status == "refused" else 0
            self._know(record)
            yield record
        yield self.contest.end()

    def _settling(self, seconds: float) -> float:
        """Seconds that the end takes if it comes now: a race is about as long as a trial was so far."""
        return self.contest.unsettled * seconds / max(1, self.measured)

    def _prepare(self) -> bool:
        """Has as many schedules ready as the judge builds side by side; whether there are any."""
        judge = self.contest.judge
        count = judge.builders if isinstance(judge, Prepares) else 1
        self.ready = list(itertools.islice(self._next(), count))
        sound = [schedules for schedules in self.ready if self.space.objection_to(schedules) is None]
        if isinstance(judge, Prepares) and len(sound) > 1:
            judge.prepare(self.contest.kernel, sound)
        return bool(self.ready)

    def _next(self) -> Iterator[Schedules]:
        """What was good elsewhere first, then what the strategy asks for."""
        for schedules in self.first:
            if spelled(schedules) not in self.seen:
                self.seen.add(spelled(schedules))
                yield schedules
        while (asked := self.strategy.ask()) is not None:
            yield {BUCKETS[0]: asked}

    def _know(self, record: Record) -> None:
        """Tells the strategy of a record, if it is one schedule whose values the space still has."""
        self.seen.add(spelled(record.schedules))
        if record.larger or set(record.schedule) != set(self.space.choices):
            return
        if all(value in self.space.choices[knob] for knob, value in record.schedule.items()):
            self.strategy.tell(record.schedule, record.ratio, f"{record.status}: {record.reason}")
