"""The process that lowers Triton: what becomes of it when a kernel breaks it, and that none is left behind.

Kernels come from a copy of the folder, where each test writes what it needs; nothing is in the cache.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moec.targets.ascend import lowering, soc, space
from moec.targets.base import CannotBuild

from .ascend_models import kernel

B3 = soc.SOCS[0]
RMS = kernel("rms_norm n=24 width=46 start=0 f32")
STEP = space.steps(RMS, space.space(RMS, B3).default, B3)[0]
Write = Callable[[str, str], Any]


@pytest.fixture
def write(ascend_toolchain: Any, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file of kernels and gives the step whose function is in it."""
    folder = tmp_path / "kernels"
    shutil.copytree(lowering.FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(lowering, "FOLDER", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(name: str, text: str) -> Any:
        (folder / f"{name}.py").write_text(text)
        return replace(STEP, function=f"{name}:rms_norm")

    return write


@pytest.fixture
def lower() -> Iterator[lowering.Lowering]:
    """A process of this test's own."""
    own = lowering.Lowering()
    yield own
    own.close()


def process_of(own: lowering.Lowering) -> int:
    """Its number."""
    assert own._process is not None
    return own._process.pid


def is_alive(pid: int) -> bool:
    """Whether it runs; one that has ended and is not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def expect_ended(pid: int) -> None:
    """It ends by itself in a while."""
    limit = time.monotonic() + 20
    while is_alive(pid):
        assert time.monotonic() < limit, f"process {pid} is left"
        time.sleep(0.05)


def test_a_new_process_takes_the_place_of_one_that_died(write: Write, lower: lowering.Lowering) -> None:
    first = lower(STEP, B3)
    died = process_of(lower)
    os.kill(died, signal.SIGKILL)
    expect_ended(died)
    assert lower(replace(STEP, constants={**STEP.constants, "BLOCK": 64}), B3).name != first.name
    assert process_of(lower) != died


def test_a_kernel_that_ends_the_process_is_named_with_its_last_words(
    write: Write, lower: lowering.Lowering
) -> None:
    deadly = "import os, sys\nprint('no more', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 11)\n"
    step = write("deadly", deadly)
    for _ in range(2):  # it is not kept: the next may be another
        with pytest.raises(CannotBuild, match=r"deadly:rms_norm with .* status -11 and the words 'no more'$"):
            lower(step, B3)
    assert "rms_norm" in lower(STEP, B3).name


ENDLESS = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
open({told!r}, "w").write(str(child.pid))
time.sleep(600)
"""


def test_one_that_gives_no_answer_is_ended_with_what_it_started(
    write: Write, lower: lowering.Lowering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower(STEP, B3)
    monkeypatch.setattr(lowering, "LIMIT_S", 1.5)
    step = write("endless", ENDLESS.format(told=str(tmp_path / "told")))
    with pytest.raises(CannotBuild, match=r"endless:rms_norm with .*no answer in 1\.5 s and was ended with"):
        lower(step, B3)
    assert not is_alive(process_of(lower))
    expect_ended(int((tmp_path / "told").read_text()))
    monkeypatch.undo()


UNKNOWN = """
import triton
import triton.language as tl


@triton.jit
def rms_norm(x, w, y, m, eps, N: tl.constexpr, WIDTH: tl.constexpr, START: tl.constexpr, ROWS: tl.constexpr,
             BLOCK: tl.constexpr):
    tl.store(y, elsewhere)
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def rms_norm(:\n", r"SyntaxError: invalid syntax \(broken\.py, line 1\)$"),
        ("import triton\n", "AttributeError: module 'kernels.broken' has no attribute 'rms_norm'$"),
        (UNKNOWN, r"CompilationError: at \d+:16: NameError\('elsewhere is not defined'\)$"),
    ],
    ids=["it is no Python", "it has no such function", "Triton refuses it"],
)
def test_an_error_in_a_kernels_source_is_one_sentence(
    write: Write, lower: lowering.Lowering, text: str, words: str
) -> None:
    step = write("broken", text)
    with pytest.raises(CannotBuild, match=f"^broken:rms_norm with {{'N': 24, .*}}: {words}"):
        lower(step, B3)
    asked = process_of(lower)
    assert "rms_norm" in lower(STEP, B3).name
    assert process_of(lower) == asked, "an error is an answer: the process goes on"


def test_changed_kernels_are_read_by_a_new_process(write: Write, lower: lowering.Lowering) -> None:
    step = write("copied", (lowering.FOLDER / "rows.py").read_text())
    first = lower(step, B3)
    asked = process_of(lower)
    assert lower(step, B3) == first
    assert process_of(lower) == asked
    write("copied", (lowering.FOLDER / "rows.py").read_text().replace("w,", "weight,", 1))
    with pytest.raises(CannotBuild, match=r"copied:rms_norm with .*: "):
        lower(step, B3)
    assert process_of(lower) != asked
    assert not is_alive(asked)


def test_a_fork_has_a_process_of_its_own_and_leaves_the_other(write: Write, lower: lowering.Lowering) -> None:
    lower(STEP, B3)
    asked = process_of(lower)
    context = multiprocessing.get_context("fork")
    hears, says = context.Pipe(False)

    def forked() -> None:
        lower(replace(STEP, constants={**STEP.constants, "BLOCK": 128}), B3)
        says.send(process_of(lower))
        lower.close()

    child = context.Process(target=forked)
    child.start()
    assert hears.poll(60)
    own = hears.recv()
    child.join()
    assert own != asked
    assert not is_alive(own)
    assert is_alive(asked)
    lower(replace(STEP, constants={**STEP.constants, "BLOCK": 64}), B3)
    assert process_of(lower) == asked


ASKS = """
import sys
from pathlib import Path
from moec.targets.ascend import lowering, soc, space
from moec.targets.base import Kernel

soc = soc.SOCS[0]
kernel = Kernel("rms_norm", (("n", 24), ("width", 46), ("start", 0)), (("eps", 1e-6),), "f32")
lowering.lowering()(space.steps(kernel, space.space(kernel, soc).default, soc)[0], soc)
print(lowering.lowering()._process.pid, flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("how", ["by itself", "killed"])
def test_none_is_left_when_who_asked_has_ended(write: Write, how: str) -> None:
    asking = subprocess.Popen(
        [sys.executable, "-c", ASKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert asking.stdout is not None
    lowers = int(asking.stdout.readline())
    assert is_alive(lowers)
    if how == "killed":
        asking.kill()
    asking.communicate("\n" if how == "by itself" else None)
    expect_ended(lowers)


@pytest.mark.parametrize("crashes", [1, 2])
def test_a_tool_that_crashes_is_asked_once_more(crashes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of what Python says of it tells the cause, however long the command is."""
    died = {"error": f"CalledProcessError: Command '{'x' * 900}' died with <Signals.SIGSEGV: 11>."}
    answers = [*[died] * crashes, {"linalg": "module {}", "name": "f", "mixed": False}]
    own = lowering.Lowering()
    monkeypatch.setattr(own, "_ready", lambda _: None)
    monkeypatch.setattr(own, "_ask", lambda *_: answers.pop(0))
    request = '{"function": "matmul:tile", "constants": {}}'
    if crashes == 1:
        assert b"module" in own._answer(request, "")
    else:
        with pytest.raises(CannotBuild, match=r"matmul:tile with .* \.\.\. .*SIGSEGV"):
            own._answer(request, "")
    assert len(answers) == (crashes == 2)
