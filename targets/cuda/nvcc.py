"""nvcc: CUDA C++ to machine code of one architecture. Needs no GPU."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from ..base import CannotBuild
from .bundle import Resources
from .sm import Sm

# Denormals, divisions and square roots stay exact: references are compared with.
OPTIONS = ("-std=c++20", "-O3", "-w", "-Xcudafe", "--diag_suppress=177", "-Xptxas", "-v")
SECONDS = 300  # that a function may take to compile
USED = re.compile(r"Used (\d+) registers")
SPILLED = re.compile(r"(\d+) bytes spill stores")
SHARED = re.compile(r"(\d+) bytes smem")


def compiled(source: str, sm: Sm) -> tuple[bytes, Resources]:
    """A cubin and what it needs. Raises CannotBuild with the end of what nvcc said."""
    architecture = f"arch=compute_{sm.name.removeprefix('sm_')},code={sm.name}"
    with tempfile.TemporaryDirectory(prefix="moec-") as folder:
        (Path(folder) / "kernel.cu").write_text(source)
        files = ("-cubin", "kernel.cu", "-o", "kernel.cubin")
        command = [find_nvcc(), *OPTIONS, "-gencode", architecture, *includes(), *files]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise CannotBuild(f"nvcc took more than {SECONDS} s on a kernel") from None
        if done.returncode:
            raise CannotBuild(f"nvcc failed on a kernel:\n{(done.stderr or done.stdout).strip()[-2000:]}")
        return (Path(folder) / "kernel.cubin").read_bytes(), resources(done.stderr + done.stdout)


def resources(said: str) -> Resources:
    """The most that any function of a cubin needs, as ptxas says."""
    registers, spilled, shared = (
        max(map(int, pattern.findall(said)), default=0) for pattern in (USED, SPILLED, SHARED)
    )
    return Resources(registers, spilled, shared)


@cache
def find_nvcc() -> str:
    """nvcc of $CUDA_HOME, of its wheel, or on PATH. Raises CannotBuild with how to get it."""
    wheel = importlib.util.find_spec("nvidia")
    homes = [Path(os.environ["CUDA_HOME"])] if os.environ.get("CUDA_HOME") else []
    homes += [Path(place) / "cu13" for place in (wheel.submodule_search_locations or () if wheel else ())]
    for home in homes:
        if (home / "bin" / "nvcc").is_file():
            return str(home / "bin" / "nvcc")
    if found := shutil.which("nvcc"):
        return found
    raise CannotBuild(
        "nvcc is neither in $CUDA_HOME nor on PATH: pip install 'moec[cuda]', or install CUDA 13"
    )


@cache
def includes() -> tuple[str, ...]:
    """Where the headers are that TileLang's code includes. Raises CannotBuild."""
    found = importlib.util.find_spec("tilelang")
    if found is None or found.origin is None:
        raise CannotBuild("the cuda target writes its kernels in TileLang: pip install 'moec[cuda]'")
    home = Path(found.origin).parent
    return f"-I{home / 'src'}", f"-I{home / '3rdparty' / 'cutlass' / 'include'}"
