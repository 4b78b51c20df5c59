"""Kernels that go row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...base import Kernel, Schedule, Space
from ..program import ONE, Builder, M, Number, Pointer, Step, sized
from ..soc import Soc


def rms_norm(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """One launch on all vector cores."""
    sizes = {"N": kernel["n"], "WIDTH": kernel["width"], "START": kernel["start"]}
    arguments = {
        "x": Pointer("x0", "bf16"),
        "w": Pointer("x1", "fp32"),
        "y": Pointer("y0", "bf16"),
        "m": Number(M),
        "eps": Number("eps"),
    }
    block = 1 << (kernel["n"] - 1).bit_length()
    grid = (sized(soc.vectors), ONE, ONE)
    return [Step("rows:rms_norm", arguments, {**sizes, "BLOCK": block}, grid)]


def one_way(kernel: Kernel, soc: Soc) -> Space:
    """A kernel with nothing to choose."""
    return Space({}, {})


BUILDERS: Mapping[str, Builder] = {"rms_norm": rms_norm}
SPACES: Mapping[str, Callable[[Kernel, Soc], Space]] = {"rms_norm": one_way}
