"""Triton functions to linalg, by the toolchain's own Python in a process beside this one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..base import CannotBuild
from .program import Step
from .soc import Soc
from .toolchain import find

LONGEST_NAME = 49  # of a kernel, for the vendor's runtime
MIX_MODE = re.compile(r', mix_mode\s*=\s*"[^"]*"')  # what comes after Triton refuses it


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
    """A process of the toolchain's Python. One request at a time."""

    def __init__(self) -> None:
        here = Path(__file__).parent
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [find().python, "-P", "-m", "kernels"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": str(here), "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def __call__(self, step: Step, soc: Soc) -> Linalg:
        """Raises CannotBuild with Triton's words."""
        types = {name: triton_type(argument) for name, argument in step.arguments.items()}
        request = {
            "function": step.function,
            "types": types,
            "constants": dict(step.constants),
            "soc": soc.name,
        }
        answer = self._ask(request)
        if "error" in answer:
            raise CannotBuild(f"{step.function} with {dict(step.constants)}: {answer['error']}")
        text = MIX_MODE.sub("", answer["linalg"])
        name = unique(answer["name"], text)
        return Linalg(name, text.replace(f"@{answer['name']}(", f"@{name}("), answer["mixed"])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            try:
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except OSError:
                line = ""
        if not line:
            return {"error": f"the toolchain's process died with status {self._process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer


@cache
def lowering() -> Lowering:
    """This process's own."""
    return Lowering()


def triton_type(argument: Any) -> str:
    """An argument's type in Triton's words: of memory with a star."""
    return f"*{argument.type}" if hasattr(argument, "port") else str(argument.type)


def unique(name: str, text: str) -> str:
    """The name of a function with these contents."""
    return f"{name[: LONGEST_NAME - 9]}_{sha256(text.encode()).hexdigest()[:8]}"
