"""The index beside a large log: it saves reading, and nothing that happens to it changes an answer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moec.tuning import index
from moec.tuning.index import beside
from moec.tuning.log import Log
from moec.tuning.record import Record

from .log_records import HERE, KERNEL, OTHER, ok

LATER = b'{"schema":2,"kernel":"of another time"}'
SPACED = json.dumps(json.loads(ok(3, 0.9).line())).encode()  # as another program writes it
LINES = (
    ok(1, 1.0).line().encode(),
    ok(2, 0.5).line().encode(),
    ok(2, 0.6, kernel=OTHER).line().encode(),
    Record(KERNEL, HERE, {"tile": 2}, "done").line().encode(),
    ok(1, 1.0).line().encode().replace(b'"ok"', b'"great"'),
    SPACED,
    LATER,
    b"",
    b"{nonsense",
)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs of any size have an index."""
    monkeypatch.setattr(index, "LARGE", 0)
    monkeypatch.setattr(index, "TAIL", 1)


@pytest.fixture
def keyed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The lines that rows were made for."""
    lines: list[bytes] = []
    key_of = index.key_of

    def noted(line: bytes) -> int:
        lines.append(line)
        return key_of(line)

    monkeypatch.setattr(index, "key_of", noted)
    return lines


def write(path: Path, lines: Sequence[bytes]) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def answers(log: Log) -> tuple[object, ...]:
    """All that it can be asked."""
    asked = [
        (kernel, *([record.line() for record in found(kernel, HERE)] for found in (log.of, log.ranked)))
        for kernel in (KERNEL, OTHER)
    ]
    every = [record.line() for record in log]
    return asked, log.tuned(KERNEL, HERE), set(log.keys()), every, log.problems


def plain(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """The same from the log alone."""
    with monkeypatch.context() as patch:
        patch.setattr(index, "LARGE", 1 << 40)
        patch.setattr(index, "beside", lambda log: log.with_name("none"))
        return answers(Log(path))


def test_a_small_log_has_no_index(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", [*LINES] * 100)
    answers(Log(path))
    assert [each.name for each in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.usefixtures("always")
def test_with_an_index_no_other_line_is_read(tmp_path: Path, keyed: list[bytes]) -> None:
    path = write(tmp_path / "log.jsonl", LINES)
    first = answers(Log(path))
    assert beside(path).is_file()
    keyed.clear()
    assert answers(Log(path)) == first
    assert keyed.count(LINES[0] + b"\n") == 0
    keyed.clear()
    Log(path).append(ok(9, 0.1))
    best = Log(path).best(KERNEL, HERE)
    assert best is not None
    assert best.schedule == {"tile": 9}
    assert [line for line in keyed if line.endswith(b"\n")] == [ok_line(path)]


def ok_line(path: Path) -> bytes:
    return path.read_bytes().splitlines(keepends=True)[-1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(LINES), max_size=12), st.lists(st.sampled_from(LINES), max_size=4))
def test_answers_are_those_of_the_lines(
    tmp_path_factory: pytest.TempPathFactory, before: list[bytes], after: list[bytes]
) -> None:
    path = write(tmp_path_factory.mktemp("log") / "log.jsonl", [LINES[0], *before])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "LARGE", 0)
        patch.setattr(index, "TAIL", 1)
        live = Log(path)
        answers(live)
        with path.open("ab") as stream:
            stream.writelines(line + b"\n" for line in after)
        fresh = answers(Log(path))
        whole = plain(path, patch)
    # What a live log found out about lines it read stays told; its answers are those of a new one.
    assert answers(live)[:4] == fresh[:4] == whole[:4]
    assert fresh[4] == whole[4]
    lines = [LINES[0], *before, *after]
    assert len(fresh[3]) == sum(line in LINES[:4] or line == SPACED for line in lines)  # type: ignore[arg-type]


def flipped(data: bytes, place: int) -> bytes:
    place %= len(data)
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    "spoil",
    [
        *(lambda data, part=part: flipped(data, len(data) * part // 8) for part in range(8)),
        lambda data: flipped(data, -1),
        lambda data: data[:-8],
        lambda data: data[: len(data) // 2],
        lambda data: data + bytes(16),
        lambda data: b"",
        lambda data: b"[]\n{}\n",
    ],
)
def test_a_spoilt_index_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[bytes], bytes]
) -> None:
    path = write(tmp_path / "log.jsonl", LINES)
    Log(path)
    beside(path).write_bytes(spoil(beside(path).read_bytes()))
    assert answers(Log(path)) == plain(path, monkeypatch)


@pytest.mark.usefixtures("always")
def test_an_index_of_other_lines_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "log.jsonl", LINES)
    Log(path)
    inode, size = path.stat().st_ino, path.stat().st_size
    write(path, LINES[::-1])  # in place, as long as before
    assert (path.stat().st_ino, path.stat().st_size) == (inode, size)
    assert answers(Log(path)) == plain(path, monkeypatch)
    write(path, [*LINES[::-1][1:], *LINES])  # in place, longer
    assert answers(Log(path)) == plain(path, monkeypatch)
    write(tmp_path / "new", [LINES[1], *LINES[2:]])
    os.replace(tmp_path / "new", path)
    assert answers(Log(path)) == plain(path, monkeypatch)
    write(path, LINES[:2])  # shorter
    assert answers(Log(path)) == plain(path, monkeypatch)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("how", ["in place", "another file"])
def test_a_change_that_no_sample_shows_is_noticed(tmp_path: Path, how: str) -> None:
    path = write(tmp_path / "log.jsonl", [LINES[0]] * 1000)
    Log(path)
    before, size = path.stat(), len(LINES[0]) + 1
    place = size * 12 + LINES[0].index(b"1024")
    assert index.SAMPLE < place < size * 1000 // index.SAMPLES  # between the first two samples
    new = path if how == "in place" else tmp_path / "new.jsonl"
    new.write_bytes(path.read_bytes())
    with new.open("r+b") as stream:
        stream.seek(place)
        stream.write(b"9999")
    if how == "another file":
        os.utime(new, ns=(before.st_mtime_ns, before.st_mtime_ns))
        os.replace(new, path)
    assert len(list(Log(path).of(replace(KERNEL, dims=(("k", 9999), ("n", 512))), HERE))) == 1


@pytest.mark.usefixtures("always")
def test_where_no_index_can_be_written_all_works(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", LINES)
    beside(path).mkdir()
    assert Log(path).tuned(KERNEL, HERE)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["log.jsonl", "log.jsonl.index"]


@pytest.mark.usefixtures("always")
def test_an_index_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "log.jsonl", LINES)

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as stream:
            stream.write(data[:50])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert Log(path).tuned(KERNEL, HERE)
    assert [each.name for each in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_log_sees_what_others_add_and_prune(tmp_path: Path) -> None:
    one, other = Log(tmp_path / "log.jsonl"), Log(tmp_path / "log.jsonl")
    one.append(ok(1, 1.0))
    assert [record.schedule["tile"] for record in other.ranked(KERNEL, HERE)] == [1]
    one.append(ok(2, 0.5))
    assert [record.schedule["tile"] for record in other.ranked(KERNEL, HERE)] == [2, 1]
    assert one.prune(lambda record: record.schedule["tile"] == 2) == 1
    one.append(ok(3, 2.0))
    assert [record.schedule["tile"] for record in other.ranked(KERNEL, HERE)] == [1, 3]
    one.path.unlink()
    assert (other.records, other.problems, other.keys()) == ([], [], [])


def test_going_through_a_log_goes_on_when_it_is_pruned(tmp_path: Path) -> None:
    log = Log(write(tmp_path / "log.jsonl", LINES))
    every = [record.line() for record in log]
    seen = iter(log)
    next(seen)
    Log(log.path).prune(lambda record: True)
    assert [record.line() for record in seen] == every[1:]
    assert log.records == []


def test_a_last_line_without_a_newline_is_read_and_keeps_its_number(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(LINES[0])
    log = Log(path)
    assert len(log.records) == 1
    log.append(ok(2, 0.5))
    with path.open("ab") as stream:
        stream.write(b"{nonsense\n")
    for found in (log, Log(path)):
        assert len(found.records) == 2
        (problem,) = found.problems
        assert problem.startswith(f"{path}:3: not JSON")


def test_many_strange_lines_are_told_in_short(tmp_path: Path) -> None:
    log = Log(write(tmp_path / "log.jsonl", [LINES[0], *([b"{nonsense"] * 130)]))
    assert len(log.problems) == 101
    assert log.problems[-1] == f"{log.path}: 30 more lines are no records; they are left out"


def test_a_log_of_a_later_schema_only_is_a_log(tmp_path: Path) -> None:
    log = Log(write(tmp_path / "log.jsonl", [LATER]))
    (problem,) = log.problems
    assert problem == f"{log.path}:1: schema 2, this moec reads 1; the line is left out"
    log.append(ok(1, 1.0))
    assert len(Log(log.path).records) == 1
    assert log.path.read_bytes().startswith(LATER + b"\n")
