"""The CPU target as the driver sees it: all steps from a graph to a kernel library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...compiler.ir import Node
from ...compiler.pipeline import Pass
from ...passes.layout import Layout
from .. import regions
from ..base import CannotBuild, Capabilities, Emitted, Kernel, Schedule, Schedules, Space
from ..routing import Trace
from . import build, isa, lower, memory, space, table
from .pipeline import PASSES


@dataclass(frozen=True, slots=True)
class Target:
    """Kernels for x86-64 CPUs of one level. Works on any machine, also one that cannot run the result."""

    isa: isa.Isa
    name: str = "cpu"
    library: str = "libmoec_cpu.so"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(str(self.isa), self.isa.lanes, self.isa.registers, self.isa.features)

    @property
    def folder(self) -> Path:
        """Where the target's sources are: what is measured depends on them."""
        return Path(__file__).parent

    @property
    def sources(self) -> list[Path]:
        """The files that decide what code is written for a kernel and a schedule."""
        return [self.folder / "emit.py", self.folder / "isa.py", *(self.folder / "kernels").glob("*.py")]

    @property
    def runs_here(self) -> bool:
        """Whether this machine runs what is compiled."""
        return isa.supports(self.isa)

    @property
    def passes(self) -> tuple[Pass, ...]:
        return PASSES

    @property
    def formats(self) -> Mapping[str, Sequence[str]]:
        """The formats of weights, beside f32, that the kernels of each kind read."""
        return lower.FORMATS

    def kernel_of(self, region: Node) -> Kernel:
        """The kernel a region asks for."""
        return regions.kernel_of(region)

    def space(self, kernel: Kernel) -> Space:
        """Every schedule worth trying."""
        return space.space(kernel, self.isa)

    def layout_of(self, kernel: Kernel, schedule: Schedule) -> Mapping[int, Layout]:
        """How the kernel wants its weights, by operand."""
        return lower.layout_of(kernel, schedule)

    def op_name(self, kernel: Kernel, schedules: Schedules) -> str:
        """The kernel's operator in onnxruntime."""
        return table.op_name(kernel, schedules)

    def work(self, kernel: Kernel) -> float:
        """Multiply-adds for one token, about: what a kernel weighs when time to tune is shared out."""
        sizes = dict(kernel.dims)
        width = sizes["heads"] * sizes["latent"] if "latent" in sizes else sizes.get("k", 1)
        return float(width * sizes.get("n", 64) * sizes.get("share", 1))

    def is_cold(self, weights: float) -> bool:
        """Whether a model of so many bytes finds its weights in memory when it comes to them again."""
        return memory.is_cold(weights)

    def suits(self, kernel: Kernel, trace: Trace) -> bool:
        """Whether a kernel is to be timed with that recorded routing."""
        sizes = dict(kernel.dims)
        return "share" in sizes and trace.suits(sizes["experts"], sizes["share"])

    def device(self, threads: int, cold: bool = True, trace: str = "") -> tuple[str, dict[str, Any]]:
        """What a tuning worker opens on this machine: module and function, and its arguments (see Device)."""
        options: dict[str, Any] = {"isa": str(self.isa), "threads": threads, "cold": cold, "trace": trace}
        return f"{__package__}.device:Device", options

    def emit(self, kernel: Kernel, schedules: Schedules) -> Emitted:
        """Object code; loads TVM, so call it in a process of its own."""
        from . import emit

        return emit.emit(kernel, schedules, self.isa)

    def expect_tools(self) -> None:
        """Raises CannotBuild, with what to install, where `link` would in the end."""
        build.find_compiler()

    def link(self, emitted: Sequence[Emitted], out: Path) -> Path:
        """The kernel library. Raises CannotBuild where there is no C++ compiler."""
        return build.link(emitted, out, self.isa)


def target(level: str | None = None) -> Target:
    """The target for an instruction set by name, else for this machine's. Raises ValueError."""
    return Target(isa.host() if level is None else isa.named(level))


def here() -> dict[str, str | bool]:
    """What this machine is for the CPU target: what it runs, builds with and can measure."""
    try:
        level, runs = str(isa.host()), True
    except ValueError as error:
        level, runs = str(error), False
    try:
        compiler, builds = " ".join(build.find_compiler()), True
    except CannotBuild as error:
        compiler, builds = str(error), False
    return {
        "target": "cpu",
        "isa": level,
        "compiler": compiler,
        "builds": builds,
        "runs": runs,
        "measures": builds and runs,
    }
