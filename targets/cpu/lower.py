"""Which formats of weights the CPU target's kernels read, and how the weights lie under a schedule."""

from __future__ import annotations

from collections.abc import Mapping

from ...passes.layout import CodePanels, HeadPanels, Layout, Panels
from ..base import Kernel, Schedule
from ..regions import BITS

# The formats of weights, beside f32, for which there is a kernel of a kind.
FORMATS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("linear", "linear_add", "linear_swiglu", "grouped_swiglu", "grouped_combine"),
        ("bf16", "int8", "int4"),
    ),
    "latent_attention": ("bf16",),
}


def layout_of(kernel: Kernel, schedule: Schedule) -> Mapping[int, Layout]:
    """How each weight operand that the kernel wants packed lies under a schedule; lanes are its knob nr."""
    lanes = int(schedule.get("nr", 0))
    match kernel.kind:
        case "linear" | "linear_add" | "route":
            return panels(1, kernel, lanes)
        case "linear_swiglu":
            return panels(1, kernel, lanes, halves=2)
        case "grouped_swiglu":
            return panels(3, kernel, lanes, halves=2)
        case "grouped_combine":
            return panels(3, kernel, lanes)
        case "latent_attention":
            return {6: HeadPanels(lanes, kernel["heads"], kernel["nope"], kernel["value"])}
        case _:
            return {}


def panels(operand: int, kernel: Kernel, lanes: int, halves: int = 1) -> Mapping[int, Layout]:
    """A weight in panels; of a quantized one the codes, and its scales as the next operand."""
    plain = Panels(lanes, kernel["n"], halves)
    if kernel.dtype not in BITS:
        return {operand: plain}
    return {operand: CodePanels(lanes, kernel["n"], BITS[kernel.dtype], halves), operand + 1: plain}
