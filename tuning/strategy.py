"""Which schedule to try next: the strategies of a search. The only file that knows Optuna.

A strategy is told of every schedule that was tried, in this search or before, and asked for one that was not.
What it asks for depends on what it was told and nothing else, so a search that was killed and goes on from
the log tries what it would have tried. tests/benchmarks/strategies.py compares them on recorded spaces, and
`chosen` follows its table.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import Trial, TrialState, create_trial

from ..targets.base import Schedule, Space

SEED = 0
IDLE = 200  # draws in a row that brought nothing new: the space holds hardly more
SMALL = 64  # schedules: with so few, what is learned of some hardly finds the best of the others earlier
FEW = 20_000  # schedules that are listed rather than drawn

Values = tuple[int | str, ...]  # of a schedule's knobs, in the order of its space


def tpe(seed: int) -> BaseSampler:
    """Optuna's TPE, over all knobs together."""
    return TPESampler(seed=seed, multivariate=True)


class Strategy(Protocol):
    """Asks for schedules of one space. Several may be asked for before one is told."""

    def ask(self) -> Schedule | None:
        """A schedule it neither asked for nor was told of, refused by the rules perhaps; None: no more."""

    def tell(self, schedule: Schedule, ratio: float | None, why: str = "") -> None:
        """What came of a schedule of this space: its time over the default's, or None and why."""


class Told:
    """What is known of a space: ratios of what ran, and all that was asked for or told."""

    def __init__(self, space: Space, seed: int = SEED) -> None:
        self.space, self.seed = space, seed
        self.ratios: dict[Values, float] = {}
        self.seen: set[Values] = set()

    def tell(self, schedule: Schedule, ratio: float | None, why: str = "") -> None:
        """Notes it."""
        values = self.values(schedule)
        self.seen.add(values)
        if ratio is not None:
            self.ratios[values] = ratio

    @property
    def turn(self) -> int:
        """The seed of what is asked for next."""
        return (self.seed + 1_000_003 * len(self.seen)) % (1 << 31)

    def values(self, schedule: Schedule) -> Values:
        """The values of a schedule."""
        return tuple(schedule[knob] for knob in self.space.choices)

    def fresh(self, values: Values) -> bool:
        """Whether a schedule is neither seen nor refused."""
        return values not in self.seen and self.space.objection(self._schedule(values)) is None

    def asked(self, values: Values) -> Schedule:
        """The schedule, which from now on is seen."""
        self.seen.add(values)
        return self._schedule(values)

    def neighbour(self) -> Schedule | None:
        """A random one of those that differ from the fastest in one knob; when all of them are seen, from the
        second fastest, and so on.
        """
        for values in sorted(self.ratios, key=self.ratios.__getitem__):
            if fresh := [each for each in self._around(values) if self.fresh(each)]:
                return self.asked(random.Random(self.turn).choice(fresh))
        return None

    def _around(self, values: Values) -> Iterator[Values]:
        for place, choices in enumerate(self.space.choices.values()):
            for value in choices:
                yield (*values[:place], value, *values[place + 1 :])

    def _schedule(self, values: Values) -> Schedule:
        return dict(zip(self.space.choices, values))


class Shuffled(Told):
    """Every schedule that the rules admit, in random order; of a large space, while draws bring new ones."""

    def __init__(self, space: Space, seed: int = SEED) -> None:
        super().__init__(space, seed)
        self.listed = list(itertools.product(*space.choices.values())) if size(space) <= FEW else None
        if self.listed is not None:
            random.Random(seed).shuffle(self.listed)

    def ask(self) -> Schedule | None:
        """The next one."""
        drawn = self._draws() if self.listed is None else self.listed
        return next((self.asked(values) for values in drawn if self.fresh(values)), None)

    def _draws(self) -> Iterator[Values]:
        dice = random.Random(self.turn)
        for _ in range(IDLE):
            yield tuple(map(dice.choice, self.space.choices.values()))


class Study(Told):
    """An Optuna study of a space; its trials are a view of what was told."""

    def __init__(self, space: Space, sampler: Callable[[int], BaseSampler] = tpe, seed: int = SEED) -> None:
        """sampler makes one from a seed."""
        super().__init__(space, seed)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sampler = sampler
        self.study = optuna.create_study(sampler=sampler(seed))
        self.distributions: dict[str, BaseDistribution] = {
            knob: self.distribution(knob) for knob in space.choices
        }
        self.running: dict[Values, Trial] = {}

    def ask(self) -> Schedule | None:
        """What the sampler wants, or any schedule where it dwells on those that are seen."""
        self.study.sampler = self.sampler(self.turn)
        dice = random.Random(self.turn)
        for _ in range(IDLE):
            trial = self.study.ask(self.distributions)
            values = tuple(self.value(knob, given) for knob, given in trial.params.items())
            if values not in self.seen:
                self.running[values] = trial
                return self.asked(values)
            self.dwells(trial, values, tuple(map(dice.choice, self.space.choices.values())))
        return None

    def tell(self, schedule: Schedule, ratio: float | None, why: str = "") -> None:
        """Puts it into the study: what failed is pruned, and what rules refuse breaks a constraint too."""
        super().tell(schedule, ratio, why)
        values = self.values(schedule)
        refused = {"refused": float(self.space.objection(schedule) is not None)}
        outcome = {"state": TrialState.PRUNED} if ratio is None else {"value": math.log(ratio)}
        if (trial := self.running.pop(values, None)) is None:
            params, notes = self._params(values), {"why": why}
            made = create_trial(
                params=params,
                distributions=self.distributions,
                user_attrs=notes,
                constraints=refused,
                **outcome,
            )
            self.study.add_trial(made)
            return
        trial.set_user_attr("why", why)
        trial.set_constraint("refused", refused["refused"])
        self.study.tell(trial, outcome.get("value"), state=outcome.get("state"))

    def distribution(self, knob: str) -> BaseDistribution:
        """What the sampler knows of a knob."""
        return CategoricalDistribution(tuple(self.space.choices[knob]))

    def given(self, knob: str, value: int | str) -> int | str:
        """A knob's value as the sampler knows it."""
        return value

    def value(self, knob: str, given: int | str) -> int | str:
        """The value that the sampler knows so."""
        return given

    def dwells(self, trial: Trial, values: Values, anywhere: Values) -> None:
        """It asked for what is seen: not told twice, or it would seem twice as good. Anywhere comes next."""
        self.study.tell(trial, state=TrialState.FAIL)
        self.study.enqueue_trial(self._params(anywhere))

    def _params(self, values: Values) -> dict[str, int | str]:
        return {knob: self.given(knob, value) for knob, value in zip(self.space.choices, values)}


class Mixed(Study):
    """TPE, but every third schedule is a neighbour of the fastest: TPE alone leaves some of them out."""

    def ask(self) -> Schedule | None:
        """The one or the other, by how much is seen."""
        near = self.neighbour() if len(self.seen) % 3 == 0 else None
        return near or super().ask()


def size(space: Space) -> int:
    """How many schedules there are, refused ones too."""
    return math.prod(map(len, space.choices.values()))


def chosen(space: Space, seed: int = SEED) -> Strategy:
    """The strategy for a space: all of a small one, else Mixed."""
    return Shuffled(space, seed) if size(space) <= SMALL else Mixed(space, tpe, seed)
