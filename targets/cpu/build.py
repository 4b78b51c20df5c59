"""Linking: generated objects, a table of kernels and the C++ runtime become a library onnxruntime loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import native
from ..base import Emitted
from .isa import Isa
from .table import table

RUNTIME = sorted((*native.SHARED.glob("*.cc"), *(Path(__file__).parent / "runtime").glob("*.cc")))
# LLVM puts helpers of its own into every object; they are nobody else's business.
EXPORTS = "{ global: RegisterCustomOps; moec_counts; local: *; };"


def link(emitted: Sequence[Emitted], out: Path, isa: Isa) -> Path:
    """Write the library that holds these kernels to `out`. Raises CannotBuild."""
    objects = {f"kernel{index}.o": one.object_code for index, one in enumerate(emitted)}
    return native.link(RUNTIME, table(emitted, isa), objects, EXPORTS, out)
