"""Linking: generated objects, a table of kernels and the C++ runtime become a library onnxruntime loads."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ..base import CannotBuild, Emitted
from .isa import Isa
from .table import table

SHELL = Path(__file__).parent.parent / "runtime"
DRIVERS = Path(__file__).parent / "runtime"
# Plain x86-64: all that depends on the instruction set is in the generated objects.
FOR_ANY = ("-march=x86-64",)
FOR_ZIG = ("-mcpu=x86_64",)
COMPILE = (
    *("-std=c++17", "-O2", "-g0", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"),
    *("-fno-threadsafe-statics", "-Wall", "-Wextra"),
)
LINK = (
    "-shared",
    "-static-libstdc++",
    "-static-libgcc",
    "-Wl,-z,now",
    "-Wl,-z,noexecstack",
    "-Wl,--gc-sections",
)

# LLVM puts helpers of its own into every object; they are nobody else's business.
EXPORTS = "{ global: RegisterCustomOps; moec_counts; local: *; };"


def link(emitted: Sequence[Emitted], out: Path, isa: Isa) -> Path:
    """Write the library that holds these kernels to `out`. Raises CannotBuild."""
    compiler = find_compiler()
    objects = runtime_objects(compiler)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "table.cc").write_text(table(emitted, isa))
        for index, one in enumerate(emitted):
            (folder / f"kernel{index}.o").write_bytes(one.object_code)
        kernels = [folder / f"kernel{index}.o" for index in range(len(emitted))]
        run(compiler, *COMPILE, f"-I{SHELL}", "-c", folder / "table.cc", "-o", folder / "table.o")
        (folder / "exports").write_text(EXPORTS)
        exports = f"-Wl,--version-script={folder / 'exports'}"
        # Zig compiles its C++ library from source before it links it, and nothing here uses that.
        lean = ("-nostdlib++",) if FOR_ZIG[0] in compiler else ()
        table_and_kernels = (folder / "table.o", *kernels)
        run(compiler, *LINK, *lean, exports, *objects, *table_and_kernels, "-o", folder / "library.so")
        out.parent.mkdir(parents=True, exist_ok=True)
        publish(folder / "library.so", out)
    return out


def find_compiler() -> tuple[str, ...]:
    """How to call a C++ compiler for any x86-64: $CXX, else c++, g++ or clang++, else the ziglang wheel's.

    Raises CannotBuild with what to install.
    """
    if chosen := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(chosen[0]):
            zig = any(Path(word).name in ("zig", "ziglang") for word in chosen)
            return (*chosen, *(FOR_ZIG if zig else FOR_ANY))
        raise CannotBuild(
            f"CXX names {chosen[0]!r}, which is not on PATH; correct it, or unset it to search for one"
        )
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return (found, *FOR_ANY)
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "c++", *FOR_ZIG)
    raise CannotBuild(
        "no C++ compiler: none of c++, g++ and clang++ is on PATH and CXX is not set; install g++ or clang "
        "with the system's package manager, or without root: pip install 'moec[toolchain]'"
    )


def runtime_objects(compiler: Sequence[str]) -> list[Path]:
    """The compiled C++ runtime; what was compiled before comes from the cache. Raises CannotBuild."""
    sources = sorted((*SHELL.glob("*.cc"), *DRIVERS.glob("*.cc")))
    headers = sorted((*SHELL.glob("*.h"), *DRIVERS.glob("*.h")))
    common = hashlib.sha256(repr((tuple(compiler), version(tuple(compiler)), COMPILE)).encode())
    for header in headers:
        common.update(header.name.encode() + header.read_bytes())
    return [compiled(compiler, source, common.copy()) for source in sources]


def compiled(compiler: Sequence[str], source: Path, key: hashlib._Hash) -> Path:
    """One object of the runtime, cached under the hash of everything it is made of."""
    key.update(source.name.encode() + source.read_bytes())
    path = cache_folder() / f"{source.stem}-{key.hexdigest()[:32]}.o"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "runtime.o"
            run(compiler, *COMPILE, f"-I{SHELL}", f"-I{DRIVERS}", "-c", source, "-o", made)
            publish(made, path)
    return path


def cache_folder() -> Path:
    """Where compiled runtime objects are kept: $XDG_CACHE_HOME/moec, by default ~/.cache/moec."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moec"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def publish(made: Path, path: Path) -> None:
    """Move a finished file into place, so that nobody ever sees half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    shutil.copyfile(made, name)
    os.chmod(name, 0o644)
    os.replace(name, path)


@cache
def version(compiler: tuple[str, ...]) -> str:
    """What the compiler says about itself."""
    return subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout


def run(compiler: Sequence[str], *arguments: str | Path) -> None:
    """Call the compiler. Raises CannotBuild with the end of what it said."""
    done = subprocess.run([*compiler, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise CannotBuild(
            f"{shlex.join(compiler)} failed on the kernel library:\n{done.stderr.strip()[-2000:]}"
        )
