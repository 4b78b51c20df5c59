"""Which schedule a kernel is built with, and that the answer is the same every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moec.targets.base import Kernel, Space
from moec.tuning.fingerprint import Fingerprint
from moec.tuning.log import Log
from moec.tuning.plan import Plan, make_plan
from moec.tuning.record import Record

NORM = Kernel("rms_norm", (("n", 64),), (("eps", 1e-6),))
LINEAR = Kernel("linear", (("k", 8), ("n", 8)))
HERE = Fingerprint("x86-64-v3", "some cpu", 2, "00ff")
SPACE = Space({"tile": (1, 2, 4)}, {"tile": 1})
SPACES = {NORM: SPACE, LINEAR: SPACE}


def won(tile: int, ratio: float, kernel: Kernel = LINEAR) -> Record:
    return Record(kernel, HERE, {"tile": tile}, "ok", "", {}, ratio, True)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log.jsonl")


def plan(log: Log, **options: object) -> Plan:
    return make_plan(SPACES, SPACES, log, HERE, **options)  # type: ignore[arg-type]


def test_an_empty_log_gives_defaults(log: Log) -> None:
    assert {(choice.why, choice.gain, choice.tried) for choice in plan(log).values()} == {("default", 1.0, 0)}


def test_the_log_gives_its_best_and_says_so(log: Log) -> None:
    for record in (won(1, 1.0), won(2, 0.8)):
        log.append(record)
    choice = plan(log)[LINEAR]
    assert (choice.schedule, choice.why, choice.gain, choice.tried) == ({"tile": 2}, "log", 1.25, 2)
    assert plan(log, tuned=[LINEAR])[LINEAR].why == "tuned"
    assert plan(log)[NORM].why == "default"


def test_kernels_that_differ_in_reals_share_a_schedule(log: Log) -> None:
    log.append(won(4, 0.5, NORM))
    other = replace(NORM, reals=(("eps", 1e-5),))
    assert make_plan([NORM, other], {NORM: SPACE, other: SPACE}, log, HERE)[other].schedule == {"tile": 4}


def test_the_space_has_the_last_word(log: Log) -> None:
    for record in (won(3, 0.1), won(2, 0.8), Record(LINEAR, HERE, {"evil": "x"}, "ok", "", {}, 0.01, True)):
        log.append(record)
    assert plan(log)[LINEAR].schedule == {"tile": 2}


def test_equal_plans_are_equal_bytes(log: Log) -> None:
    log.append(won(2, 0.8))
    backwards = make_plan(reversed(list(SPACES)), SPACES, Log(log.path), HERE)
    assert backwards.json() == plan(log).json()
    assert list(backwards) == [LINEAR, NORM]
