"""Huawei's compiler, as far as it goes without CANN: from linalg to HIVM with its memory planned.

bishengir-compile ends with a status that says nothing: without hivmc it always fails in the end. What it
leaves in its folder of temporaries tells whether it came so far.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from . import cache
from .lowering import Linalg
from .soc import Soc
from .toolchain import find

# Of the vendor's own call for Triton kernels; a step may change some.
OPTIONS: Mapping[str, int] = {
    "enable-auto-multi-buffer": 1,
    "enable-auto-bind-sub-block": 1,
    "enable-hfusion-compile": 1,
    "enable-hivm-compile": 1,
    "enable-triton-kernel-compile": 1,
}
SYNCHRONISED = "hivm-insert-free-lock-var-before-return"  # the pass whose result has loops and all waits
DUMPED = "// -----// IR Dump After InsertFreeLockVarBeforeReturn"
BITS = {"f64": 64, "f32": 32, "f16": 16, "bf16": 16, "i64": 64, "i32": 32, "i16": 16, "i8": 8, "i1": 1}
BUFFER = re.compile(
    r"pointer_cast\((%[-\w]+)[^)]*\)[^:\n]*: memref<((?:\d+x)*)(\w+), #hivm.address_space<(\w+)>"
)
CHANGED = re.compile(r"\bset ([-\w]+) to (true|false)")  # in a note: an option
SPACES = {"ub": "UB", "cbuf": "L1", "cc": "L0C"}
TASKS = {1: "aiv", 2: "aic", 3: "mix", 4: "mix"}  # the tens of a task type; its units: vector cores to a cube
LIMIT_S = 120
# Words of every call, rejected or not: there is no hivmc here.
USUAL = re.compile(r"hivmc|Failed to run BiShengIR pipeline", re.IGNORECASE)


class Rejected(ValueError):
    """The compiler's own words why a kernel does not fit, or cannot be."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A kernel after the vendor's compiler. used: bytes planned by memory (UB, L1, L0C).

    hivm: its last form that can be read, what hivmc takes. workspace: bytes a block needs; notes: what the
    compiler changed on its own, such as dropping double buffers. For who launches it, task: "aiv" on vector
    cores, "aic" on cube cores or "mix" on both; locks: how many 8-byte locks all blocks share, and what they
    hold at first. command: of the vendor's compiler, without folders.
    """

    hivm: str
    used: Mapping[str, int]
    workspace: int
    notes: tuple[str, ...]
    task: str = ""
    locks: int = 0
    lock_value: int = 0
    command: tuple[str, ...] = ()

    @property
    def became(self) -> dict[str, int]:
        """The options that the compiler changed on its own: with any, it is another schedule than was asked
        for, and asking for these makes the same.
        """
        return {name: int(value == "true") for note in self.notes for name, value in CHANGED.findall(note)}


def command(soc: Soc, options: Mapping[str, int] | None = None) -> tuple[str, ...]:
    """How the vendor's compiler is called, without folders."""
    return ("bishengir-compile", "kernel.mlir", *arguments(soc, options or {}), "-o", "kernel")


def arguments(soc: Soc, options: Mapping[str, int]) -> list[str]:
    """What bishengir-compile is called with, beside files."""
    merged = {**OPTIONS, **options}
    return [f"--target={soc.name}", *(f"--{name}={spelled(value)}" for name, value in merged.items())]


def spelled(value: int) -> str:
    """An option's value: 0 and 1 are false and true."""
    return {0: "false", 1: "true"}.get(value, str(value))


def planned(linalg: Linalg, soc: Soc, options: Mapping[str, int] | None = None) -> Plan:
    """Raises Rejected."""
    called = command(soc, options)
    made = kept("planned", linalg, called, _plan)
    if made["hivm"] is None:
        raise Rejected(why(made["said"]))
    hivm = str(made["hivm"])
    return Plan(
        hivm,
        used(hivm),
        workspace(hivm),
        _notes(made["said"]),
        task(hivm),
        told(hivm, "sync_block_lock_num") or 0,
        told(hivm, "sync_block_lock_init") or 0,
        called,
    )


def synchronised(linalg: Linalg, soc: Soc, options: Mapping[str, int] | None = None) -> str:
    """HIVM in MLIR's generic form before its last lowering: what the interpreter runs. Raises Rejected."""
    made = kept("synchronised", linalg, command(soc, options), _synchronise)
    if made["hivm"] is None:
        raise Rejected(why(made["said"]))
    return str(made["hivm"])


def kept(
    kind: str,
    linalg: Linalg,
    called: Sequence[str],
    make: Callable[[Linalg, Sequence[str]], dict[str, Any]],
) -> dict[str, Any]:
    """hivm: what came of a call, or None; said: what the compiler said. From the cache where it is there."""

    def encoded() -> bytes:
        result = make(linalg, called)
        text = json.dumps(result).encode()
        located = result["hivm"] is not None or "loc(" in result["said"]
        if result["status"] < 0 or not located:  # it was ended, or found no room: not the kernel's fault
            raise cache.Passing(text)
        return text

    found: dict[str, Any] = json.loads(cache.kept(kind, (linalg.text, *called), encoded))
    return found


def _plan(linalg: Linalg, called: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="moec-") as name:
        folder = Path(name)
        status, said = _compile(folder, linalg, [*called, f"--save-temps={folder / 'temps'}"])
        made = folder / "temps" / "module.hivm.opt.mlir"
        return {"status": status, "said": said, "hivm": made.read_text() if made.exists() else None}


def _synchronise(linalg: Linalg, called: Sequence[str]) -> dict[str, Any]:
    dump = (f"--mlir-print-ir-after={SYNCHRONISED}", "--mlir-print-ir-module-scope")
    with tempfile.TemporaryDirectory(prefix="moec-") as name:
        folder = Path(name)
        status, said = _compile(folder, linalg, [*called, *dump, "--mlir-disable-threading"])
        words, mark, rest = said.partition(DUMPED)
        if not mark:
            return {"status": status, "said": said, "hivm": None}
        text = re.split(r"\n\[(?:ERROR|NOTE)\]|\nloc\(|\n// -----//", rest[rest.index("\n") + 1 :])[0]
        (folder / "sync.mlir").write_text(text)
        generic = [str(find().vendor / "bishengir-opt"), "sync.mlir", "--mlir-print-op-generic"]
        done = subprocess.run(generic, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        words = f"error: loc(sync.mlir) the compiler cannot read its own output again: {done.stderr[:300]}"
        return {"status": done.returncode, "said": words, "hivm": None}
    return {"status": status, "said": words, "hivm": done.stdout}


def _compile(folder: Path, linalg: Linalg, called: Sequence[str]) -> tuple[int, str]:
    """Its status (negative: it was ended) and what it said."""
    (folder / "kernel.mlir").write_text(linalg.text)
    program = str(find().vendor / called[0])
    try:
        done = subprocess.run(
            [program, *called[1:]], cwd=folder, capture_output=True, text=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return -1, f"error: no end after {LIMIT_S} s"
    return done.returncode, (done.stderr + done.stdout).replace(f"{folder}{os.sep}", "")


def why(said: str) -> str:
    """The compiler's words for a rejection, without what it says of every kernel."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not USUAL.search(line)]
    errors = [line for line in lines if "error" in line.lower()] or lines
    words = " ".join(re.sub(r'loc\("([^"]+)":(\d+):(\d+)\)', r"\1:\2:\3", line) for line in errors)
    return words[:600] or "the vendor's compiler said nothing"


def _notes(said: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in said.splitlines() if "[NOTE]" in line)


def used(hivm: str) -> dict[str, int]:
    """Bytes of each memory up to the end of the last buffer planned in it. Raises ValueError."""
    places = {
        name: int(value) for name, value in re.findall(r"(%[-\w]+) = arith.constant (-?\d+) : i64", hivm)
    }
    found: dict[str, int] = {}
    casts = BUFFER.findall(hivm)
    if len(casts) != hivm.count("pointer_cast(") or not {type_ for _, _, type_, _ in casts} <= set(BITS):
        raise ValueError(
            "the vendor's compiler planned buffers that cannot be read; expected pointer_cast(%c0_i64) : "
            "memref<16xf32, #hivm.address_space<ub>>"
        )
    for place, shape, type_, space in casts:
        end = places.get(place, 0) + (prod(map(int, shape.split("x")[:-1])) * BITS[type_] + 7) // 8
        found[SPACES.get(space, space)] = max(found.get(SPACES.get(space, space), 0), end)
    return found


def workspace(hivm: str) -> int:
    """Bytes of device memory that a block needs beside its operands."""
    return told(hivm, "workspace_shape") or 0


def task(hivm: str) -> str:
    """Which cores it is for: "aiv", "aic" or "mix"; nothing where the compiler does not say."""
    return TASKS.get((told(hivm, "task_type") or 0) // 10, "")


def told(hivm: str, what: str) -> int | None:
    """What a function of the module answers the host: a constant; None where there is no such function."""
    found = re.search(
        rf"func\.func @\w+_infer_{what}_function\(\)[^\n]*\n\s*%\S+ = arith\.constant (-?\d+) : \w+\s+return",
        hivm,
    )
    return int(found.group(1)) if found else None
