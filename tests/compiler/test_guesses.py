"""What choices between schedules hang on, where times are computed: of made-up logs, and in a real report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from command import moec, printed

from moec.compiler.conditions import Conditions
from moec.compiler.guesses import guesses
from moec.targets.base import CannotBuild, Flip, Guessing, Kernel, Schedule
from moec.targets.cpu.target import target as cpu
from moec.tuning.fingerprint import Fingerprint, Here
from moec.tuning.log import Log
from moec.tuning.plan import Choice, Plan
from moec.tuning.record import Record

KERNEL = Kernel("linear", (("k", 64), ("n", 32)), (), "bf16")
PLACE = Here(Fingerprint("soc", "simulated soc", 1, "00ff"), {})


@dataclass
class Machine:
    """Guesses one number, on which every choice of tile 3 hangs. asked: what it was asked about."""

    asked: list[Any] = field(default_factory=list)
    guesses: Sequence[str] = ("number",)

    def flips(
        self, kernel: Kernel, point: str, schedules: Sequence[Schedule], trace: str = ""
    ) -> Sequence[Flip]:
        self.asked.append((point, [each["tile"] for each in schedules], trace))
        if kernel.kind != "linear":
            raise CannotBuild("there is no compiler")
        return [Flip("number", 2.0, schedules[1], 0.12345)] if schedules[0]["tile"] == 3 else []


def tried(kernel: Kernel, few: int, many: int, microseconds: Mapping[str, float]) -> Record:
    """A record of one tile for few tokens and one for 17 and more."""
    samples = {point: [each * 1e-6] for point, each in microseconds.items()}
    larger = {17: {"tile": many}} if many != few else {}
    return Record(
        kernel, PLACE.whole, {"tile": few}, "ok", "", samples, 1.0, True, larger=larger, ratios={1: 1.0}
    )


def found(machine: Any, log: Log, choices: Mapping[Kernel, Choice], trace: Path | None = None) -> Any:
    return guesses(Plan(choices), log, PLACE, Conditions(machine, 1, True, None, trace))


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = Log(tmp_path / "log.jsonl")
    for few, many, one, two, middle in (
        (1, 1, 5, 6, 9),
        (2, 3, 4, 6, 8),
        (4, 4, 7, 6, 7.5),
        (5, 5, 9, 6, 30),
    ):
        log.append(tried(KERNEL, few, many, {"m=1": one, "m=2": two, "m=64": middle, "m=1024": 100}))
    log.append(Record(KERNEL, PLACE.whole, {"tile": 9}, "wrong", "is off"))
    return log


CHOICE = Choice({1: {"tile": 2}, 17: {"tile": 3}}, "log", tried=4)


def test_each_schedule_is_compared_with_the_fastest_others_in_its_smallest_call(log: Log) -> None:
    machine = Machine()
    assert isinstance(machine, Guessing)
    told = found(machine, log, {KERNEL: CHOICE}, Path("/some/trace"))
    assert machine.asked == [
        ("m=1", [2, 1, 4, 5], "/some/trace"),
        ("m=64", [3, 4, 1, 5], "/some/trace"),
    ]
    assert told == {
        "constants": ["number"],
        "choices": 2,
        "flips": [
            {
                **{"kernel": "linear k=64 n=32 bf16", "call": "m=64", "schedule": {"tile": 3}},
                **{"constant": "number", "factor": 2.0, "other": {"tile": 4}, "faster": 0.1235},
            }
        ],
    }
    json.dumps(told)


def test_what_was_not_chosen_by_times_hangs_on_no_guess(log: Log) -> None:
    machine = Machine()
    never, other = Choice({1: {"tile": 2}}, "default"), Kernel("rms_norm", (("n", 8),))
    assert found(machine, log, {KERNEL: never}) == {"constants": ["number"], "choices": 0, "flips": []}
    log.append(tried(other, 1, 1, {"m=1": 1}))
    assert found(machine, log, {other: Choice({1: {"tile": 1}}, "default", tried=1)})["choices"] == 0
    assert machine.asked == []
    log.append(tried(other, 2, 2, {"m=1": 2}))
    assert found(machine, log, {other: Choice({1: {"tile": 1}}, "default", tried=2)})["choices"] == 0
    assert machine.asked == [("m=1", [1, 2], "")], "it was asked, and could not tell"


def test_kernels_that_differ_in_reals_are_one(log: Log) -> None:
    machine = Machine()
    same = Kernel(KERNEL.kind, KERNEL.dims, (("scale", 0.5),), KERNEL.dtype)
    assert found(machine, log, {KERNEL: CHOICE, same: CHOICE})["choices"] == 2


def test_a_target_that_measures_guesses_nothing(log: Log) -> None:
    assert found(cpu(), log, {KERNEL: CHOICE}) is None


TOY = """
import torch


def model():
    torch.manual_seed(0)
    return torch.nn.Linear(64, 48, bias=False), (torch.randn(5, 64),)
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that Python finds."""
    (tmp_path / "guessed_toy.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    return "guessed_toy:model"


def test_tuning_by_simulation_says_what_its_choices_hang_on(
    toy: str, home: Path, ascend_toolchain: Any, tmp_path: Path
) -> None:
    log = ("--target", "ascend", "--log", tmp_path / "log.jsonl")
    told = printed("tune", toy, *log, "--budget", "3t")["tuning"]["guesses"]
    assert told["choices"] > 0
    assert {"flag_us", "issue_us", "copy_latency_us"} <= set(told["constants"])
    for each in told["flips"]:
        assert each["constant"] in told["constants"]
        assert each["factor"] in (0.5, 2.0)
        assert each["other"] != each["schedule"]
        assert each["faster"] > 0.01
    out = tmp_path / "out"
    moec("compile", toy, *log, "-o", out, "--no-prove")
    assert printed("explain", out)["tuning"]["guesses"] == told
    said = f"of {told['choices']} choices hang on one of {len(told['constants'])} guessed constants"
    assert said in " ".join(moec("explain", out).stdout.split())
    assert "guessed" in (out / "report.html").read_text()
