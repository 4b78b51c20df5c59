"""Kernels that crash: the compiler says which one it was, and what was there before stays."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from command import leaves_alone, moec, printed

from moec.compiler import proof
from moec.compiler.exercise import Ended, Exercise
from moec.compiler.manifest import BadArtifact
from moec.compiler.source import Source
from moec.targets.ascend import build as ascend
from moec.targets.cpu import build as cpu

TOY = """
import torch


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = torch.nn.Linear(64, 48, bias=False), torch.nn.Linear(48, 80, bias=False)

    def forward(self, x):
        return self.two(self.one(x))


def model():
    return Two(), (torch.randn(5, 64),)
"""
CRASHING, SOUND = "linear_k48_n80", "linear_k64_n48"  # the plan's first kernel and its second
# Of the first kernel: a part of the table, and in it where results go on Ascend, its functions on the CPU.
BAD = {
    "ascend": (r"static void step0_[^}]*", r"run\.y\(0\)", "static_cast<void*>(nullptr)"),
    "cpu": (r"functions0_1\[\] = .*", r"\(\w+\)", "(uintptr_t(1))"),
}
BUILDS = {"ascend": ascend, "cpu": cpu}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that Python finds, with two kernels."""
    (tmp_path / "crashing_toy.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    return "crashing_toy:model"


def crashing(target: str, patch: pytest.MonkeyPatch) -> None:
    """Has the target write libraries whose first kernel crashes."""
    write, (part, good, bad) = BUILDS[target].table, BAD[target]

    def table(*arguments: Any) -> str:
        text, count = re.subn(part, lambda found: re.sub(good, bad, found[0]), write(*arguments))
        assert count
        return text

    patch.setattr(BUILDS[target], "table", table)


@pytest.mark.parametrize("target", ["cpu", "ascend"])
def test_a_kernel_that_crashes_is_named_and_the_artifact_before_it_stays(
    target: str,
    toy: str,
    home: Path,
    ascend_toolchain: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    command = ("compile", toy, "--target", target, "-o", out, "--force")
    assert printed(*command)["proof"]["mean_error"] < 1e-2
    crashing(target, monkeypatch)
    said = leaves_alone(out, *command)
    assert re.fullmatch(
        rf"moec: the artifact of {toy} is wrong: its kernel {CRASHING}_\w+ ended the process that ran it "
        r"\(SIGSEGV\); nothing was written\. --no-prove keeps the artifact",
        said,
    )
    assert SOUND not in said
    assert not list(tmp_path.glob(".out.*")), "no half an artifact either"
    assert moec(*command, "--no-prove").exit_code == 0


def test_a_process_that_the_system_kills_is_no_kernels_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(run: Exercise, *rest: Any) -> Any:
        run._process.kill()
        return run("simulated")

    monkeypatch.setattr(proof, "proven", killed)
    with pytest.raises(proof.NotProven, match=r"of some model could not be proven: .* where memory is short"):
        proof.prove(tmp_path, Source("some model", "module"), None)


def test_what_goes_wrong_elsewhere_is_raised_here(tmp_path: Path) -> None:
    with Exercise(tmp_path) as run:
        for _ in range(2):  # it goes on
            with pytest.raises(BadArtifact, match=r"has no manifest\.json"):
                run("simulated")
        with pytest.raises(KeyError, match="unheard"):
            run("unheard")
        run._process.kill()
        with pytest.raises(Ended, match=r"^SIGKILL$"):
            run("simulated")
    assert run._process.returncode is not None
