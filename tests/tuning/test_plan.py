"""Which schedule a kernel is built with, and that the answer is the same every time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moec.targets.base import Kernel, Schedules, Space, spans
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


@pytest.mark.parametrize(
    "larger",
    [{17: {"tile": 4, "nr": 8}}, {17: {"tile": 3, "nr": 16}}],
    ids=["another layout", "outside the space"],
)
def test_schedules_that_cannot_serve_side_by_side_are_passed_over(log: Log, larger: Schedules) -> None:
    space = Space({"tile": (1, 2, 4), "nr": (8, 16)}, {"tile": 1, "nr": 16}, layout=("nr",))
    base = Record(LINEAR, HERE, {"tile": 2, "nr": 16}, "ok", "", {}, 0.8, True)
    good = replace(base, ratio=0.7, larger={257: {"tile": 4, "nr": 16}}, ratios={1: 1.0, 257: 0.5})
    for record in (base, good, replace(base, ratio=0.1, larger=larger)):
        log.append(record)
    choice = make_plan([LINEAR], {LINEAR: space}, Log(log.path), HERE)[LINEAR]
    assert choice.schedules == good.schedules
    assert (choice.gains, choice.tried) == ({1: 1.0, 257: 2.0}, 1)
    rows = json.loads(make_plan([LINEAR], {LINEAR: space}, log, HERE).json())[0]["schedules"]
    assert [(row["tokens"], row["schedule"]["tile"], row["gain"]) for row in rows] == [
        ("1-256", 2, 1.0),
        ("257+", 4, 2.0),
    ]


@pytest.mark.parametrize(
    ("firsts", "words"),
    [([1], ["1+"]), ([1, 2], ["1", "2+"]), ([1, 5, 257], ["1-4", "5-256", "257+"])],
)
def test_spans(firsts: list[int], words: list[str]) -> None:
    assert spans(firsts) == words


def test_equal_plans_are_equal_bytes(log: Log) -> None:
    log.append(won(2, 0.8))
    backwards = make_plan(reversed(list(SPACES)), SPACES, Log(log.path), HERE)
    assert backwards.json() == plan(log).json()
    assert list(backwards) == [LINEAR, NORM]
