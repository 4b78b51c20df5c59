"""Linking: blocks for this CPU, generated launches and the C++ runtime become an execution provider."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import native
from ..base import Emitted
from .bundle import from_bytes
from .soc import Soc
from .table import functions, table
from .toolchain import find

FOLDERS = (native.SHARED, native.SHARED / "device", Path(__file__).parent / "runtime")
RUNTIME = sorted(file for folder in FOLDERS for file in folder.glob("*.cc"))
EXPORTS = (
    "{ global: CreateEpFactories; ReleaseEpFactory; moec_launch; moec_counts; moec_elapsed_us; "
    "moec_simulated; local: *; };"
)


def link(emitted: Sequence[Emitted], out: Path, soc: Soc) -> Path:
    """Write the library that holds these kernels to `out`. Raises CannotBuild."""
    every = functions([from_bytes(one.object_code) for one in emitted])
    objects = {f"{name}.o": image.host for name, (image, _) in every.items()}
    return native.link(RUNTIME, table(emitted, soc), objects, EXPORTS, out)


def find_tools() -> tuple[str, ...]:
    """The C++ compiler and the toolchain's Python. Raises CannotBuild where one is missing."""
    return (*native.find_compiler(), str(find().python))
