"""Logs merged in any order, and in any parts, give the same best schedules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moec.targets.base import Space
from moec.tuning.log import Log
from moec.tuning.plan import make_plan
from moec.tuning.record import Record
from moec.tuning.winners import compared, winners

from .log_records import HERE, KERNEL, OTHER, ok

SPACE = Space({"tile": [1, 2, 3, 4]}, {"tile": 1})
ELSEWHERE = replace(HERE, cpu="another cpu")
LATER = b'{"schema":2,"kernel":"of another time"}'

# Few values, so that ties are common: in the ratio, in the schedule, in all but the time.
records = st.builds(
    lambda tile, ratio, beats, kernel, place, larger, time: replace(
        ok(tile, ratio, beats, kernel, place), larger=larger, leads=beats, time=time
    ),
    st.sampled_from([1, 2, 3, 4]),
    st.sampled_from([0.5, 0.6, 1.0]),
    st.booleans(),
    st.sampled_from([KERNEL, OTHER]),
    st.sampled_from([HERE, ELSEWHERE]),
    st.sampled_from([{}, {17: {"tile": 4}}]),
    st.sampled_from(["2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"]),
)


def told(log: Log) -> tuple[object, ...]:
    """What builds, searches and the user are told."""
    plan = make_plan([KERNEL, OTHER], {KERNEL: SPACE, OTHER: SPACE}, log, HERE).json()
    ranked = [[*map(Record.line, log.ranked(kernel, HERE))] for kernel in (KERNEL, OTHER)]
    best = {key: winner.record.line() for key, winner in winners(log).items()}
    return plan, ranked, best


def log_of(path: Path, content: Sequence[Record]) -> Log:
    path.write_text("".join(record.line() + "\n" for record in content))
    return Log(path)


@settings(max_examples=40, deadline=None)
@given(st.lists(records, max_size=12, unique_by=Record.line), st.data())
def test_any_order_and_any_parts_give_the_same(
    tmp_path_factory: pytest.TempPathFactory, content: list[Record], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    whole = log_of(folder / "whole.jsonl", content)
    # Parts may overlap: a record is in one of three logs at least.
    parts: list[list[Record]] = [[], [], []]
    for record in data.draw(st.permutations(content)):
        for part in data.draw(st.sets(st.integers(0, 2), min_size=1)):
            parts[part].append(record)
    logs = [log_of(folder / f"{number}.jsonl", part) for number, part in enumerate(parts)]
    merged = Log(folder / "merged.jsonl")
    added = [merged.merge(log) for log in data.draw(st.permutations(logs))]
    assert sum(added) == len(content)
    assert sorted(merged.path.read_bytes().splitlines()) == sorted(whole.path.read_bytes().splitlines())
    assert told(merged) == told(whole)


def test_ties_go_by_the_line_and_not_by_the_file(tmp_path: Path) -> None:
    early, late = (replace(ok(1, 0.5), time=f"2026-01-0{day}T00:00:00+00:00") for day in (1, 2))
    for number, order in enumerate(([early, late], [late, early])):
        log = log_of(tmp_path / f"{number}.jsonl", order)
        best = log.best(KERNEL, HERE)
        assert best is not None
        assert best.time == early.time
        assert [winner.record.time for winner in winners(log).values()] == [early.time]


def test_a_merge_takes_along_what_is_later_and_leaves_what_is_nothing(tmp_path: Path) -> None:
    one, other = Log(tmp_path / "one.jsonl"), tmp_path / "other.jsonl"
    torn = ok(2, 0.5).line().encode()[:70]
    other.write_bytes(b"\n".join([LATER, b"{nonsense", b"", ok(1, 1.0).line().encode(), b"[1]", torn]))
    assert one.merge(Log(other)) == 2
    assert one.path.read_bytes().splitlines() == [LATER, ok_line(other)]
    assert one.merge(Log(other)) == 0


def ok_line(path: Path) -> bytes:
    return path.read_bytes().splitlines()[3]


def test_a_log_merged_with_itself_stays_as_it_is(tmp_path: Path) -> None:
    log = log_of(tmp_path / "log.jsonl", [ok(1, 1.0)])
    (tmp_path / "link.jsonl").symlink_to(log.path)
    before = log.path.read_bytes()
    assert log.merge(Log(tmp_path / "link.jsonl")) == 0
    assert log.merge(Log(tmp_path / "missing.jsonl")) == 0
    assert log.path.read_bytes() == before


def test_a_torn_line_does_not_swallow_the_first_that_is_merged(tmp_path: Path) -> None:
    log, other = tmp_path / "log.jsonl", log_of(tmp_path / "other.jsonl", [ok(2, 0.5)])
    log.write_text(ok(1, 1.0).line() + "\n" + '{"schema":1,"kern')
    assert Log(log).merge(other) == 1
    assert [record.schedule["tile"] for record in Log(log)] == [1, 2]


def test_two_logs_are_compared_by_their_winners(tmp_path: Path) -> None:
    a = log_of(tmp_path / "a", [ok(1, 1.0), ok(2, 0.8), ok(3, 0.5, beats=False), ok(1, 1.0, kernel=OTHER)])
    b = log_of(tmp_path / "b", [ok(3, 0.4), ok(1, 1.0, kernel=OTHER), ok(1, 1.0, place=ELSEWHERE)])
    found = compared(winners(a), winners(b))
    ((key, (mine, its)),) = found.differ.items()
    assert key[0] == KERNEL
    assert (mine.record.schedule, mine.gain, mine.trials) == ({"tile": 2}, 1.25, 3)
    assert (its.record.schedule, its.gain, its.trials) == ({"tile": 3}, 2.5, 1)
    assert (list(found.only_a), [key[1] for key in found.only_b], found.same) == ([], [ELSEWHERE], 1)
