"""Every schedule worth trying, and what a schedule of a kernel is made of: by kind, from all programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..base import Kernel, Schedule, Space
from .program import Builder, Step
from .programs import rows
from .soc import Soc

BUILDERS: Mapping[str, Builder] = {**rows.BUILDERS}
SPACES: Mapping[str, Callable[[Kernel, Soc], Space]] = {**rows.SPACES}


def space(kernel: Kernel, soc: Soc) -> Space:
    """Raises ValueError for an unknown kind."""
    return SPACES[known(kernel)](kernel, soc)


def steps(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """The launches of one schedule. Raises ValueError for an unknown kind."""
    return list(BUILDERS[known(kernel)](kernel, schedule, soc))


def known(kernel: Kernel) -> str:
    """The kernel's kind. Raises ValueError where there is no such kernel."""
    if kernel.kind in BUILDERS:
        return kernel.kind
    raise ValueError(
        f"the ascend target has no {kernel.kind!r} kernel; there are {', '.join(sorted(BUILDERS))}"
    )
