"""Strategies of the search on recorded spaces (tuning/sweep): trials to come within 5 % of the best.

    python -m tests.benchmarks.strategies [--seeds 20] [--names tpe,random] [SWEEP...]

A search begins with the default and the known schedules of the space, or, as where those say little, with
nothing but a schedule that nine tenths are faster than ("slow"). It has arrived when what it would keep, a
schedule for each bucket of tokens, has 95 % of the speed of the best single schedule, as recorded. What is
refused is no trial. The table gives medians over seeds and, in brackets, the worst tenth.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import CmaEsSampler, GPSampler
from optuna.trial import Trial

from moec.targets.base import BUCKETS, Schedule, Space
from moec.tuning.contest import Contest
from moec.tuning.log import Log
from moec.tuning.replay import Replay
from moec.tuning.search import Budget, Search
from moec.tuning.strategy import Shuffled, Strategy, Study, Told, Values, chosen, tpe
from moec.tuning.sweep import Sweep, read

SWEEPS = Path(__file__).parent.parent / "tuning" / "sweeps"
SHARE = 0.95
SEEDS, FEW_SEEDS = 20, 5

Make = Callable[[Space, int], Strategy]


class Climb(Told):
    """Neighbours of the fastest."""

    def ask(self) -> Schedule | None:
        """One of them, or the space's default."""
        return self.neighbour() or (None if self.seen else self.space.default)


class Ordered(Study):
    """Knobs whose values are numbers are known to the sampler as places in their order."""

    def distribution(self, knob: str) -> BaseDistribution:
        return IntDistribution(0, len(self.space.choices[knob]) - 1)

    def given(self, knob: str, value: int | str) -> int | str:
        return sorted(self.space.choices[knob]).index(value)

    def value(self, knob: str, given: int | str) -> int | str:
        return sorted(self.space.choices[knob])[int(given)]


class Repeated(Ordered):
    """What is asked for again is told again: CMA-ES steps on by what its generation brought."""

    def dwells(self, trial: Trial, values: Values, anywhere: Values) -> None:
        if values in self.ratios:
            self.study.tell(trial, math.log(self.ratios[values]))
        else:
            super().dwells(trial, values, anywhere)


STRATEGIES: Mapping[str, Make] = {
    "chosen": chosen,
    "random": Shuffled,
    "climb": Climb,
    "tpe": lambda space, seed: Study(space, tpe, seed),
    "tpe, ordered": lambda space, seed: Ordered(space, tpe, seed),
    "cma-es": lambda space, seed: Repeated(space, lambda turn: CmaEsSampler(seed=turn), seed),
    "gp": lambda space, seed: Ordered(space, lambda turn: GPSampler(seed=turn), seed),
}
SLOW = ("gp", "cma-es")


def trials_needed(sweep: Sweep, make: Make, seed: int, slow: bool = False, most: float = math.inf) -> float:
    """How many trials a search takes to arrive; most if it does not within so many."""
    space, wanted = sweep.space, fastest(sweep) / SHARE
    if slow:
        ran = sweep.schedules()
        space = replace(space, default=ran[int(0.9 * len(ran))], larger={}, known=())
    with TemporaryDirectory() as folder:
        log, judge = Log(Path(folder) / "log.jsonl"), Replay(sweep, seed)
        contest = Contest(sweep.kernel, space, judge, log, sweep.fingerprint, {})
        search = Search(contest, make(space, seed))
        for _ in search.run(Budget(trials=most)):
            if contest.best and sweep.seconds(contest.best.schedules) <= wanted:
                return search.measured
    return most


def fastest(sweep: Sweep) -> float:
    """Seconds of the fastest schedule."""
    return sweep.seconds({BUCKETS[0]: sweep.schedules()[0]})


def describe(sweep: Sweep) -> str:
    """What there is to find."""
    best = fastest(sweep)
    speeds = [best / sweep.seconds({BUCKETS[0]: schedule}) for schedule in sweep.schedules()]
    default = best / sweep.seconds({BUCKETS[0]: sweep.default})
    ran = f"{len(speeds)} of {len(sweep.outcomes)} schedules run"
    slow = speeds[int(0.9 * len(speeds))]
    return f"{ran}; of the best speed the default has {default:.0%}, the slow one {slow:.0%}"


def table(sweeps: Mapping[str, Sweep], names: Sequence[str], seeds: int) -> None:
    """Prints it, a line as soon as it is known."""
    for name, sweep in sweeps.items():
        print(f"{name}: {sweep.kernel}: {describe(sweep)}", flush=True)
        for strategy in names:
            count = min(seeds, FEW_SEEDS) if strategy in SLOW else seeds
            cells = []
            for slow in (False, True):
                needed = sorted(
                    trials_needed(sweep, STRATEGIES[strategy], seed, slow, len(sweep.outcomes))
                    for seed in range(count)
                )
                worst = needed[math.ceil(0.9 * count) - 1]
                cells.append(f"{median(needed):6g} ({worst:3})")
            print(f"    {strategy:14}{cells[0]}   slow {cells[1]}   {count} seeds", flush=True)


def main() -> None:
    """Compares those named on the sweeps given, or on all that are recorded here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sweeps", nargs="*", type=Path, default=sorted(SWEEPS.glob("*.json.gz")))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--names", default=";".join(STRATEGIES), help="separated by semicolons")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")  # samplers that are experimental say so on each use
    sweeps = {path.name.split(".")[0]: read(path) for path in given.sweeps}
    table(sweeps, given.names.split(";"), given.seeds)


if __name__ == "__main__":
    main()
