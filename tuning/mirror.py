"""A user's Optuna storage shown what is in the log, so that optuna-dashboard can watch a search.

A study there is a view: made from records and extended by them, never read by a search. It is named by the
kernel and all that its times depend on. A storage that fails costs the view, not the search.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Iterable
from datetime import datetime

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from ..targets.base import Space
from .record import Record, spelled

METRIC = "time over the default's"
LONGEST = 512  # characters of a study's name in an RDB storage


class Mirror:
    """The studies of one storage. Several threads may show it records."""

    def __init__(self, url: str) -> None:
        """url: any that SQLAlchemy knows; grpc://HOST:PORT, an Optuna storage proxy; journal:FILE."""
        self.warning = ""  # why nothing is shown any more
        self._url = url
        self._storage: BaseStorage | None = None
        self._shown: dict[str, set[str]] = {}  # study -> the records in it
        self._studies: dict[str, optuna.Study] = {}
        self._turn = threading.Lock()

    def __call__(self, space: Space, records: Iterable[Record]) -> None:
        """Adds those of a kernel's records that its study lacks; never raises, see `warning`."""
        with self._turn:
            if self.warning:
                return
            try:
                for record in records:
                    if record.status != "done" and not record.settled:  # that schedule is there already
                        self._show(space, record)
            except Exception as error:  # of a database, its driver, or the network: anything
                said = (str(error).strip().splitlines() or [""])[0]
                self.warning = f"--storage failed and is left alone ({type(error).__name__}: {said})"

    def _show(self, space: Space, record: Record) -> None:
        name, line = study_name(record), hashlib.sha256(record.line().encode()).hexdigest()[:16]
        if name not in self._studies:
            self._open(name)
        if line not in self._shown[name]:
            self._studies[name].add_trial(trial_of(space, record, line))
            self._shown[name].add(line)

    def _open(self, name: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # that names of metrics and gRPC are new
            self._storage = self._storage or storage_of(self._url)
            study = optuna.create_study(storage=self._storage, study_name=name, load_if_exists=True)
            study.set_metric_names([METRIC])
        self._studies[name] = study
        self._shown[name] = {trial.user_attrs.get("record", "") for trial in study.get_trials(deepcopy=False)}


def storage_of(url: str) -> BaseStorage:
    """The storage that a URL names. Raises what its library raises."""
    scheme, _, rest = url.partition(":")
    if scheme == "journal":
        return JournalStorage(JournalFileBackend(rest.removeprefix("//")))
    if scheme == "grpc":
        host, _, port = rest.removeprefix("//").rpartition(":")
        return GrpcStorageProxy(host=host, port=int(port))
    return RDBStorage(url)


def study_name(record: Record) -> str:
    """The kernel and all that its times depend on, for people."""
    place = record.fingerprint
    where = (place.isa, place.cpu, f"{place.threads} threads", record.profile, place.generator)
    return " | ".join((str(record.kernel), *where))[:LONGEST]


def trial_of(space: Space, record: Record, line: str) -> FrozenTrial:
    """A record as a trial: complete if it was timed, pruned if a rule refused it, else failed.

    Only one schedule for calls of all sizes has parameters, and only those that the space has.
    """
    known = {
        knob: value
        for knob, value in record.schedule.items()
        if not record.larger and value in space.choices.get(knob, ())
    }
    ended = {"ok": TrialState.COMPLETE, "refused": TrialState.PRUNED}
    state = ended.get(record.status, TrialState.FAIL)
    trial = create_trial(
        state=state,
        value=record.ratio if state is TrialState.COMPLETE else None,
        params=known,
        distributions={knob: CategoricalDistribution(tuple(space.choices[knob])) for knob in known},
        user_attrs={
            "record": line,
            "status": record.status,
            "reason": record.reason,
            "schedules": spelled(record.schedules),
            "beats": record.beats,
        },
    )
    trial.datetime_start = trial.datetime_complete = _local(record.time)
    return trial


def _local(time: str) -> datetime:
    """A record's time as Optuna keeps times: local, without a zone."""
    try:
        return datetime.fromisoformat(time).astimezone().replace(tzinfo=None)
    except ValueError:
        return datetime.now()
