"""SIGKILL at random moments, and candidates that do their worst: the log reads, and the search goes on."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pytest

from moec.targets.base import Kernel, Schedule, Schedules, Space
from moec.tuning.fingerprint import Fingerprint
from moec.tuning.judge import Worker
from moec.tuning.log import Log
from moec.tuning.measure import Measurement
from moec.tuning.plan import make_plan
from moec.tuning.record import spelled
from moec.tuning.search import Budget, tune
from moec.tuning.strategy import Shuffled

KERNELS = [Kernel("linear", (("k", size), ("n", 64))) for size in (64, 128)]
HERE = Fingerprint("x86-64-v3", "some cpu", 2, "00ff")
KILLS, SEED = 50, 5
TRIAL_S = 0.003
LONGEST_S = 0.06
SPACE = Space(
    {"rows": tuple(range(1, 7)), "lanes": (8, 16, 32), "unroll": (1, 2, 4, 8), "fault": ("", "wrong")},
    default={"rows": 1, "lanes": 8, "unroll": 1, "fault": ""},
    rules=(lambda s: "too many registers" if int(s["rows"]) * int(s["lanes"]) > 128 else None,),
)


def seconds(schedule: Schedule) -> float:
    """All differ by more than the least gain; some are wrong."""
    place = [SPACE.choices[knob].index(schedule[knob]) for knob in ("rows", "lanes", "unroll")]
    return 1.02 ** ((37 * (place[0] * 12 + place[1] * 4 + place[2])) % 73)


@dataclass
class Diary:
    """A judge that writes down each candidate before it tries it."""

    path: Path

    def trial(
        self,
        kernel: Kernel,
        schedules: Schedules,
        incumbent: Schedules | None,
        points: Collection[str] | None = None,
    ) -> Measurement:
        with self.path.open("a") as diary:
            diary.write(f"{kernel} {spelled(schedules)}\n")
        time.sleep(TRIAL_S)
        if schedules[1]["fault"]:
            return Measurement("wrong", "row 3 differs")
        its = None if incumbent is None else {"m=1": [seconds(incumbent[1])] * 9}
        return Measurement("ok", "", {"m=1": [seconds(schedules[1])] * 9}, its)


def search(log: Path, diary: Path) -> None:
    """What the child does: a search of both kernels, to its end."""
    tune(dict.fromkeys(KERNELS, SPACE), Diary(diary), Budget.parse("1h"), Log(log), HERE)


def killed(moment: float, log: Path, diary: Path) -> bool:
    """Whether a search was still at it when SIGKILL came, so many seconds after its first trial began."""
    child = multiprocessing.get_context("fork").Process(target=search, args=(log, diary))
    child.start()
    while child.is_alive() and not diary.exists():
        time.sleep(TRIAL_S / 10)
    child.join(moment)
    child.kill()
    child.join()
    return child.exitcode != 0


def tried(log: Log) -> list[str]:
    """What the log has, in its order, but for times of day."""
    return [
        f"{record.kernel} {record.status} {spelled(record.schedules)} {record.ratio}"
        for record in log.records
    ]


def begun(diary: Path) -> set[str]:
    return set(diary.read_text().splitlines()) if diary.exists() else set()


def test_fifty_kills_lose_at_most_the_trial_in_flight_each(tmp_path: Path) -> None:
    dice, log, diary = random.Random(SEED), tmp_path / "log.jsonl", tmp_path / "diary"
    kills = lost = known = 0
    for _ in range(KILLS):
        diary.unlink(missing_ok=True)
        kills += killed(dice.uniform(0.0, LONGEST_S), log, diary)
        read = Log(log)
        assert read.problems == []
        written = {f"{record.kernel} {spelled(record.schedules)}" for record in read.records}
        missing = begun(diary) - written
        assert len(missing) <= 1
        assert len(read.records) >= known
        lost, known = lost + len(missing), len(read.records)
    assert kills == KILLS, "it ended before the last kill: the moments are too late"
    assert lost >= 3, "hardly a kill came while a trial was in flight: they show little"
    search(log, diary)
    search(tmp_path / "whole.jsonl", tmp_path / "other")
    whole, pieces = Log(tmp_path / "whole.jsonl"), Log(log)
    assert tried(pieces) == tried(whole)
    plans = [make_plan(KERNELS, dict.fromkeys(KERNELS, SPACE), each, HERE).json() for each in (pieces, whole)]
    assert plans[0] == plans[1]


FAULTS = {
    "segfault": ("crashed", "killed by SIGSEGV"),
    "broken build": ("crashed", "killed by SIGSEGV while it was built"),
    "hang": ("timeout", "no result within 2 s"),
    "slow build": ("timeout", "did not build within 2 s"),
    "memory": ("crashed", "out of memory"),
    "grow": ("crashed", "out of memory"),
    "wrong": ("wrong", "row 3 differs by 0.5 of 1e-4 allowed"),
    "raise": ("crashed", "ValueError: tile 3 does not divide 8"),
    "exit": ("crashed", "exit status 0"),
    "flood": ("crashed", "File too large"),
}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    return "fake_device:FakeDevice"


def test_what_fails_has_its_reason_and_neither_stops_the_search_nor_wins(device: str, tmp_path: Path) -> None:
    """What fails would be the fastest."""
    space = Space(
        {"tile": (1, 2), "fault": ("", *FAULTS)},
        default={"tile": 2, "fault": ""},
        rules=(lambda s: "a slow one has no faults" if s["tile"] == 2 and s["fault"] else None,),
    )
    log, options = Log(tmp_path / "log.jsonl"), {"seconds": {"1": 0.0001, "2": 0.0002}}
    with Worker(device, options, limit_s=2, build_s=2, memory_bytes=1 << 29) as worker:
        tune({KERNELS[0]: space}, worker, Budget.parse("1h"), log, HERE, strategy=Shuffled)
    records = [record for record in log.records if record.status != "done" and not record.settled]
    assert len(records) == 2 + len(FAULTS)
    for record in records:
        status, reason = FAULTS.get(str(record.schedule["fault"]), ("ok", ""))
        assert (record.status, reason in record.reason) == (status, True), record
        assert record.status == "ok" or not (record.beats or record.leads or record.ratio)
    best = log.best(KERNELS[0], HERE)
    assert best is not None
    assert best.schedule == {"tile": 1, "fault": ""}
