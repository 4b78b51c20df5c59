"""Putting the Ascend toolchain where toolchain.find() looks: wheels by their hashes, and MLIR.

Its environment is made where it stays, since it cannot be moved. What says that it is whole is written last:
an installation that was killed is not one, and the next begins anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ..base import CannotBuild
from . import debs, toolchain

PYTHON = (3, 11)  # what the wheels are for
# Of the vendor's wheel, for SoCs that soc.py does not have.
UNUSED = ("bin/*-a5", "lib/*-a5.bc", "lib/*.c310.bc")
Told = Callable[[str], None]


def install(told: Told = lambda line: None, python: str | None = None) -> dict[str, Any]:
    """Installs it unless it is there: what the marker says of it, and `already`: whether it was there.

    told: is called with a line for each step; python: a Python 3.11, else one is searched for. Raises
    CannotBuild.
    """
    root = toolchain.folder()
    if toolchain.missing(root) is None:
        return {"already": True, "folder": str(root), **toolchain.marker(root)}
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with alone(root, told) as lock:
            if toolchain.missing(root) is None:  # by who was waited for
                return {"already": True, "folder": str(root), **toolchain.marker(root)}
            return {"already": False, "folder": str(root), **installed(root, told, python, lock)}
    except OSError as error:
        where = error.filename or root
        raise CannotBuild(f"the Ascend toolchain cannot be installed: {where}: {error.strerror}") from None


def installed(root: Path, told: Told, python: str | None, lock: int) -> dict[str, Any]:
    """Makes the folder anew and gives what its marker says."""
    began = time.monotonic()
    cleared(root)
    found, version = python_for(python)
    told(f"Python {version}: {found}")
    packages = toolchain.pinned()
    told(f"from pip, by their hashes: {', '.join(map(' '.join, packages.items()))}")
    install_wheels(root, found, lock)
    mlir = debs.provide(root, told, partial(run, lock))
    probe(root, lock)
    facts = {
        **{"pins": toolchain.pins(), "packages": packages, "python": version, **mlir},
        "bytes": sum(file.lstat().st_size for file in root.rglob("*") if not file.is_dir()),
        "seconds": round(time.monotonic() - began, 1),
    }
    half = root / f".{toolchain.MARKER}"
    half.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    half.replace(root / toolchain.MARKER)
    return facts


def cleared(root: Path) -> None:
    """An empty folder; what says that it is whole goes first."""
    (root / toolchain.MARKER).unlink(missing_ok=True)
    if root.exists():
        shutil.rmtree(root)
    root.mkdir()


@contextmanager
def alone(root: Path, told: Told) -> Iterator[int]:
    """Nobody else installs: a lock that the programs started here hold as well, should this one be killed."""
    with (root.parent / f".{root.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            told("another installation is under way; waiting for its end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def python_for(named: str | None) -> tuple[str, str]:
    """A Python 3.11 that can make environments, and its version. Raises CannotBuild with what to install."""
    program = "python3.11"
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    found = [sys.executable, *filter(None, (shutil.which(program, path=folder) for folder in folders))]
    for candidate in [named] if named else dict.fromkeys(found):
        try:
            code = "import sys, venv; print('%d.%d.%d' % sys.version_info[:3])"
            done = subprocess.run([candidate, "-I", "-c", code], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            continue
        version = done.stdout.strip()
        if not done.returncode and version.startswith("{}.{}.".format(*PYTHON)):
            return candidate, version
    seen = f"{named} is none" if named else f"neither this Python nor a {program} on PATH is one"
    raise CannotBuild(
        f"the Ascend toolchain needs Python 3.11, which its wheels are for, and {seen}; install it (on "
        "Debian 12 and Ubuntu 22.04: apt-get install python3.11-venv), or name one with --python"
    )


def install_wheels(root: Path, python: str, lock: int) -> None:
    """The environment with what is pinned, less what is for other SoCs. It has no pip of its own."""
    run(lock, [python, "-I", "-m", "venv", "--without-pip", str(root / "venv")])
    found = toolchain.inside(root)
    options = ("--require-hashes", "--no-deps", "--only-binary=:all:", "--quiet", "--no-input")
    pip = [sys.executable, "-m", "pip", "--python", str(found.python), "--disable-pip-version-check"]
    done = started(lock, [*pip, "install", *options, "-r", str(toolchain.PINS)])
    if done.returncode:
        raise CannotBuild(refused_wheels(done.stderr))
    for pattern in UNUSED:
        for file in toolchain.inside(root).vendor.parent.glob(pattern):
            file.unlink()


def refused_wheels(said: str) -> str:
    """Why pip did not install what is pinned, from what it said."""
    if "DO NOT MATCH THE HASHES" in said:
        words = [line.split()[0] for line in said.splitlines() if "(from" in line]
        return f"a package is not the one that {toolchain.PINS.name} names: {', '.join(words)} was refused"
    if "No module named pip" in said:
        return f"{sys.executable} has no pip, which installs the toolchain: run its -m ensurepip first"
    lines = [line.removeprefix("ERROR: ") for line in said.strip().splitlines() if "WARNING" not in line]
    return (
        f"pip could not install the toolchain: {lines[-1] if lines else 'it said nothing'}; it needs PyPI, "
        "or another index in pip's own configuration"
    )


def probe(root: Path, lock: int) -> None:
    """Everything starts. Raises CannotBuild with what does not, and what it said."""
    found = toolchain.inside(root)
    for command in (
        [str(found.python), "-I", "-c", "import triton.backends.compiler, numpy, pybind11"],
        [str(found.vendor / "bishengir-compile"), "--version"],
        *([str(found.mlir / program), "--version"] for program in toolchain.PROGRAMS),
    ):
        run(lock, command, libraries=found.libraries)


def run(lock: int, command: Sequence[str], folder: Path | None = None, libraries: Path | None = None) -> str:
    """What a program said. Raises CannotBuild where it fails."""
    done = started(lock, command, folder, libraries)
    if done.returncode:
        last = (done.stderr or done.stdout).strip()[-1000:]
        raise CannotBuild(f"{shlex.join(command)} failed with status {done.returncode}: {last}")
    return done.stdout


def started(
    lock: int, command: Sequence[str], folder: Path | None = None, libraries: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A program that has ended; it was run in that folder and with the libraries of another."""
    environment = os.environ | {"LC_ALL": "C"} | ({"LD_LIBRARY_PATH": str(libraries)} if libraries else {})
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=environment, pass_fds=(lock,)
    )
