"""llama.cpp, built for this machine from the source package of llama-cpp-python, on a random model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moec.targets.flags import cpu_flags

from . import gguf_model
from .absent import Absent, need

NAME = "llama-cpp-python"
PACKAGE = f"{NAME}==0.3.36"
OPTIONS = (
    *("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF"),
    *("-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF"),
)
# Where there is AMX it keeps weights in buffers that are for plain products only: on a model with experts
# this version ends at once with "GGML_ASSERT(*cur_backend_id != -1) failed". Without, it has VNNI kernels.
WITHOUT_AMX = "-mno-amx-int8"
SPARE_BYTES = 4 << 30  # left free on the disk


@dataclass(frozen=True)
class Speed:
    """Tokens per second of a prompt (prefill) or one by one (decode), a number for each run."""

    prompt: int
    new: int
    tokens_per_second: tuple[float, ...]


def build(folder: Path) -> Path:
    """The llama-bench program, compiled once into `folder`. Raises Absent with what is missing or failed."""
    program = folder / "build" / "bin" / "llama-bench"
    if program.exists():
        return program
    cmake = tool("cmake")
    folder.mkdir(parents=True, exist_ok=True)
    source = unpacked(folder)
    flags = [f"-DCMAKE_{language}_FLAGS={WITHOUT_AMX}" for language in ("C", "CXX")]
    told(cmake, "-S", source, "-B", folder / "build", *OPTIONS, *(flags if "amx_int8" in cpu_flags() else []))
    told(cmake, "--build", folder / "build", "--target", "llama-bench", "--parallel")
    return program


def tool(name: str) -> str:
    """A program on PATH, or beside this Python. Raises Absent."""
    beside = Path(sys.executable).parent / name
    if found := shutil.which(name) or (str(beside) if beside.exists() else None):
        return found
    raise Absent(f"there is no {name}: pip install 'moec[llama]'")


def unpacked(folder: Path) -> Path:
    """The source of llama.cpp, downloaded once; with `--no-binary :all:` pip would build its tools too."""
    fetch = ("download", "--quiet", "--no-binary", NAME, "--no-deps", "--dest", folder, PACKAGE)
    if not (archives := list(folder.glob("llama_cpp_python-*.tar.gz"))):
        told(sys.executable, "-m", "pip", *fetch)
        archives = list(folder.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))


def told(*command: str | Path) -> str:
    """What a command prints. Raises Absent with the end of its complaint where it fails."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise Absent(f"`{Path(str(command[0])).name}` failed: {' '.join(last)}")
    return done.stdout


def model(folder: Path, config: Mapping[str, Any], form: str) -> Path:
    """The file of the random model, written once. Raises Absent without the gguf package, or room."""
    path = folder / f"{config['model_type']}-{form}.gguf"
    if not path.exists():
        need("gguf", "llama")
        folder.mkdir(parents=True, exist_ok=True)
        wanted, free = gguf_model.total(config, form), shutil.disk_usage(folder).free
        if free < wanted + SPARE_BYTES:
            raise Absent(f"its model takes {wanted / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free")
        gguf_model.write(path, config, form)
    return path


def run(program: Path, path: Path, threads: int, prompt: int, new: int, runs: int) -> list[Speed]:
    """Time a prompt and, apart from it, new tokens one by one on an empty cache; 0 leaves one out."""
    sizes = ("-p", str(prompt), "-n", str(new), "-r", str(runs))
    return parse(told(program, "-m", path, "-t", str(threads), *sizes, "-o", "json"))


def parse(text: str) -> list[Speed]:
    """The speeds in what llama-bench prints as JSON. Raises Absent where it printed none."""
    try:
        found: Sequence[Mapping[str, Any]] = json.loads(text)
        return [Speed(each["n_prompt"], each["n_gen"], tuple(each["samples_ts"])) for each in found]
    except (ValueError, KeyError, TypeError):
        raise Absent(f"llama-bench printed no speeds but {text[:80]!r}") from None
