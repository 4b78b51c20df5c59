"""What tests of the Ascend runtime build: the stand-in for ACL, and objects for it beside libraries."""

from __future__ import annotations

import json
from pathlib import Path

from moec.targets import native
from moec.targets.ascend.build import EXPORTS, RUNTIME
from moec.targets.ascend.host import object_code
from moec.targets.ascend.lowering import Linalg

from .ascend_table import FUNCTIONS, KERNELS, TABLE
from .stand_in_objects import Function, write

SOURCE = Path(__file__).parent / "stand_in_acl.cc"
LETTERS = {"i32": "i", "fp32": "f"}  # of numbers; all else is memory


def driver(folder: Path) -> Path:
    """libascendcl.so, in a folder for LD_LIBRARY_PATH."""
    flags = ("-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror")
    out = folder / "libascendcl.so"
    native.run(native.find_compiler(), *flags, SOURCE, "-o", out)
    return out


def library(folder: Path) -> Path:
    """The library of ascend_table.py, with its kernels' objects beside it."""
    compiler = native.find_compiler()
    (folder / "kernels.cc").write_text(KERNELS)
    native.run(compiler, *native.COMPILE, "-c", folder / "kernels.cc", "-o", folder / "kernels.o")
    code = (folder / "kernels.o").read_bytes()
    for function in FUNCTIONS:
        finished(function, code, folder / "ascend")
    return native.link(RUNTIME, TABLE, {"kernels.o": code}, EXPORTS, folder / "libmoec_ascend.so")


def finished(function: Function, code: bytes, folder: Path) -> None:
    """NAME.o for the stand-in, of an object for this CPU."""
    on_chip = native.runtime_objects(
        native.find_compiler(), [file for file in RUNTIME if file.name == "on_chip.cc"]
    )
    folder.mkdir(exist_ok=True)
    made = folder / f"{function.name}.host.o"
    made.write_bytes(code)
    write(function, [made, *on_chip], folder)


def finish(folder: Path) -> list[str]:
    """What finish.sh does in an artifact's folder ascend/, for the stand-in; the names of all functions."""
    names = sorted(file.stem for file in folder.glob("*.json"))
    for name in names:
        told = json.loads((folder / f"{name}.json").read_text())
        linalg = Linalg(name, (folder / f"{name}.linalg.mlir").read_text(), told["mixed"])
        arguments = told["launches"][0]["arguments"]
        types = "".join("p" if port(each["is"]) else LETTERS[each["type"]] for each in arguments)
        function = Function(name, types, told["mixed"], told["workspace_bytes_per_block"], told["locks"])
        finished(function, object_code(linalg), folder)
    return names


def port(value: str) -> bool:
    """Whether an argument is memory: an operand, a result or scratch."""
    return value[:1] in "xys" and value[1:].isdigit()
