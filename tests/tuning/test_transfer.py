"""Kernels that the log has no answer for: whose schedules they get, which they do not, and what it says."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest

from moec.targets.base import Kernel, Schedules, Space
from moec.tuning.fingerprint import Fingerprint
from moec.tuning.heuristic import Heuristic, Tree
from moec.tuning.log import Log
from moec.tuning.measure import Measurement
from moec.tuning.plan import Choice, make_plan
from moec.tuning.record import Record
from moec.tuning.transfer import FAR, distance, hints, ratio_of, starts
from moec.tuning.verification import verify

HERE = Fingerprint("x86-64-v3", "some cpu", 2, "00ff")
ELSEWHERE = replace(HERE, cpu="another cpu", threads=8)
THIRD = replace(HERE, cpu="a third cpu")
SPACE = Space({"tile": (1, 2, 4), "nr": (8, 16)}, {"tile": 1, "nr": 16}, layout=("nr",))


def linear(k: int, n: int, dtype: str = "f32") -> Kernel:
    return Kernel("linear", (("k", k), ("n", n)), dtype=dtype)


KERNEL, NEAR, NEXT = linear(1024, 1024), linear(1024, 1448), linear(2048, 1024)


def tried(
    tile: int, ratio: float, kernel: Kernel = NEAR, place: Fingerprint = HERE, beats: bool = True
) -> Record:
    return Record(
        kernel, place, {"tile": tile, "nr": 16}, "ok", "", {}, ratio, beats, ratios={1: ratio, 17: ratio}
    )


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log.jsonl")


def filled(log: Log, *records: Record) -> Log:
    for record in records:
        log.append(record)
    return log


def chosen(log: Log, space: Space = SPACE, kernel: Kernel = KERNEL, *learned: Heuristic) -> Choice:
    return make_plan([kernel], {kernel: space}, log, HERE, learned=learned)[kernel]


def test_distances() -> None:
    assert distance(KERNEL, KERNEL) == 0
    assert distance(KERNEL, NEXT) == distance(NEXT, KERNEL) == 1
    assert distance(KERNEL, linear(2048, 2048)) == pytest.approx(math.sqrt(2))
    assert distance(KERNEL, linear(1024, 1024, "int4")) == math.inf
    assert distance(KERNEL, Kernel("linear", (("k", 1024),))) == math.inf
    flags = [Kernel("grouped_combine", (("k", 64), ("base", base))) for base in (0, 1)]
    assert (distance(*flags), distance(flags[0], flags[0])) == (math.inf, 0)


def test_the_nearest_shape_that_won_is_taken_and_told(log: Log) -> None:
    choice = chosen(filled(log, tried(2, 0.8, NEXT), tried(4, 0.5), tried(2, 0.9)))
    assert (choice.schedule, choice.why, choice.gain) == ({"tile": 4, "nr": 16}, "neighbour", 1.0)
    assert choice.reason == (
        "from k=1024 n=1448, the nearest of 2 shapes (distance 0.5), where it is 2.00x the default's speed"
    )


def test_schedules_of_all_buckets_come_along(log: Log) -> None:
    larger = {17: {"tile": 4, "nr": 8}}
    record = replace(tried(2, 0.5), schedule={"tile": 2, "nr": 8}, larger=larger)
    assert chosen(filled(log, record)).schedules == {1: {"tile": 2, "nr": 8}, **larger}


@pytest.mark.parametrize(
    "record",
    [
        tried(2, 0.5, linear(8192, 1024)),
        tried(2, 0.5, linear(1024, 1448, "int8")),
        tried(2, 0.5, place=replace(HERE, isa="x86-64-v4")),
        tried(2, 0.5, place=replace(HERE, generator="11ee")),
        tried(2, 0.5, place=ELSEWHERE),
        tried(2, 0.995),
        tried(3, 0.5),
        tried(2, 0.5, beats=False),
        replace(tried(2, 0.5), status="wrong"),
        replace(tried(2, 0.5), larger={17: {"tile": 4, "nr": 8}}),
        replace(tried(2, 0.5), profile="trace:00ff"),
    ],
    ids=[
        *(
            "far",
            "another dtype",
            "another isa",
            "another generator",
            "one other machine",
            "within the noise",
        ),
        *("not admitted", "never won", "wrong numbers", "two layouts", "another routing"),
    ],
)
def test_the_default_stays_where_the_evidence_is_weak(log: Log, record: Record) -> None:
    choice = chosen(filled(log, record))
    assert (choice.schedules, choice.why) == (SPACE.defaults, "default")


def test_a_nearest_shape_that_all_others_contradict_is_not_trusted(log: Log) -> None:
    filled(log, tried(2, 0.8), tried(2, 1.5, NEXT, beats=False), tried(1, 1.0, NEXT))
    choice = chosen(log)
    assert (choice.schedules, choice.why) == (SPACE.defaults, "default")
    assert "but on the mean of all near 0.91x the default's speed" in choice.reason
    assert starts(KERNEL, SPACE, log, HERE) == [{1: {"tile": 2, "nr": 16}}]
    filled(log, tried(4, 0.5, linear(1024, 2048)))
    assert chosen(log).why == "default", "a farther shape is not asked where the nearest is in doubt"


def test_what_the_space_refuses_is_passed_over_for_the_next(log: Log) -> None:
    choice = chosen(filled(log, tried(3, 0.4), tried(4, 0.5, NEXT)))
    assert (choice.schedule["tile"], choice.why) == (4, "neighbour")


def test_a_nearest_shape_that_kept_its_default_has_the_last_word(log: Log) -> None:
    choice = chosen(filled(log, tried(1, 1.0), tried(4, 0.5, NEXT)))
    assert (choice.schedules, choice.why) == (SPACE.defaults, "default")
    assert choice.reason.startswith("the best elsewhere too: from k=1024 n=1448")


def test_an_answer_of_its_own_comes_before_all_others(log: Log) -> None:
    assert chosen(filled(log, tried(4, 0.5), tried(2, 0.9, KERNEL))).schedule["tile"] == 2
    assert (
        chosen(filled(log, tried(4, 0.5), tried(1, 1.0, linear(512, 512))), kernel=linear(512, 512)).why
        == "default"
    )


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ([tried(2, 0.5, KERNEL, ELSEWHERE)], "default"),
        ([tried(2, 0.5, KERNEL, ELSEWHERE), tried(2, 0.9, NEAR, ELSEWHERE)], "transferred"),
        ([tried(2, 0.5, KERNEL, ELSEWHERE), tried(2, 0.9, KERNEL, THIRD, beats=False)], "default"),
        ([tried(2, 0.5, KERNEL, ELSEWHERE), tried(2, 0.9, KERNEL, THIRD)], "transferred"),
        (
            [tried(2, 0.5, KERNEL, ELSEWHERE), tried(2, 1.1, NEAR, THIRD), tried(2, 0.9, NEXT, THIRD)],
            "default",
        ),
    ],
    ids=["one place", "two shapes", "never won there", "two machines", "lost at one of three"],
)
def test_other_machines_must_agree(log: Log, others: list[Record], why: str) -> None:
    choice = chosen(filled(log, *others))
    assert choice.why == why
    assert "cpu with" in choice.reason


@pytest.mark.parametrize("change", [{"isa": "x86-64-v4"}, {"generator": "11ee"}])
def test_machines_of_another_family_are_not_asked(log: Log, change: dict[str, str]) -> None:
    filled(log, *(tried(2, 0.5, kernel, replace(ELSEWHERE, **change)) for kernel in (KERNEL, NEAR)))  # type: ignore[arg-type]
    assert chosen(log).reason == "the log knows nothing like it"
    assert starts(KERNEL, SPACE, log, HERE) == []


def test_a_neighbour_here_comes_before_other_machines(log: Log) -> None:
    records = [tried(2, 0.5, KERNEL, place) for place in (ELSEWHERE, THIRD)]
    assert chosen(filled(log, *records, tried(4, 0.9, NEXT))).why == "neighbour"


def test_a_search_starts_with_all_of_them_once(log: Log) -> None:
    records = (
        tried(2, 0.99),
        tried(2, 0.5, NEXT),
        tried(1, 1.0, linear(512, 1024)),
        tried(4, 0.7, KERNEL, ELSEWHERE),
    )
    found = starts(KERNEL, SPACE, filled(log, *records), HERE)
    assert found == [{1: {"tile": tile, "nr": 16}} for tile in (2, 4)]


def test_ratios_are_put_together_from_what_was_tried_alone() -> None:
    both: Schedules = {1: {"tile": 2, "nr": 16}, 17: {"tile": 4, "nr": 16}}
    one, other = tried(2, 0.5), replace(tried(4, 0.8), ratios={1: 1.2, 17: 0.72})
    assert ratio_of(both, [one, other]) == pytest.approx(math.sqrt(0.5 * 0.72))
    assert ratio_of(both, [one]) is None
    assert ratio_of(both, []) is None


LEAF = Heuristic(
    *("linear", "f32", HERE.isa, HERE.generator, "standard", 90, "00", 5),
    dims=("k", "n"),
    knobs=("tile",),
    tree=Tree((4, -1, -1), (math.log2(1 + 3), 0.0, 0.0), (1, -1, -1), (2, -1, -1), (0.0, 0.1, -0.5)),
    judged=3,
    ratio=0.8,
    worst=1.01,
)


def test_what_was_learned_comes_last_and_only_if_it_was_sound(log: Log) -> None:
    choice = chosen(log, SPACE, KERNEL, LEAF)
    assert (choice.schedule, choice.why) == ({"tile": 4, "nr": 16}, "learned")
    assert choice.reason == (
        "learned from 90 records of 5 shapes, judged by 3, which foresees 1.41x the default's speed"
    )
    unsound = replace(LEAF, worst=1.2)
    assert chosen(log, SPACE, KERNEL, unsound).why == "default"
    assert starts(KERNEL, SPACE, log, HERE, [unsound]) == [{1: {"tile": 4, "nr": 16}}]
    assert chosen(filled(log, tried(2, 0.9)), SPACE, KERNEL, LEAF).why == "neighbour"


@pytest.mark.parametrize(
    "change",
    [
        {"generator": "11ee"},
        {"isa": "x86-64-v4"},
        {"profile": "trace:00ff"},
        {"dtype": "int8"},
        {"dims": ("k",)},
    ],
)
def test_what_was_learned_of_others_is_ignored(log: Log, change: dict[str, str]) -> None:
    assert list(hints(KERNEL, SPACE, log, HERE, [replace(LEAF, **change)])) == []  # type: ignore[arg-type]


def test_far_is_what_it_says() -> None:
    assert distance(KERNEL, linear(4096, 1024)) == FAR


class Referee:
    """A judge that knows each tile's seconds."""

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.tried = seconds, 0

    def trial(
        self,
        kernel: Kernel,
        schedules: Schedules,
        incumbent: Schedules | None,
        points: Collection[str] | None = None,
    ) -> Measurement:
        self.tried += 1
        mine, its = ({"m=1": [self.of(each)] * 9} for each in (schedules, incumbent or schedules))
        return Measurement("ok", "", mine, its if incumbent else None)

    def of(self, schedules: Schedules) -> float:
        return self.seconds[f"tile{schedules[1]['tile']}"]


@pytest.mark.parametrize(("seconds", "tile", "why"), [(0.5, 4, "log"), (1.5, 1, "default")])
def test_what_was_taken_from_elsewhere_can_be_measured_once(
    log: Log, seconds: float, tile: int, why: str
) -> None:
    filled(log, tried(4, 0.5))
    judge, spaces = Referee(tile1=1.0, tile4=seconds), {KERNEL: SPACE, NEAR: SPACE}
    plan = make_plan(spaces, spaces, log, HERE)
    assert plan.unmeasured == [KERNEL]
    verify(plan, spaces, judge, log, HERE, {})
    choice = make_plan(spaces, spaces, log, HERE)[KERNEL]
    assert (choice.schedule["tile"], choice.why, choice.tried) == (tile, why, 2)
    assert not log.tuned(KERNEL, HERE)
    asked = judge.tried
    verify(make_plan(spaces, spaces, log, HERE), spaces, judge, log, HERE, {})
    assert judge.tried == asked
