"""Where the Ascend toolchain is: an environment of its own, never imported, driven by files and pipes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..base import CannotBuild

INSTALL = "run: moec toolchain install ascend"


@dataclass(frozen=True, slots=True)
class Toolchain:
    """The toolchain's own Python, with Triton for Ascend in it, and the folders of two compilers' programs.

    python: of the environment; vendor: has bishengir-compile; mlir: has mlir-opt, mlir-translate and llc.
    libraries: where the programs in mlir find theirs.
    """

    python: Path
    vendor: Path
    mlir: Path
    libraries: Path


def folder() -> Path:
    """Where `moec toolchain install ascend` puts it: below $XDG_DATA_HOME, by default ~/.local/share."""
    base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "moec" / "toolchains" / "ascend"


def find() -> Toolchain:
    """The toolchain that is installed. Raises CannotBuild where there is none, with what to do."""
    root = folder()
    vendors = sorted(root.glob("venv/lib/python3.*/site-packages/ascendnpuir/bin"))
    python, mlir = root / "venv" / "bin" / "python", root / "llvm" / "usr" / "lib" / "llvm-19" / "bin"
    if not (vendors and python.exists() and (mlir / "mlir-opt").exists()):
        raise CannotBuild(f"the Ascend toolchain is not installed in {root}; {INSTALL}")
    return Toolchain(python, vendors[0], mlir, root / "llvm" / "usr" / "lib" / "x86_64-linux-gnu")
