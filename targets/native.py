"""C++ of the machine this runs on: a runtime, a generated table and finished kernels become a library."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from .base import CannotBuild

SHARED = Path(__file__).parent / "runtime"
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


def link(runtime: Sequence[Path], table: str, files: Mapping[str, bytes], exports: str, out: Path) -> Path:
    """Write a library to `out`. Raises CannotBuild.

    runtime: C++ sources, compiled once, with the headers beside them; table: C++ that says what the kernels
    are; files: by name what lies beside it, of which objects (.o) and assembly (.S) are linked; exports: the
    names that the library shows, for the linker's version script.
    """
    compiler = find_compiler()
    objects = runtime_objects(compiler, runtime)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in {"table.cc": table.encode(), "exports": exports.encode(), **files}.items():
            (folder / file).write_bytes(content)
        run(compiler, *COMPILE, *including(runtime), "-c", "table.cc", "-o", "table.o", folder=folder)
        # Zig compiles its C++ library from source before it links it, and nothing here uses that.
        lean = ("-nostdlib++",) if FOR_ZIG[0] in compiler else ()
        linked = (file for file in files if file.endswith((".o", ".S")))
        inputs: tuple[str | Path, ...] = (*objects, "table.o", *linked)
        shown = "-Wl,--version-script=exports"
        run(compiler, *LINK, *lean, shown, *inputs, "-o", "library.so", folder=folder)
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


def including(sources: Sequence[Path]) -> list[str]:
    """Where headers are found: beside what targets share, and beside the sources."""
    return [f"-I{folder}" for folder in dict.fromkeys((SHARED, *(source.parent for source in sources)))]


def runtime_objects(compiler: Sequence[str], sources: Sequence[Path]) -> list[Path]:
    """The compiled C++ runtime; what was compiled before comes from the cache. Raises CannotBuild."""
    folders = dict.fromkeys((SHARED, *(source.parent for source in sources)))
    headers = [header for folder in folders for header in sorted(folder.glob("*.h"))]
    common = hashlib.sha256(repr((tuple(compiler), version(tuple(compiler)), COMPILE)).encode())
    for header in headers:
        common.update(header.name.encode() + header.read_bytes())
    return [compiled(compiler, source, including(sources), common.copy()) for source in sources]


def compiled(compiler: Sequence[str], source: Path, including: Sequence[str], key: hashlib._Hash) -> Path:
    """One object of the runtime, cached under the hash of everything it is made of."""
    key.update(source.name.encode() + source.read_bytes())
    path = cache_folder() / f"{source.stem}-{key.hexdigest()[:32]}.o"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "runtime.o"
            run(compiler, *COMPILE, *including, "-c", source, "-o", made)
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


def run(compiler: Sequence[str], *arguments: str | Path, folder: Path | None = None) -> None:
    """Call the compiler, in that folder. Raises CannotBuild with the end of what it said."""
    done = subprocess.run([*compiler, *map(str, arguments)], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise CannotBuild(
            f"{shlex.join(compiler)} failed on the kernel library:\n{done.stderr.strip()[-2000:]}"
        )
