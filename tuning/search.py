"""Ask for a schedule, measure it, tell. The only file that knows Optuna.

A search goes over the kernels one by one, those that matter most first. Of each kernel it tries the default,
then the space's known schedules, then what TPE asks for. The log is the truth and the study a view of it: it
is rebuilt from the records, so a search that was interrupted goes on where it was, and a kernel whose search
has ended once on such a machine is not searched again, whatever the budget (retune=True searches on).
"""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import optuna
from optuna.trial import TrialState

from ..targets.base import BUCKETS, Kernel, Schedules, Space
from .contest import Contest
from .fingerprint import Fingerprint
from .log import Log
from .measure import Judge
from .record import Record, bare, spelled

SEED = 0
IDLE = 200  # asks in a row that brought nothing to measure: the space holds hardly more
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
    """Where a search stands after a trial (status as in a record)."""

    kernel: Kernel
    number: int  # of this kernel, from 1
    kernels: int
    trials: int  # of this kernel
    status: str
    reason: str
    gain: float  # the default's time over the best one's, so far
    seconds: float  # since the search began


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
    fingerprint: Fingerprint,
    *,
    weights: Mapping[Kernel, float] | None = None,
    retune: bool = False,
    versions: Mapping[str, str] | None = None,
    progress: Callable[[Progress], None] = lambda event: None,
) -> Summary:
    """Searches the spaces of kernels and appends what it learns to the log; make_plan then reads the log.

    weights say how much of a model's time each kernel takes (its calls times its cost, in any unit). Each
    kernel gets seconds enough for some trials, and what is left is shared by weight; where they do not last
    for all, the lightest are passed over. What a search leaves over goes to those after it. Ctrl-C ends the
    search early and loses nothing but the trial in flight. Raises CannotBuild if this machine cannot build or
    run kernels.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    summary, started = Summary(), time.monotonic()
    if budget.empty:
        return summary
    shares = _shares(spaces, weights or {})
    untuned = [kernel for kernel in shares if retune or not log.tuned(kernel, fingerprint)]
    searched = _affordable(untuned, shares, budget.seconds)
    try:
        for number, kernel in enumerate(searched, 1):
            left = budget.seconds - (time.monotonic() - started)
            share = _share(searched[number - 1 :], shares, left)
            search = Search(kernel, spaces[kernel], judge, log, fingerprint, versions or {})
            summary.kernels.append(bare(kernel))
            for record in search.run(Budget(share, budget.trials)):
                summary.trials += record.status != "refused"
                summary.seconds = time.monotonic() - started
                progress(_progress(search, number, len(searched), record, summary.seconds))
        for kernel in untuned[len(searched) :]:
            why = "passed over: its share of the seconds was too small to search with"
            log.append(Record(kernel, fingerprint, dict(spaces[kernel].default), "done", why))
    except KeyboardInterrupt:
        summary.interrupted = True
    summary.seconds = time.monotonic() - started
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
    gain, trials = search.gain, search.measured
    return Progress(search.kernel, number, kernels, trials, record.status, record.reason, gain, seconds)


class Search:
    """The search of one kernel's space."""

    def __init__(
        self,
        kernel: Kernel,
        space: Space,
        judge: Judge,
        log: Log,
        fingerprint: Fingerprint,
        versions: Mapping[str, str],
    ) -> None:
        self.kernel, self.space = kernel, space
        self.contest = Contest(kernel, space, judge, log, fingerprint, versions)
        self.measured = 0
        self.dice = random.Random(SEED)
        self.distributions: dict[str, optuna.distributions.BaseDistribution] = {
            knob: optuna.distributions.CategoricalDistribution(tuple(values))
            for knob, values in space.choices.items()
        }
        self.study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=SEED, multivariate=True))
        known = list(log.of(kernel, fingerprint))
        self.seen = {spelled(record.schedules) for record in known}
        for record in known:
            self._recall(record)
        for schedule in (*space.defaults.values(), *space.known):
            if space.objection(schedule) is None:
                self.study.enqueue_trial(dict(schedule), skip_if_exists=True)

    @property
    def gain(self) -> float:
        """The default's time over the best schedules' so far."""
        best = self.contest.best
        return 1 / best.ratio if best and best.ratio else 1.0

    def run(self, budget: Budget) -> Iterable[Record]:
        """Tries schedules until the budget is used up or nothing new comes; yields each record it wrote."""
        deadline, idle = time.monotonic() + budget.seconds, 0
        if len(self.space.defaults) > 1 and spelled(self.space.defaults) not in self.seen:
            yield self._try(self.space.defaults)
        while idle < IDLE and self.measured < budget.trials and time.monotonic() < deadline:
            trial = self.study.ask(self.distributions)
            schedules = {BUCKETS[0]: trial.params}
            if spelled(schedules) in self.seen:
                self.study.tell(trial, state=TrialState.FAIL)  # TPE does not count it twice
                self._wander()
                idle += 1
                continue
            record = self._try(schedules)
            idle = idle + 1 if record.status == "refused" else 0
            self._tell(trial, record)
            yield record
        self.contest.end()

    def _wander(self) -> None:
        """TPE asked for what is known already: try any schedule next, lest it dwell on the best for ever."""
        anywhere = {knob: self.dice.choice(values) for knob, values in self.space.choices.items()}
        self.study.enqueue_trial(anywhere)

    def _try(self, schedules: Schedules) -> Record:
        self.seen.add(spelled(schedules))
        self.measured += self.space.objection_to(schedules) is None
        return self.contest.enter(schedules)

    def _tell(self, trial: optuna.Trial, record: Record) -> None:
        if record.ratio is not None:
            self.study.tell(trial, math.log(record.ratio))
            return
        trial.set_user_attr(record.status, record.reason)
        self.study.tell(trial, state=TrialState.PRUNED)  # TPE ranks what was pruned behind all that ran

    def _recall(self, record: Record) -> None:
        """Puts a record of the log into the study, if the space still has its values."""
        if record.status == "done" or record.larger or set(record.schedule) != set(self.space.choices):
            return
        if any(value not in self.space.choices[knob] for knob, value in record.schedule.items()):
            return
        outcome: dict[str, Any] = {"state": TrialState.PRUNED, "user_attrs": {record.status: record.reason}}
        if record.ratio is not None:
            outcome = {"value": math.log(record.ratio)}
        self.study.add_trial(
            optuna.trial.create_trial(
                params=dict(record.schedule), distributions=self.distributions, **outcome
            )
        )
