"""A storage that shows the log: what is in it, that it stays a view, and that its failures cost nothing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from moec.targets.base import Kernel, Schedules, Space
from moec.tuning.log import Log
from moec.tuning.measure import Measurement
from moec.tuning.mirror import METRIC, Mirror, study_name
from moec.tuning.search import Budget, tune

from .log_records import HERE, KERNEL, OTHER, ok

SPACE = Space({"tile": (1, 2, 4, 8)}, {"tile": 1}, rules=(lambda s: "too large" if s["tile"] == 8 else None,))


class Counting:
    """A judge to whom larger tiles are faster, but 4 is wrong."""

    def trial(
        self,
        kernel: Kernel,
        schedules: Schedules,
        incumbent: Schedules | None,
        points: Collection[str] | None = None,
    ) -> Measurement:
        if schedules[1]["tile"] == 4:
            return Measurement("wrong", "row 3 differs")
        seconds = [{"m=1": [1e-3 / int(each[1]["tile"])] * 9} for each in (schedules, incumbent) if each]
        return Measurement("ok", "", seconds[0], seconds[1] if incumbent else None)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log.jsonl")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'studies.db'}"


def searched(log: Log, mirror: Mirror, trials: int, retune: bool = False) -> None:
    budget = Budget(trials=trials)
    tune(dict.fromkeys((KERNEL, OTHER), SPACE), Counting(), budget, log, HERE, mirror=mirror, retune=retune)


def test_a_study_for_each_kernel_shows_its_records(log: Log, url: str) -> None:
    mirror = Mirror(url)
    searched(log, mirror, 100)
    assert mirror.warning == ""
    records = [each for each in log.of(KERNEL, HERE) if each.status != "done" and not each.settled]
    names = optuna.get_all_study_names(url)
    assert sorted(names) == sorted(study_name(next(log.of(kernel, HERE))) for kernel in (KERNEL, OTHER))
    study = optuna.load_study(study_name=study_name(records[0]), storage=url)
    assert study.metric_names == [METRIC]
    assert [trial.params["tile"] for trial in study.trials] == [each.schedule["tile"] for each in records]
    assert study.best_trial.params == {"tile": 2}
    assert study.best_value == pytest.approx(0.5)
    by_tile = {trial.params["tile"]: trial for trial in study.trials}
    assert (by_tile[4].state, by_tile[4].user_attrs["reason"]) == (TrialState.FAIL, "row 3 differs")


def test_what_a_rule_refused_is_pruned(url: str) -> None:
    record = replace(ok(8, 1.0), status="refused", reason="too large", ratio=None)
    Mirror(url)(SPACE, [record])
    (trial,) = optuna.load_study(study_name=study_name(record), storage=url).trials
    assert (trial.state, trial.params) == (TrialState.PRUNED, {"tile": 8})
    assert trial.user_attrs["reason"] == "too large"
    assert trial.datetime_complete is not None


def test_a_later_search_extends_the_study_without_repeating_it(log: Log, url: str) -> None:
    searched(log, Mirror(url), 2)
    searched(log, Mirror(url), 2, retune=True)
    records = [each for each in log.of(KERNEL, HERE) if each.status != "done" and not each.settled]
    study = optuna.load_study(study_name=study_name(records[0]), storage=url)
    assert len(study.trials) == len(records) == 3


def test_a_search_is_the_same_whatever_the_storage_says(log: Log, url: str, tmp_path: Path) -> None:
    study = optuna.create_study(storage=url, study_name=study_name(ok(1, 1.0)))
    study.tell(study.ask({"tile": optuna.distributions.CategoricalDistribution((1, 2, 4, 8))}), 1e-9)
    shown, alone = log, Log(tmp_path / "alone.jsonl")
    searched(shown, Mirror(url), 3)
    tune(dict.fromkeys((KERNEL, OTHER), SPACE), Counting(), Budget(trials=3), alone, HERE)
    assert [(each.schedule, each.ratio) for each in shown] == [(each.schedule, each.ratio) for each in alone]


def test_schedules_for_calls_of_several_sizes_have_no_parameters(url: str) -> None:
    mirror, record = Mirror(url), ok(2, 0.5)
    mirror(SPACE, [record, replace(record, larger={17: {"tile": 4}}), ok(3, 0.9)])  # no tile of 3 here
    study = optuna.load_study(study_name=study_name(record), storage=url)
    assert [trial.params for trial in study.trials] == [{"tile": 2}, {}, {}]
    assert mirror.warning == ""


@pytest.mark.parametrize("broken", ["sqlite:////no/such/folder/studies.db", "nonsense", "grpc://localhost"])
def test_a_broken_storage_is_a_warning(log: Log, broken: str) -> None:
    mirror = Mirror(broken)
    searched(log, mirror, 2)
    assert mirror.warning.startswith("--storage failed and is left alone (")
    assert len([each for each in log if each.status != "done"]) == 4


def test_a_journal_file_is_a_storage_too(log: Log, tmp_path: Path) -> None:
    file = tmp_path / "studies.journal"
    searched(log, Mirror(f"journal:{file}"), 2)
    assert len(optuna.get_all_study_names(JournalStorage(JournalFileBackend(str(file))))) == 2
