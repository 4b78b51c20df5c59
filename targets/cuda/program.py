"""What a builder of kernels gives: the launches that compute one kernel, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..base import Kernel, Schedule
from ..listing import SIZES as SIZES
from .sm import Sm


@dataclass(frozen=True, slots=True)
class Step:
    """One launch: a TileLang function whose parameters' names say what they are.

    x0.. are the kernel's operands, y0.. its results, s0.. scratch memory of this call (undefined contents;
    the declared shape gives its size), anything else a real of the kernel by its name. Dynamic dims are of
    SIZES. when: a C++ condition on them, without which the step is left out. overlap: the launch may begin
    before what comes before it is done, so the function waits (pdl_sync) before it reads what that writes.
    """

    function: Any
    when: str = ""
    overlap: bool = False


Builder = Callable[[Kernel, Schedule, Sm], Sequence[Step]]
