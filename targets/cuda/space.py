"""Every schedule worth trying for a CUDA kernel; each family of kernels has its own file."""

from __future__ import annotations

from ..base import Kernel, Space
from . import space_fp8, space_latent, space_matmul, space_rows
from .sm import Sm


def space(kernel: Kernel, sm: Sm) -> Space:
    """The space of one kernel. Raises ValueError for an unknown kind."""
    if kernel.weights == "fp8":
        return space_fp8.space(kernel, sm)
    if kernel.kind in space_matmul.KINDS:
        return space_matmul.space(kernel, sm)
    if kernel.kind.startswith(("latent_", "mla_")):
        return space_latent.space(kernel, sm)
    return space_rows.space(kernel, sm)
