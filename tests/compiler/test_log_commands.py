"""`moec log`: what each command says, to people and to machines, and what it leaves of the files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from command import moec, printed, refused

from moec.compiler.log_commands import log as commands
from moec.compiler.rooms import target_of
from moec.targets.base import Kernel
from moec.tuning.fingerprint import Fingerprint, here
from moec.tuning.log import Log
from moec.tuning.record import OUTCOMES, Record
from moec.tuning.t4 import INVALIDITY

LINEAR = Kernel("linear", (("k", 64), ("n", 32)))
GROUPED = Kernel("grouped_swiglu", (("k", 64), ("n", 32), ("experts", 4)), dtype="int4")
EPYC = Fingerprint("x86-64-v4", "AMD EPYC", 2, "of old sources")
XEON = replace(EPYC, cpu="Intel Xeon")
LATER = '{"schema":2,"kernel":"of another time"}'


def ok(tile: int, ratio: float, kernel: Kernel = LINEAR, place: Fingerprint = EPYC, **more: Any) -> Record:
    samples = {"m=1": [1e-3, 3e-3, 2e-3], "m=64": [4e-3]}
    return Record(kernel, place, {"tile": tile}, "ok", "", samples, ratio, **{"beats": True, **more})


RECORDS = (
    ok(1, 1.0),
    ok(2, 0.5, noise=0.02, larger={17: {"tile": 8}}, ratios={1: 0.5, 17: 0.5}),
    ok(3, 0.8, place=XEON),
    ok(4, 1.0, kernel=GROUPED),
    ok(5, 0.9, kernel=GROUPED, beats=False),
    Record(GROUPED, EPYC, {"tile": 6}, "wrong", "row 3 differs"),
    Record(GROUPED, EPYC, {"tile": 7}, "refused", "tile 7 does not divide 64"),
    Record(LINEAR, EPYC, {"tile": 2}, "done"),
)


def write(path: Path, records: Sequence[Record], *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in (*(record.line() for record in records), *lines)))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "log.jsonl", RECORDS)


def text(*arguments: Any) -> str:
    """What a command that ends well tells people, on one line."""
    result = moec("log", *arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def of_log(path: Path) -> list[str]:
    return [record.line() for record in Log(path)]


@pytest.mark.parametrize("name", ["show", "best", "merge", "diff", "prune", "export"])
def test_help_has_an_example(name: str) -> None:
    said = moec("log", name, "--help").stdout
    assert f"moec log {name}" in said.partition("Examples:")[2]
    assert "--json" in said
    assert f"  {name} " in moec("log", "--help").stdout
    assert name in commands.commands


@pytest.mark.parametrize(
    ("options", "tiles"),
    [
        ((), [1, 2, 3, 4, 5, 6, 7, 2]),
        (("--kernel", "GROUPED"), [4, 5, 6, 7]),
        (("--kernel", "n=32 f32", "--cpu", "epyc"), [1, 2, 2]),
        (("--status", "wrong"), [6]),
        (("--last", 2), [7, 2]),
        (("--last", 0), [1, 2, 3, 4, 5, 6, 7, 2]),
        (("--kernel", "none of them"), []),
    ],
)
def test_show_filters(path: Path, options: tuple[Any, ...], tiles: list[int]) -> None:
    rows = printed("log", "show", "--log", path, *options)
    assert [row["schedules"][0]["schedule"]["tile"] for row in rows] == tiles


def test_show_tells_people_what_came_of_each(path: Path) -> None:
    said = text("show", "--log", path)
    for part in ("2.00x 2.0% 1-16: tile=2", "17+: tile=8", "wrong tile=6", "row 3 differs"):
        assert part in said
    assert text("show", "--log", path, "--kernel", "none of them") == "no records"


def test_lines_left_out_are_told_beside_the_rest(path: Path) -> None:
    write(path, RECORDS, LATER, "{nonsense")
    for command in ("show", "best", "prune", "export"):
        result = moec("log", command, "--log", path, *(["--dry-run"] if command == "prune" else []))
        assert result.exit_code == 0
        later, nonsense = result.stderr.splitlines()
        assert later == f"moec: {path}:9: schema 2, this moec reads 1; the line is left out"
        assert nonsense.startswith(f"moec: {path}:10: not JSON")


def test_best_is_by_kernel_and_machine(path: Path) -> None:
    rows = printed("log", "best", "--log", path)
    found = [(row["kernel"], row["cpu"], row["gain"], row["noise"], row["trials"]) for row in rows]
    assert found == [
        ("linear k=64 n=32 f32", "AMD EPYC", 2.0, 0.02, 2),
        ("linear k=64 n=32 f32", "Intel Xeon", 1.25, None, 1),
        ("grouped_swiglu k=64 n=32 experts=4 int4", "AMD EPYC", 1.0, None, 3),
    ]
    assert [row["tokens"] for row in rows[0]["schedules"]] == ["1-16", "17+"]
    assert len(printed("log", "best", "--log", path, "--cpu", "xeon")) == 1
    assert "2.00x 2.0% 1-16: tile=2, 2.00x" in text("best", "--log", path)


def test_a_missing_log_is_an_empty_one(tmp_path: Path) -> None:
    assert printed("log", "best", "--log", tmp_path / "none.jsonl") == []
    assert text("best", "--log", tmp_path / "none.jsonl") == "no schedule that won"
    assert list(tmp_path.iterdir()) == []


def test_merge_adds_what_is_lacking(path: Path, tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [RECORDS[0], ok(9, 0.1)], LATER, "{nonsense")
    two = write(tmp_path / "two.jsonl", [ok(9, 0.1), ok(8, 0.2)])
    two.write_text(one.read_text().splitlines()[1] + "\n" + two.read_text().splitlines()[1] + "\n")
    new = tmp_path / "new" / "log.jsonl"
    assert printed("log", "merge", path, one, two, "--log", new) == {
        "log": str(new),
        "added": {str(path): 8, str(one): 2, str(two): 1},
    }
    assert LATER in new.read_text()
    assert "{nonsense" not in new.read_text()
    assert len(of_log(new)) == 10
    assert f"0 records from {path}" in text("merge", path, "--log", new)


def test_merge_takes_all_files_or_none(path: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("dear diary\n")
    new = tmp_path / "new.jsonl"
    assert "is not a tuning log" in refused("log", "merge", path, tmp_path / "notes", "--log", new)
    assert "does not exist" in refused("log", "merge", path, tmp_path / "missing", "--log", new)
    assert not new.exists()


def test_diff_tells_what_differs_and_by_how_much(path: Path, tmp_path: Path) -> None:
    other = write(
        tmp_path / "b.jsonl", [ok(1, 1.0), ok(7, 0.4), *RECORDS[3:5], ok(1, 1.0, place=XEON, profile="x")]
    )
    found = printed("log", "diff", path, other)
    (pair,) = found["differ"]
    assert pair["gain"] == pytest.approx(1.25)
    assert [pair[side]["schedules"][0]["schedule"]["tile"] for side in "ab"] == [2, 7]
    assert [row["profile"] for row in found["only_a"]] == ["standard"]
    assert [row["profile"] for row in found["only_b"]] == ["x"]
    assert found["same"] == 1
    said = text("diff", path, other)
    assert "1.25x" in said
    assert said.endswith(
        "1 kernels have the same best schedules in both, 1 do not; 1 are only in A, 1 only in B"
    )
    assert printed("log", "diff", path, path)["differ"] == []


def current() -> Fingerprint:
    machine = target_of("cpu", None)
    return here(machine.capabilities.name, 1, machine.folder)


def test_prune_retires_records_of_other_sources(tmp_path: Path) -> None:
    mine = ok(1, 1.0, place=current())
    path = write(tmp_path / "log.jsonl", [*RECORDS, mine], LATER)
    before = path.read_bytes()
    dry = printed("log", "prune", "--log", path, "--dry-run")
    assert (dry["retired"], dry["kept"], dry["dry_run"]) == (8, 1, True)
    assert {(row["kind"], row["cpu"], row["records"]) for row in dry["kinds"]} == {
        ("linear", "AMD EPYC", 3),
        ("linear", "Intel Xeon", 1),
        ("grouped_swiglu", "AMD EPYC", 4),
    }
    assert "8 records would be retired, 1 kept" in text("prune", "--log", path, "--dry-run")
    assert path.read_bytes() == before
    assert "8 records retired, 1 kept" in text("prune", "--log", path)
    assert path.read_text() == f"{mine.line()}\n{LATER}\n"
    assert text("prune", "--log", path) == "0 records retired, 1 kept"


def test_prune_by_age_and_but_for_the_best(tmp_path: Path) -> None:
    old = (datetime.now(UTC) - timedelta(days=40)).isoformat()
    naive = (datetime.now(UTC) - timedelta(days=40)).replace(tzinfo=None).isoformat()
    aged = [replace(record, time=old) for record in RECORDS]
    fresh = [ok(9, 2.0, beats=False), ok(10, 2.0, beats=False, time="some day")]
    path = write(tmp_path / "log.jsonl", [*aged, *fresh, ok(11, 2.0, beats=False, time=naive)])
    assert printed("log", "prune", "--log", path, "--older-than", 41)["retired"] == 0
    kept = printed("log", "prune", "--log", path, "--older-than", 39, "--keep-best")
    assert (kept["retired"], kept["kept"]) == (4, 7)
    assert of_log(path) == [*(r.line() for r in (*aged[:4], aged[7])), *(r.line() for r in fresh)]
    assert printed("log", "prune", "--log", path, "--older-than", 39)["retired"] == 5


def test_export_gives_lines_that_are_a_log(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "some.jsonl"
    moec("log", "export", "--log", path, "--kernel", "linear", "--status", "ok", "-o", out)
    assert of_log(out) == [record.line() for record in RECORDS[:3]]
    assert (
        moec("log", "export", "--log", path, "--kernel", "linear", "--status", "ok").stdout == out.read_text()
    )
    rows = printed("log", "export", "--log", path, "--status", "wrong")
    assert rows == [json.loads(RECORDS[5].line())]
    assert "there already; export to another name" in refused("log", "export", "--log", path, "-o", path)
    assert of_log(path) == [record.line() for record in RECORDS]


def check_t4(document: Any) -> None:
    """What the T4 results format asks for."""
    assert [int(part) for part in document["schema_version"].split(".")] == [1, 0, 0]
    for result in document["results"]:
        assert isinstance(result["timestamp"], str)
        assert isinstance(result["configuration"], dict)
        assert isinstance(result["times"]["runtimes"], list)
        assert result["invalidity"] in {
            *("timeout", "compile", "runtime", "correctness", "constraints", "correct"),
        }
        assert isinstance(result["correctness"], int | float)
        assert isinstance(result["objectives"], list)
        for each in result["measurements"]:
            assert isinstance(each["name"], str)
            assert isinstance(each["value"], int | float | str | list)
            assert isinstance(each["unit"], str)
        names = {each["name"] for each in result["measurements"]}
        assert result["invalidity"] != "correct" or set(result["objectives"]) <= names


def test_export_to_t4(path: Path, tmp_path: Path) -> None:
    options = ("--log", path, "--format", "t4")
    found = json.loads(moec("log", "export", *options, "--kernel", "linear", "--cpu", "epyc").stdout)
    check_t4(found)
    assert [result["configuration"] for result in found["results"]] == [
        {"tile": 1},
        {"tile": 2, "tile from 17": 8},
    ]
    best = found["results"][1]
    assert best["times"]["runtimes"] == pytest.approx([1, 3, 2, 4])
    assert best["measurements"] == [
        {"name": "ratio", "value": 0.5, "unit": ""},
        {"name": "time m=1", "value": pytest.approx(2), "unit": "ms"},
        {"name": "time m=64", "value": pytest.approx(4), "unit": "ms"},
    ]
    assert found["metadata"]["kernel"]["dims"] == {"k": 64, "n": 32}
    assert "3 kernels and machines, and a T4 document holds one" in refused("log", "export", *options)
    moec("log", "export", *options, "-o", tmp_path / "t4")
    files = sorted((tmp_path / "t4").iterdir())
    assert [file.name for file in files] == [
        "001-linear-k=64-n=32-f32.json",
        "002-linear-k=64-n=32-f32.json",
        "003-grouped_swiglu-k=64-n=32-experts=4-int4.json",
    ]
    for file in files:
        check_t4(json.loads(file.read_text()))
    third = json.loads(files[2].read_text())["results"]
    assert [(each["invalidity"], each["correctness"]) for each in third] == [
        *(("correct", 1), ("correct", 1), ("correctness", 0), ("constraints", 0)),
    ]
    check_t4(json.loads(moec("log", "export", *options, "--kernel", "none of them").stdout))


def test_each_outcome_has_its_word_in_t4() -> None:
    assert set(INVALIDITY) == set(OUTCOMES)


def test_what_cannot_be_written_is_a_sentence(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "log.jsonl"
    assert f"{inside} cannot be written: File exists ({tmp_path / 'file'})" in refused(
        "log", "export", "--log", path, "-o", inside
    )
    assert str(inside) in refused("log", "merge", path, "--log", inside)
