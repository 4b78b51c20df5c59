"""What is seen of tuning: events for machines, a table or lines for people, and the page about a log."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Self

import pytest
from command import moec
from rich.console import Console

from moec.compiler import tuning_report
from moec.compiler.progress import Bar
from moec.compiler.tuning_events import Done, Event, Start, Trial
from moec.compiler.tuning_progress import Lines, Live, duration, watching
from moec.targets.base import Kernel, Schedules
from moec.tuning.fingerprint import Fingerprint
from moec.tuning.log import Log
from moec.tuning.measure import Measurement
from moec.tuning.record import Record, spelled

MODEL = """
import torch

def make():
    return torch.nn.Sequential(torch.nn.Linear(64, 48, bias=False), torch.nn.Tanh()), (torch.ones(3, 64),)
"""
FIELDS = {
    "start": {"kernels", "budget", "machine"},
    "trial": {
        *("kernel", "number", "searched", "trials", "schedules", "status", "reason", "ratio", "noise"),
        *("seconds", "gain", "best_seconds", "share", "left"),
    },
    "kernel": {
        *("kernel", "schedules", "gain", "noise", "trials", "seconds", "best_seconds", "share"),
        *("why", "reason"),
    },
    "warning": {"text"},
    "end": {
        *("seconds", "trials", "kernels", "kept", "timed", "decode", "prefill", "interrupted", "line"),
    },
}


class Judge:
    """In the place of the processes that build and measure: what comes first, the default, is the slowest."""

    interrupt_at: int | None = None  # so many schedules seen

    def __init__(self, device: str, options: Any, memory_bytes: int | None, builders: int) -> None:
        self.known: list[str] = []

    def start(self) -> None: ...
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None: ...

    def trial(
        self,
        kernel: Kernel,
        schedules: Schedules,
        incumbent: Schedules | None,
        points: Collection[str] | None = None,
    ) -> Measurement:
        if len(self.known) == self.interrupt_at:
            raise KeyboardInterrupt
        against = None if incumbent is None else self.times(incumbent)
        if spelled(schedules) not in self.known:
            self.known.append(spelled(schedules))
        if len(self.known) == 3:
            return Measurement("wrong", "row 3 differs")
        return Measurement("ok", "", self.times(schedules), against)

    def times(self, schedules: Schedules) -> dict[str, list[float]]:
        seconds = (
            1e-3 / (1 + self.known.index(spelled(schedules)) % 4) if spelled(schedules) in self.known else 1
        )
        return {"m=1": [seconds] * 9, "m=128": [seconds] * 9}


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Judge]:
    """What measures from now on; and a model, seen:make."""
    (tmp_path / "seen.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("moec.compiler.beyond.Worker", Judge)
    return Judge


def compiled(folder: Path, *options: Any) -> Any:
    """A build of a model with one kernel that is tuned, and its log in that folder."""
    common = ("--log", folder / "log.jsonl", "--threads", 1, "--no-prove", "--force")
    result = moec("compile", "seen:make", "-o", folder / "out", *common, *options)
    assert result.exit_code == 0, result.output
    return result


def parsed(text: str) -> list[dict[str, Any]]:
    """Events by line; each has its fields and no others."""
    events = [json.loads(line) for line in text.splitlines()]
    for event in events:
        assert set(event) == {"event", *FIELDS[event["event"]]}
    return events


def test_a_whole_run_in_json(tmp_path: Path, judge: type[Judge]) -> None:
    log = tmp_path / "log.jsonl"
    result = compiled(tmp_path, "--budget", "6t", "--json-events", "--json")
    start, *trials, kernel, end = parsed(result.stderr)
    assert [each["event"] for each in (start, kernel, end)] == ["start", "kernel", "end"]
    assert {each["event"] for each in trials} == {"trial"}
    (used,) = start["kernels"]
    assert used == {"kernel": kernel["kernel"], "uses": 1}
    assert start["budget"] == {"seconds": None, "trials": 6}
    records = [json.loads(line) for line in log.read_text().splitlines()]
    tried = [each for each in records[:-1] if not each["settled"]]
    assert len(tried) == len(records) - 2, "the winner was raced once more with the default"
    assert [each["status"] for each in trials] == [each["status"] for each in tried]
    assert [each["ratio"] for each in trials] == [each["ratio"] for each in tried]
    assert (trials[2]["status"], trials[2]["reason"]) == ("wrong", "row 3 differs")
    assert sum(each["status"] != "refused" for each in trials) == trials[-1]["trials"] == 6
    gains = [each["gain"] for each in trials]
    assert gains == sorted(gains)
    assert trials[0]["best_seconds"] == 1e-3
    assert trials[-1]["left"] == 0
    assert (kernel["gain"], kernel["trials"], kernel["why"]) == (pytest.approx(4), 6, "tuned")
    assert kernel["reason"] == "the best of 6 tried now", "told when its search ended, not at the end of all"
    assert kernel["best_seconds"] == pytest.approx(1e-3 / 4)
    assert kernel["seconds"] == pytest.approx(sum(each["seconds"] for each in trials), abs=0.5)
    assert (end["decode"], end["prefill"]) == (pytest.approx(4), pytest.approx(4))
    assert (end["trials"], end["kernels"], end["kept"], end["interrupted"]) == (6, 1, 0, False)
    manifest = json.loads(result.stdout)
    assert manifest["tuning"] == {name: value for name, value in end.items() if name != "event"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "decode 4.00x, prefill 4.00x" in " ".join(page.split())
    assert page.count("<svg") == 1


def test_a_second_build_tells_what_the_log_had(tmp_path: Path, judge: type[Judge]) -> None:
    compiled(tmp_path, "--budget", "5t")
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write("torn\n")
    file = tmp_path / "events.jsonl"
    file.write_text('{"event": "warning", "text": "of an earlier run"}\n')
    again = compiled(tmp_path, "--budget", "5t", "--json-events", file)
    _, start, kernel, warning, end = parsed(file.read_text())
    assert start["event"] == "start"
    assert (kernel["why"], kernel["trials"], end["trials"]) == ("log", 0, 0)
    assert kernel["gain"] == end["decode"] == pytest.approx(4)
    assert "the line is left out" in warning["text"]
    assert again.stderr.strip() == f"moec: {warning['text']}"
    assert "0 s of tuning: decode 4.00x, prefill 4.00x" in " ".join(again.stdout.split())


def test_lines_where_there_is_no_terminal_and_a_search_that_is_interrupted(
    tmp_path: Path, judge: type[Judge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "interrupt_at", 3)
    stopped = compiled(tmp_path, "--budget", "6t", "--json-events=" + str(tmp_path / "events"))
    *_, kernel, end = parsed((tmp_path / "events").read_text())
    assert end["interrupted"]
    assert (kernel["trials"], kernel["why"], kernel["gain"]) == (3, "tuned", pytest.approx(2))
    (line,) = stopped.stderr.splitlines()
    assert line.startswith("moec: tuned linear k=64 n=48 f32: 2.00x the default's speed")
    assert "; 3 trials, " in line
    assert "kernel" not in compiled(tmp_path).stderr


def test_a_file_for_events_that_cannot_be_written(tmp_path: Path, judge: type[Judge]) -> None:
    result = moec("compile", "seen:make", "-o", tmp_path / "out", f"--json-events={tmp_path}/no/file")
    assert result.exit_code == 2
    assert "no/file cannot be written: No such file or directory" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


TRIAL = Trial(
    *("linear k=64 n=48 f32", 3, 14, 7, [], "ok", "", 0.8, 0.02, 0.5, 1.25),
    best_seconds=12.34e-6,
    share=0.81,
    left=75.0,
)
DONE = Done("grouped k=8 f32", [], 1.5, 0.008, 40, 9.5, None, None, "tuned", "the best of 40 tried now")


def shown(*events: Event) -> str:
    """What a terminal shows after these."""
    bar, out = Bar(), io.StringIO()
    live = Live(bar)
    for event in events:
        live(event)
    Console(file=out, width=120).print(bar.below or "")
    return out.getvalue()


def test_the_live_table() -> None:
    heads, done, now, below, *_ = (line.split() for line in shown(DONE, TRIAL).splitlines())
    assert heads[:2] == ["kernel", "trials"]
    assert done[-3:] == ["40", "1.50x", "0.8%"]
    assert now == ["linear", "k=64", "n=48", "f32", "7", "12.3", "us", "1.25x", "81%"]
    assert " ".join(below) == "kernel 3 of 14, 1:15 left"


def test_the_table_keeps_the_last_rows_and_ends() -> None:
    rows = [replace(DONE, kernel=f"kernel-{number}") for number in range(40)]
    assert "kernel-39" in shown(*rows)
    assert "kernel-3 " not in shown(*rows)
    assert "untouched" not in shown(replace(DONE, kernel="untouched", trials=0)), "it was not searched"
    assert shown(Start([], {}, {})).strip() == ""


def test_durations() -> None:
    assert [*map(duration, (5.4, 65, 3600))] == ["0:05", "1:05", "1:00:00"]


def test_lines_say_how_sure_a_gain_is() -> None:
    said: list[str] = []
    Lines(said.append)(replace(DONE, share=0.5))
    assert said == [
        "moec: tuned grouped k=8 f32: 1.50x the default's speed (±0.8%), one token at 50% of the read "
        "bandwidth; 40 trials, 9.5 s"
    ]


EVIL = '<script>alert(1)</script> & "quotes"'
PLACE = Fingerprint("x86-64-v4", EVIL, 2, "00ff")
KERNEL = Kernel(EVIL, (("k", 64),))


def tried(tile: int | str, ratio: float | None, beats: bool = False, **more: Any) -> Record:
    status = "ok" if ratio else "wrong"
    schedule = {"tile": tile, EVIL: tile}
    return Record(KERNEL, PLACE, schedule, status, "" if ratio else EVIL, {}, ratio, beats, **more)


RECORDS = (
    tried(1, 1.0, True, time="1"),
    tried(2, None, time="2"),
    *(tried(tile, 1.1, time="3") for tile in range(3, 12)),
    tried(EVIL, 0.5, True, noise=0.012, time="4"),
)


class Page(HTMLParser):
    """Counts what begins, and sees that all of it ends."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open, "left open"

    def handle_starttag(self, tag: str, attributes: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attributes if name.startswith("on") or name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_from_the_log_alone(tmp_path: Path) -> None:
    log, out = Log(tmp_path / "log.jsonl"), tmp_path / "pages" / "tuning.html"
    for record in (*RECORDS, replace(RECORDS[0], fingerprint=replace(PLACE, cpu="other"))):
        log.append(record)
    out.parent.mkdir()
    out.write_text("an older one")
    result = moec("log", "report", "--log", log.path, "-o", out)
    assert result.exit_code == 0, result.output
    assert [*out.parent.iterdir()] == [out]
    page = Page(out.read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.tags.count("svg") == page.tags.count("section") == 2
    assert page.tags.count("circle") == len(RECORDS) + 1
    said = " ".join(page.text.split())
    assert f"{EVIL} k=64 f32" in said
    assert "log: the best of 11 tried" in said
    assert "2.000x the default's speed, ±1.2%" in said
    assert "11 ok, 1 wrong" in said
    assert f"1 wrong: {EVIL}" in said
    assert "default: none of 1 tried beat it" in said
    filtered = moec("log", "report", "--log", log.path, "-o", out, "--cpu", "other")
    assert filtered.exit_code == 0
    assert Page(out.read_text()).tags.count("section") == 1


def test_history_is_a_stair_of_what_won() -> None:
    assert tuning_report.steps(RECORDS) == [(0, 1.0), (11, 1.0), (11, 2.0), (11, 2.0)]
    assert tuning_report.steps([tried(1, None)]) == []


def test_the_knobs_of_the_winner_beside_the_default() -> None:
    best = tried(4, 0.5, True, larger={17: {"tile": 1, EVIL: 1}}, ratios={1: 0.25, 17: 1.0})
    table = tuning_report.schedules([*RECORDS, best], best)
    assert "<th>default 1+ tokens</th><th>1-16 tokens</th><th>17+ tokens</th>" in table
    assert "<th>tile</th><td>1</td><td class=other>4</td><td>1</td>" in table


def test_a_log_without_a_winner(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    out = tmp_path / "page.html"
    assert moec("log", "report", "--log", log.path, "-o", out).exit_code == 0
    assert "no records" in out.read_text()
    log.append(tried(2, None))
    assert moec("log", "report", "--log", log.path, "-o", out).exit_code == 0
    assert "default: nothing ran" in Page(out.read_text()).text


def test_json_events_to_a_file_leave_stderr_to_people(tmp_path: Path) -> None:
    said: list[str] = []
    with watching(Bar(), str(tmp_path / "events"), said.append) as listener:
        listener(DONE)
    assert json.loads((tmp_path / "events").read_text())["kernel"] == DONE.kernel
    assert len(said) == 1
