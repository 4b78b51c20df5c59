"""Products with weights, by the family of kernels that the schedule names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...base import Kernel, Schedule
from ..program import Builder, Step
from ..sm import Sm
from . import gemm, gemv

PATHS = {"gemv": gemv.BUILDERS, "gemm": gemm.BUILDERS}


def build(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """The steps of the family that the schedule's path names."""
    return PATHS[str(schedule["path"])][kernel.kind](kernel, schedule, sm)


BUILDERS: Mapping[str, Builder] = dict.fromkeys(gemv.BUILDERS, build)
