"""The tuning log: what a kill, a stranger's line or a second writer may do to it, and what it answers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moec.targets.base import Kernel
from moec.tuning.fingerprint import Fingerprint, here, source_hash
from moec.tuning.log import BadLog, Log, default_path
from moec.tuning.record import BadRecord, Record, parse

KERNEL = Kernel("linear", (("k", 1024), ("n", 512)))
HERE = Fingerprint("x86-64-v3", "some cpu", 2, "00ff")


def ok(
    tile: int, ratio: float, beats: bool = True, kernel: Kernel = KERNEL, place: Fingerprint = HERE
) -> Record:
    return Record(kernel, place, {"tile": tile}, "ok", "", {"m=1": [1e-3, 2e-3]}, ratio, beats)


def test_a_record_survives_the_file(tmp_path: Path) -> None:
    log = Log(tmp_path / "new" / "log.jsonl")
    record = replace(ok(8, 0.5), versions={"tvm": "0.25"})
    log.append(record)
    again = Log(log.path)
    assert [back.line() for back in again.records] == [record.line()]
    assert again.records[0].kernel == KERNEL
    assert again.problems == []


def test_schedules_by_tokens_survive_the_file(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    record = replace(ok(8, 0.5), larger={17: {"tile": 16}}, ratios={1: 0.9, 17: 0.5}, leads=True, noise=0.01)
    log.append(record)
    (back,) = Log(log.path).records
    assert back.noise == 0.01
    assert (back.schedules, back.ratios, back.leads) == (record.schedules, {1: 0.9, 17: 0.5}, True)
    assert back.schedules == {1: {"tile": 8}, 17: {"tile": 16}}


def test_records_from_before_schedules_by_tokens_are_read() -> None:
    old = json.loads(ok(8, 0.5).line())
    for later in ("larger", "ratios", "leads", "noise", "settled"):
        del old[later]
    record = parse(json.dumps(old).encode())
    assert (record.schedules, record.ratios, record.leads) == ({1: {"tile": 8}}, {}, False)
    assert record.noise is None
    assert not record.settled


def test_records_that_come_with_moec_count_and_are_never_written(tmp_path: Path) -> None:
    shipped = Log(tmp_path / "shipped.jsonl")
    shipped.append(ok(8, 0.8))
    before = shipped.path.read_bytes()
    log = Log(tmp_path / "log.jsonl", shipped.path)
    assert [each.schedule for each in log.ranked(KERNEL, HERE)] == [{"tile": 8}]
    assert log.came_with_moec(log.ranked(KERNEL, HERE)[0])
    log.append(ok(4, 0.5))
    best = log.best(KERNEL, HERE)
    assert best is not None
    assert (best.schedule, log.came_with_moec(best)) == ({"tile": 4}, False)
    assert shipped.path.read_bytes() == before
    assert [each.schedule for each in Log(log.path).records] == [{"tile": 4}]


def test_reals_are_not_in_the_key(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.append(ok(8, 0.5, kernel=replace(KERNEL, reals=(("eps", 1e-6),))))
    assert log.best(replace(KERNEL, reals=(("eps", 1e-5),)), HERE) is not None
    assert "eps" not in log.path.read_text()


def test_best_is_the_fastest_that_won_here(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    elsewhere = replace(HERE, generator="another template")
    wrong = Record(KERNEL, HERE, {"tile": 1}, "wrong", "row 3 differs")
    for record in (ok(4, 1.0), ok(8, 0.8), ok(9, 0.3, beats=False), ok(16, 0.1, place=elsewhere), wrong):
        log.append(record)
    best = log.best(KERNEL, HERE)
    assert best is not None
    assert best.schedule == {"tile": 8}
    assert log.best(Kernel("linear", (("k", 1),)), HERE) is None


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_kill_at_any_byte_loses_one_record(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    log = Log(tmp_path_factory.mktemp("log") / "log.jsonl")
    for tile in (1, 2, 3):
        log.append(ok(tile, 1 / tile))
    content = log.path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    log.path.write_bytes(content[:cut])
    torn = Log(log.path)
    whole = content[:cut].count(b"\n")
    # A line may also be whole and only miss its end.
    assert len(torn.records) in (whole, whole + 1)
    assert len(torn.problems) <= 1
    torn.append(ok(4, 0.25))
    assert Log(log.path).records[-1].schedule == {"tile": 4}
    assert len(Log(log.path).records) == len(torn.records)


def test_a_torn_last_line_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(ok(1, 1.0).line() + "\n" + ok(2, 0.5).line()[:40])
    (problem,) = Log(path).problems
    assert problem.startswith(f"{path}:2: the last line is torn")


def test_a_corrupt_line_is_named_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f"{ok(1, 1.0).line()}\n{{nonsense\n\n{ok(2, 0.5).line()}\n")
    log = Log(path)
    assert len(log.records) == 2
    assert log.problems[0].startswith(f"{path}:2: not JSON")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\n")
    with pytest.raises(BadLog, match="is not a tuning log"):
        Log(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema": 2}, "schema 2, this moec reads 1"),
        ({"status": "great"}, "status is 'great'"),
        ({"schedule": {"tile": [1]}}, "schedule holds a value of another type"),
        ({"schedule": {"tile": True}}, "schedule holds a value of another type"),
        ({"samples": {"m=1": [0.0]}}, "samples of m=1 are no seconds"),
        ({"ratio": -1}, "ratio is -1"),
        ({"ratio": None}, "status is ok but there is no ratio"),
        ({"beats": 1}, "beats is int, expected bool"),
        ({"larger": {"3": {"tile": 1}}}, r"larger begins at 3 tokens, expected some of \(2, 5"),
        ({"larger": {"1": {"tile": 1}}}, "larger begins at 1 tokens"),
        ({"larger": {"17": 4}}, "17 is int, expected dict"),
        ({"ratios": {"1": 0}}, "ratios holds 0, expected positive numbers"),
        ({"noise": -0.1}, "noise is -0.1, expected a number or null"),
        ({"noise": False}, "noise is False"),
        ({"ratios": {"1": 1.0}, "leads": None}, "leads is NoneType, expected bool"),
        ({"fingerprint": {"isa": "v3", "cpu": "c", "threads": "2", "generator": ""}}, "threads is str"),
        ({"kernel": {"kind": "linear", "dims": {"k": 1}}}, "no field dtype"),
    ],
)
def test_each_field_is_checked(change: dict[str, object], sentence: str) -> None:
    line = json.dumps({**json.loads(ok(1, 1.0).line()), **change})
    with pytest.raises(BadRecord, match=sentence):
        parse(line.encode())


@pytest.mark.parametrize("line", [b"[1]", b"\xff\xfe", b'{"schema": NaN}', b"[" * 100_000])
def test_a_line_from_anywhere_is_only_refused(line: bytes) -> None:
    with pytest.raises(BadRecord):
        parse(line)


def test_merge_is_a_union_in_any_order(tmp_path: Path) -> None:
    one, other = Log(tmp_path / "one.jsonl"), Log(tmp_path / "other.jsonl")
    shared = ok(1, 1.0)
    for log, records in ((one, (shared, ok(2, 0.7))), (other, (shared, ok(3, 0.6), ok(4, 0.6)))):
        for record in records:
            log.append(record)
    left, right = Log(tmp_path / "left.jsonl"), Log(tmp_path / "right.jsonl")
    assert left.merge(one) + left.merge(other) == 4
    assert right.merge(other) + right.merge(one) == 4
    assert left.merge(right) == 0
    best = [log.best(KERNEL, HERE) for log in (left, right)]
    assert best[0] is not None
    assert best[0] == best[1]


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    program = (
        "import pathlib, sys\n"
        "from moec.targets.base import Kernel\n"
        "from moec.tuning.fingerprint import Fingerprint\n"
        "from moec.tuning.log import Log\n"
        "from moec.tuning.record import Record\n"
        "log, key = Log(pathlib.Path(sys.argv[1])), (Kernel('k', ()), Fingerprint('i', 'c', 1, 'g'))\n"
        "for tile in range(50): log.append(Record(*key, {'tile': tile}, 'crashed', 'x' * 5000))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path)]) for _ in range(2)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    log = Log(path)
    assert (len(log.records), log.problems) == (100, [])


def test_where_the_log_lies() -> None:
    assert default_path({"XDG_DATA_HOME": "/data"}) == Path("/data/moec/tuning.jsonl")
    assert default_path({}).parts[-4:] == (".local", "share", "moec", "tuning.jsonl")


def test_here_changes_with_the_template_and_not_with_the_device(tmp_path: Path) -> None:
    target = tmp_path / "targets" / "toy"
    (target / "kernels").mkdir(parents=True)
    for name in ("emit.py", "space.py", "device.py", "kernels/matmul.py"):
        (target / name).write_text("")
    before = here("v3", 2, target)
    (target / "device.py").write_text("# times better")
    assert here("v3", 2, target) == before
    (target / "kernels" / "matmul.py").write_text("# tiles better")
    assert here("v3", 2, target) != before
    assert here("v3", 2, target).cpu


def test_here_changes_with_cpp_only_where_that_is_what_is_timed(tmp_path: Path) -> None:
    runtime = tmp_path / "targets" / "toy" / "runtime"
    (runtime.parent / "kernels").mkdir(parents=True)
    runtime.mkdir()
    (runtime.parent / "emit.py").touch()
    (runtime / "rows.cc").write_text("")
    before = here("v3", 2, runtime.parent)
    (runtime / "rows.cc").write_text("// faster")
    assert here("v3", 2, runtime.parent) != before
    (runtime / "device.h").write_text("// a device, which times itself")
    before = here("v3", 2, runtime.parent)
    (runtime / "rows.cc").write_text("// faster still")
    assert here("v3", 2, runtime.parent) == before


def test_source_hash_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x")
    (tmp_path / "b.py").write_text("y")
    before = source_hash(tmp_path.glob("*.py"))
    assert before == source_hash(reversed(sorted(tmp_path.glob("*.py"))))
    (tmp_path / "b.py").write_text("z")
    assert source_hash(tmp_path.glob("*.py")) != before
