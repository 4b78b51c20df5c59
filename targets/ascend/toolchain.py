"""Where the Ascend toolchain is: an environment of its own, never imported, driven by files and pipes.

What belongs to it stands in pins.txt (wheels) and pins.json (MLIR). installation.py puts it here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..base import CannotBuild

INSTALL = "run: moec toolchain install ascend"
PINS = Path(__file__).parent / "pins.txt"  # for pip
MLIR_PINS = Path(__file__).parent / "pins.json"
MARKER = "installed.json"  # written last: a folder without it is not installed
PROGRAMS = ("mlir-opt", "mlir-translate", "opt", "llc")


class NotInstalled(CannotBuild):
    """There is no toolchain, or another one than these sources need."""


@dataclass(frozen=True, slots=True)
class Toolchain:
    """The toolchain's own Python, with Triton for Ascend in it, and the folders of two compilers' programs.

    python: of the environment; vendor: has bishengir-compile; mlir: has mlir-opt, mlir-translate and llc.
    libraries: where the programs in mlir find theirs. digest: of the versions of all these.
    """

    python: Path
    vendor: Path
    mlir: Path
    libraries: Path
    digest: str = ""


def folder() -> Path:
    """Where `moec toolchain install ascend` puts it: below $XDG_DATA_HOME, by default ~/.local/share."""
    base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "moec" / "toolchains" / "ascend"


def find() -> Toolchain:
    """The toolchain that is installed. Raises NotInstalled where there is none, with what to do."""
    root = folder()
    if why := missing(root):
        raise NotInstalled(f"{why}; {INSTALL}")
    return inside(root, digest_of(marker(root)))


def inside(root: Path, digest: str = "") -> Toolchain:
    """Where things are in the toolchain's folder."""
    vendors = sorted(root.glob("venv/lib/python3.*/site-packages/ascendnpuir/bin"))
    vendor = vendors[0] if vendors else root / "venv" / "none"
    return Toolchain(root / "venv/bin/python", vendor, root / "llvm/bin", root / "llvm/lib", digest)


def missing(root: Path) -> str | None:
    """Why the toolchain in that folder cannot be used, or None."""
    facts = marker(root)
    if not facts:
        return f"the Ascend toolchain is not installed in {root}"
    if facts.get("pins") != pins():
        return f"the Ascend toolchain in {root} is another one than this version of moec needs"
    found = inside(root)
    programs = [found.python, found.vendor / "bishengir-compile", *(found.mlir / name for name in PROGRAMS)]
    gone = [str(program) for program in programs if not program.exists()]
    return f"the Ascend toolchain is damaged: {gone[0]} is gone" if gone else None


def marker(root: Path) -> dict[str, Any]:
    """What the installation wrote about itself; nothing where there is none, or half of one."""
    try:
        facts = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


@cache
def pins() -> str:
    """A hash of all that is pinned."""
    return sha256(PINS.read_bytes() + MLIR_PINS.read_bytes()).hexdigest()


def digest_of(facts: Mapping[str, Any]) -> str:
    """Of what shapes its output: what is pinned, and which MLIR is there."""
    return sha256(f"{facts.get('pins')} {facts.get('mlir')}".encode()).hexdigest()


def pinned() -> dict[str, str]:
    """The pinned packages' versions by name."""
    return dict(re.findall(r"^([\w-]+)==(\S+)", PINS.read_text(encoding="utf-8"), re.MULTILINE))


def facts() -> dict[str, str | bool]:
    """For people and `moec devices`, without anything being run.

    installed: whether it can be used; missing: why not, and what to do, else ""; folder: where it is. Then
    versions where it is installed: those of the packages by their names, and mlir: its version.
    """
    root = folder()
    why, found = missing(root), marker(root)
    told: dict[str, str | bool] = {
        "installed": why is None,
        "missing": f"{why}; {INSTALL}" if why else "",
        "folder": str(root),
    }
    return told if why else {**told, **found.get("packages", {}), "mlir": str(found.get("mlir", ""))}


def versions() -> dict[str, str]:
    """Of what is in it, by package; nothing where it is not installed."""
    told = facts()
    others = ("installed", "missing", "folder")
    return {name: str(value) for name, value in told.items() if told["installed"] and name not in others}
