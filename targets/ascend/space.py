"""Every schedule worth trying, and what a schedule of a kernel is made of: by kind, from all programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ..base import Kernel, Schedule, Space
from ..regions import BITS
from .program import Builder, Pointer, Step
from .programs import attention, gate, heads, latent, matmul, quantized, rows
from .soc import Soc

BUILDERS: Mapping[str, Builder] = {
    **attention.BUILDERS,
    **gate.BUILDERS,
    **heads.BUILDERS,
    **latent.BUILDERS,
    **matmul.BUILDERS,
    **quantized.BUILDERS,
    **rows.BUILDERS,
}
SPACES: Mapping[str, Callable[[Kernel, Soc], Space]] = {
    **attention.SPACES,
    **gate.SPACES,
    **heads.SPACES,
    **latent.SPACES,
    **matmul.SPACES,
    **quantized.SPACES,
    **rows.SPACES,
}


def space(kernel: Kernel, soc: Soc) -> Space:
    """Raises ValueError for an unknown kind."""
    return SPACES[known(kernel)](kernel, soc)


def steps(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """The launches of one schedule. Raises ValueError for an unknown kind."""
    made = BUILDERS[known(kernel)](kernel, schedule, soc)
    return [in_f16(step) for step in made] if kernel.half == "f16" else list(made)


def in_f16(step: Step) -> Step:
    """The step with f16 where builders have bf16: functions take the types of their results from pointers."""
    given = {
        name: replace(each, type="fp16") if isinstance(each, Pointer) and each.type == "bf16" else each
        for name, each in step.arguments.items()
    }
    return replace(step, arguments=given)


def known(kernel: Kernel) -> str:
    """The kernel's kind, with the format of weights in few bits behind. Raises ValueError where there is no
    such kernel.
    """
    name = f"{kernel.kind} {kernel.weights}" if kernel.weights in BITS else kernel.kind
    if name in BUILDERS:
        return name
    raise ValueError(f"the ascend target has no {name!r} kernel; there are {', '.join(sorted(BUILDERS))}")
