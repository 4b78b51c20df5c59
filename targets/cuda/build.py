"""Linking: cubins, generated launches and the C++ runtime become an execution provider for onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import native
from ..base import Emitted
from .nvcc import find_nvcc, includes
from .sm import Sm
from .table import images, table

FOLDERS = (native.SHARED, native.SHARED / "device", Path(__file__).parent / "runtime")
RUNTIME = sorted(file for folder in FOLDERS for file in folder.glob("*.cc"))
EXPORTS = (
    "{ global: CreateEpFactories; ReleaseEpFactory; moec_launch; moec_counts; moec_elapsed_us; local: *; };"
)


def link(emitted: Sequence[Emitted], out: Path, sm: Sm) -> Path:
    """Write the library that holds these kernels to `out`. Raises CannotBuild."""
    return native.link(RUNTIME, table(emitted, sm), images(emitted), EXPORTS, out)


def find_tools() -> tuple[str, ...]:
    """The C++ compiler and nvcc. Raises CannotBuild where one is missing, with how to get it."""
    compiler = native.find_compiler()
    includes()
    return (*compiler, find_nvcc())
