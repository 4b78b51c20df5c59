"""Triton functions to linalg, by the toolchain's own Python in a process beside this one."""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from ..base import CannotBuild
from .cache import kept
from .program import Argument, Pointer, Step
from .soc import Soc
from .toolchain import find

FOLDER = Path(__file__).parent / "kernels"
LONGEST_NAME = 49  # of a kernel, for the vendor's runtime
MIX_MODE = re.compile(r', mix_mode\s*=\s*"[^"]*"')  # what comes after Triton refuses it
CRASHED = "died with <Signals"  # how Python tells of a tool that a signal ended
LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Linalg:
    """A Triton function as the vendor's compiler takes it. mixed: whether it needs the cube core.

    text: a module with one function `name`, which is unique to its contents. Its arguments are two pointers
    nobody may use (locks, workspace), the step's, then the grid's three sizes and the block's place in it.
    """

    name: str
    text: str
    mixed: bool


class Lowering:
    """A process of the toolchain's Python, from the first request on. One request at a time.

    Where it died, where this is a fork of who started it, or where kernels were changed, there is a new one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._words: IO[bytes] | None = None
        self._began = ("", 0)  # with which kernels, by whom
        atexit.register(self.close)

    def __call__(self, step: Step, soc: Soc) -> Linalg:
        """Raises CannotBuild with Triton's words."""
        types = {name: triton_type(argument) for name, argument in step.arguments.items()}
        request = {
            "function": step.function,
            "types": types,
            "constants": dict(step.constants),
            "soc": soc.name,
        }
        written_by = sources()
        line = json.dumps(request)
        answer = json.loads(kept("lowered", (line, written_by), lambda: self._answer(line, written_by)))
        text = MIX_MODE.sub("", answer["linalg"])
        name = unique(answer["name"], text)
        return Linalg(name, text.replace(f"@{answer['name']}(", f"@{name}("), answer["mixed"])

    def _answer(self, request: str, written_by: str) -> bytes:
        with self._lock:
            answer = self._ask(self._ready(written_by), request)
            if CRASHED in answer.get("error", ""):  # then it takes the same request
                answer = self._ask(self._ready(written_by), request)
        if "error" in answer:
            asked = json.loads(request)
            raise CannotBuild(f"{asked['function']} with {asked['constants']}: {sentence(answer['error'])}")
        return json.dumps(answer).encode()

    def _ask(self, process: subprocess.Popen[str], request: str) -> Mapping[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        too_late = threading.Event()

        def give_up() -> None:
            too_late.set()
            end(process)

        late = threading.Timer(LIMIT_S, give_up)
        late.start()
        try:
            process.stdin.write(request + "\n")
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline())
            return answer
        except (OSError, ValueError):
            end(process)
            status = process.wait()
            ended = f"gave no answer in {LIMIT_S:g} s and was ended" if too_late.is_set() else "was ended"
            return {"error": f"the toolchain's process {ended} with status {status}{self._last_words()}"}
        finally:
            late.cancel()

    def _ready(self, written_by: str) -> subprocess.Popen[str]:
        """The process, a new one where there is none that can be asked."""
        wanted = (written_by, os.getpid())
        if self._process is None or self._began != wanted or self._process.poll() is not None:
            self.close()
            self._words = tempfile.TemporaryFile()
            self._process = subprocess.Popen(
                [find().python, "-P", "-m", FOLDER.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words,
                text=True,
                process_group=0,  # with what it starts itself, to be ended together
                env=os.environ | {"PYTHONPATH": str(FOLDER.parent), "PYTHONDONTWRITEBYTECODE": "1"},
            )
            self._began = wanted
        return self._process

    def _last_words(self) -> str:
        if self._words is None:
            return ""
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").strip().splitlines()
        return f" and the words {lines[-1]!r}" if lines else ""

    def close(self) -> None:
        """Ends the process, whatever it is doing; that of who was forked is left to him."""
        if self._process is not None and self._began[1] == os.getpid():
            end(self._process)
            self._process.communicate()
        self._process = None


def end(process: subprocess.Popen[str]) -> None:
    """Ends a process with all that it started, unless it is known to have ended."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@cache
def lowering() -> Lowering:
    """This process's own."""
    return Lowering()


def sentence(words: str) -> str:
    """What went wrong in a line, without the listing that Triton puts between place and cause; of a long one,
    such as a command that failed, the middle is left out.
    """
    first, *rest = [line.strip() for line in words.splitlines() if line.strip()] or ["no words"]
    line = " ".join([first, *([line for line in rest if "error" in line.lower()] or rest[-1:])])
    return line if len(line) <= 600 else f"{line[:300]} ... {line[-300:]}"


def sources() -> str:
    """A hash of the kernels' files: others may be lowered to others."""
    digest = sha256()
    for file in sorted(FOLDER.glob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def triton_type(argument: Argument) -> str:
    """An argument's type in Triton's words: of memory with a star."""
    return f"*{argument.type}" if isinstance(argument, Pointer) else argument.type


def unique(name: str, text: str) -> str:
    """The name of a function with these contents."""
    return f"{name[: LONGEST_NAME - 9]}_{sha256(text.encode()).hexdigest()[:8]}"
