"""MLIR and LLVM 19 for the toolchain: this machine's own, or Debian's packages, unpacked, not installed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..base import CannotBuild
from .toolchain import MLIR_PINS, PROGRAMS

VERSION = re.compile(r"LLVM version (19\.\S+)")
PACKAGES = {"mlir-19-tools": ("mlir-opt", "mlir-translate"), "llvm-19": ("opt", "llc")}
BY_HAND = "install LLVM and MLIR 19 so that mlir-opt-19, mlir-translate-19, opt-19 and llc-19 are on PATH"
INSTALLING = re.compile(r"^Inst (\S+) \((\S+) .*\[(\w+)\]\)", re.MULTILINE)  # not what would be upgraded
Run = Callable[..., str]  # of a command and, where it matters, its folder


def provide(root: Path, told: Callable[[str], None], run: Run) -> dict[str, Any]:
    """Fills root/llvm: in bin the programs or links to them, in lib their libraries where they have some.

    mlir: the version; from: where it comes from; debs: by package how it was checked. Raises CannotBuild.
    """
    (root / "llvm" / "bin").mkdir(parents=True)
    (root / "llvm" / "lib").mkdir()
    here = programs_here()
    for name, program in here.items():
        (root / "llvm" / "bin" / name).symlink_to(program)
    lacking = [package for package, names in PACKAGES.items() if not set(names) <= set(here)]
    checked = unpacked(root, lacking, told, run) if lacking else {}
    opt = str(root / "llvm" / "bin" / "mlir-opt")
    environment = os.environ | {"LD_LIBRARY_PATH": str(root / "llvm" / "lib")}
    said = subprocess.run([opt, "--version"], capture_output=True, text=True, env=environment)
    version = VERSION.search(said.stdout)
    if not version:
        raise CannotBuild(f"mlir-opt does not start: {said.stderr.strip()[-500:]}; {BY_HAND}")
    source = "packages of this system, unpacked" if checked else "this machine's own"
    told(f"MLIR {version.group(1)}: {source}")
    return {"mlir": version.group(1), "from": source, "debs": checked}


def programs_here() -> dict[str, str]:
    """Those of MLIR and LLVM 19 that are on PATH or where Debian has them."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/lib/llvm-19/bin"))
    found = {}
    for name in PROGRAMS:
        for form in (f"{name}-19", name):
            program = shutil.which(form, path=path)
            if name not in found and program and VERSION.search(said_by(program)):
                found[name] = program
    return found


def said_by(program: str) -> str:
    """What it says about its version."""
    try:
        return subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def unpacked(root: Path, packages: Sequence[str], told: Callable[[str], None], run: Run) -> dict[str, str]:
    """Unpacks packages and what they need that is not installed: by package how it was checked."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise CannotBuild(f"there is no MLIR 19 here, and no apt-get to get it with; {BY_HAND}")
    store = root / "apt"
    wanted, options = choice(store, packages, told, run)
    told(f"from apt, only unpacked: {', '.join(wanted)}")
    folder = store / "debs"
    folder.mkdir(parents=True)
    run(["apt-get", *options, "download", *wanted], folder)
    checked = {unquote(deb.stem): check(deb) for deb in sorted(folder.glob("*.deb"))}
    for deb in folder.glob("*.deb"):
        run(["dpkg-deb", "-x", str(deb), str(store / "tree")])
    kept(store / "tree", root / "llvm")
    shutil.rmtree(store)
    return checked


def choice(
    store: Path, packages: Sequence[str], told: Callable[[str], None], run: Run
) -> tuple[list[str], tuple[str, ...]]:
    """What to download, as name=version, and apt's options: its own lists, or fresh ones in the store."""
    options: tuple[str, ...] = ("-o", "APT::Sandbox::User=root")
    if wanted := wanted_of(packages, options):
        return wanted, options
    told("apt knows no MLIR 19; fetching its lists of packages into a folder of the installation")
    for name in ("lists/partial", "cache/archives/partial"):
        (store / name).mkdir(parents=True)
    options = (*options, "-o", f"Dir::State::lists={store / 'lists'}", "-o", f"Dir::Cache={store / 'cache'}")
    try:
        run(["apt-get", *options, "update"])
    except CannotBuild as error:
        raise CannotBuild(f"{error}; without apt's servers: {BY_HAND}") from None
    if wanted := wanted_of(packages, options):
        return wanted, options
    raise CannotBuild(f"this system's packages have no {' or '.join(packages)}; {BY_HAND}")


def wanted_of(packages: Sequence[str], options: Sequence[str]) -> list[str]:
    """name=version of the packages, at the pinned version where there is that, and of what mlir-19-tools
    needs beside it; nothing where apt has not all of them.
    """
    exact = dict(pin.split("_")[:2] for pin in pinned())
    found: dict[str, str] = {}
    for package in packages:
        new = simulated(f"{package}={exact.get(package)}", options) or simulated(package, options)
        if package not in new:
            return []
        # opt and llc need the library alone, the package needs more.
        found |= new if package == "mlir-19-tools" else {package: new[package]}
        found |= {name: version for name, version in new.items() if name == "libllvm19"}
    return [f"{name}={version}" for name, version in found.items()]


def simulated(package: str, options: Sequence[str]) -> dict[str, str]:
    """What apt would install for a package: versions by name."""
    command = ["apt-get", *options, "install", "--simulate", "--no-install-recommends", package]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"})
    return {} if done.returncode else {name: version for name, version, _ in INSTALLING.findall(done.stdout)}


def pinned() -> dict[str, str]:
    """SHA-256 by name_version_architecture."""
    found: dict[str, str] = json.loads(MLIR_PINS.read_text(encoding="utf-8"))["debs"]
    return found


def check(deb: Path) -> str:
    """How a package was checked: "pinned", or "apt" for another version. Raises CannotBuild where it is not
    the one that is pinned.
    """
    wanted = pinned().get(unquote(deb.stem))
    if wanted is None:
        return "apt"
    seen = hashlib.sha256(deb.read_bytes()).hexdigest()
    if seen != wanted:
        raise CannotBuild(
            f"{unquote(deb.name)} is not the package that is pinned and was refused: SHA-256 {seen}, "
            f"expected {wanted}"
        )
    return "pinned"


def kept(tree: Path, llvm: Path) -> None:
    """Moves the programs and the libraries out of unpacked packages."""
    for name in PROGRAMS:
        program = tree / "usr" / "lib" / "llvm-19" / "bin" / name
        if program.exists() and not (llvm / "bin" / name).exists():
            program.replace(llvm / "bin" / name)
    for library in libraries(tree):
        library.replace(llvm / "lib" / library.name)


def libraries(tree: Path) -> Iterable[Path]:
    """Shared libraries of unpacked packages, and links to them."""
    return [*tree.glob("usr/lib/*-linux-gnu/*.so*"), *tree.glob("lib/*-linux-gnu/*.so*")]
