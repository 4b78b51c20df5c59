"""What tests of the Ascend runtime build: the stand-in for ACL, and a library with objects for it."""

from __future__ import annotations

from pathlib import Path

from moec.targets import native
from moec.targets.ascend.build import EXPORTS, RUNTIME

from .ascend_table import FUNCTIONS, KERNELS, TABLE
from .stand_in_objects import Function, write

SOURCE = Path(__file__).parent / "stand_in_acl.cc"


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
