"""Huawei's compiler, as far as it goes without CANN: from linalg to HIVM with its memory planned.

bishengir-compile ends with a status that says nothing: without hivmc it always fails in the end. What it
leaves in its folder of temporaries tells whether it came so far.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
BITS = {"f32": 32, "f16": 16, "bf16": 16, "i64": 64, "i32": 32, "i16": 16, "i8": 8, "i1": 1}
SPACES = {"ub": "UB", "cbuf": "L1", "cc": "L0C"}
LIMIT_S = 120


class Rejected(ValueError):
    """The compiler's own words why a kernel does not fit, or cannot be."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A kernel after the vendor's compiler. used: bytes planned by memory (UB, L1, L0C).

    hivm: its last form that can be read, what hivmc takes. workspace: bytes a block needs; notes: what the
    compiler changed on its own, such as dropping double buffers.
    """

    hivm: str
    used: Mapping[str, int]
    workspace: int
    notes: tuple[str, ...]


def arguments(soc: Soc, options: Mapping[str, int]) -> list[str]:
    """What bishengir-compile is called with, beside files."""
    merged = {**OPTIONS, **options}
    return [f"--target={soc.name}", *(f"--{name}={spelled(value)}" for name, value in merged.items())]


def spelled(value: int) -> str:
    """An option's value: 0 and 1 are false and true."""
    return {0: "false", 1: "true"}.get(value, str(value))


def planned(linalg: Linalg, soc: Soc, options: Mapping[str, int] | None = None) -> Plan:
    """Raises Rejected."""
    with tempfile.TemporaryDirectory(prefix="moec-") as name:
        folder = Path(name)
        said = _compile(folder, linalg, arguments(soc, options or {}), [f"--save-temps={folder / 'temps'}"])
        made = folder / "temps" / "module.hivm.opt.mlir"
        if not made.exists():
            raise Rejected(_why(said))
        hivm = made.read_text()
    return Plan(hivm, used(hivm), workspace(hivm), _notes(said))


def synchronised(linalg: Linalg, soc: Soc, options: Mapping[str, int] | None = None) -> str:
    """HIVM in MLIR's generic form before its last lowering: what the interpreter runs. Raises Rejected."""
    dump = [f"--mlir-print-ir-after={SYNCHRONISED}", "--mlir-print-ir-module-scope"]
    with tempfile.TemporaryDirectory(prefix="moec-") as name:
        folder = Path(name)
        said = _compile(folder, linalg, arguments(soc, options or {}), [*dump, "--mlir-disable-threading"])
        _, mark, rest = said.partition("// -----// IR Dump After InsertFreeLockVarBeforeReturn")
        if not mark:
            raise Rejected(_why(said))
        text = re.split(r"\n\[ERROR\]|\nloc\(|\n// -----//", rest[rest.index("\n") + 1 :])[0]
        (folder / "sync.mlir").write_text(text)
        done = subprocess.run(
            [find().vendor / "bishengir-opt", folder / "sync.mlir", "--mlir-print-op-generic"],
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise Rejected(f"the compiler cannot read its own output again: {done.stderr[:300]}")
    return done.stdout


def _compile(folder: Path, linalg: Linalg, options: Sequence[str], more: Sequence[str]) -> str:
    (folder / "kernel.mlir").write_text(linalg.text)
    command = [str(find().vendor / "bishengir-compile"), "kernel.mlir", *options, *more, "-o", "kernel"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"error: no end after {LIMIT_S} s"
    return done.stderr + done.stdout


def _why(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if "error" in line.lower() and "hivmc" not in line]
    return " ".join(lines)[:600] or said.strip()[:600] or "the vendor's compiler said nothing"


def _notes(said: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in said.splitlines() if "[NOTE]" in line)


def used(hivm: str) -> dict[str, int]:
    """Bytes of each memory up to the end of the last buffer planned in it."""
    places = {
        name: int(value) for name, value in re.findall(r"(%c[-\w]+_i64) = arith.constant (-?\d+) : i64", hivm)
    }
    found: dict[str, int] = {}
    casts = re.findall(
        r"pointer_cast\((%[-\w]+)\) : memref<((?:\d+x)*)(\w+), #hivm.address_space<(\w+)>", hivm
    )
    for place, shape, type_, space in casts:
        elements = 1
        for dim in shape.split("x")[:-1]:
            elements *= int(dim)
        end = places.get(place, 0) + (elements * BITS[type_] + 7) // 8
        found[SPACES.get(space, space)] = max(found.get(SPACES.get(space, space), 0), end)
    return found


def workspace(hivm: str) -> int:
    """Bytes of device memory that a block needs beside its operands."""
    found = re.search(r"infer_workspace_shape_function.*?constant (\d+) : index", hivm, re.DOTALL)
    return int(found.group(1)) if found else 0
