"""The CPU target as the driver sees it: every step from a graph to a kernel library, for one instruction set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...compiler.ir import Node
from ...compiler.pipeline import Pass
from ...passes.layout import Layout
from ..base import Capabilities, Emitted, Kernel, Schedule, Space
from . import build, isa, lower, space, table
from .pipeline import PASSES


@dataclass(frozen=True, slots=True)
class Target:
    """Kernels for x86-64 CPUs of one level. Pure: works on any machine, also one that cannot run the result."""

    isa: isa.Isa
    name: str = "cpu"
    library: str = "libmoec_cpu.so"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(str(self.isa), self.isa.lanes, self.isa.registers, self.isa.features)

    @property
    def folder(self) -> Path:
        """Where the target's sources are: what is cached or logged depends on them."""
        return Path(__file__).parent

    @property
    def passes(self) -> tuple[Pass, ...]:
        return PASSES

    def kernel_of(self, region: Node) -> Kernel:
        """The kernel a region asks for."""
        return lower.kernel_of(region)

    def space(self, kernel: Kernel) -> Space:
        """Every schedule worth trying."""
        return space.space(kernel, self.isa)

    def layout_of(self, kernel: Kernel, schedule: Schedule) -> Mapping[int, Layout]:
        """How the kernel wants its weights, by operand."""
        return lower.layout_of(kernel, schedule)

    def op_name(self, kernel: Kernel, schedule: Schedule) -> str:
        """The kernel's operator in onnxruntime."""
        return table.op_name(kernel, schedule)

    def work(self, kernel: Kernel) -> float:
        """Multiply-adds for one token, about: what a kernel weighs when time to tune is shared out."""
        sizes = dict(kernel.dims)
        width = sizes["heads"] * sizes["latent"] if "latent" in sizes else sizes.get("k", 1)
        return float(width * sizes.get("n", 64) * sizes.get("share", 1))

    def device(self, threads: int) -> tuple[str, dict[str, int | str]]:
        """What a tuning worker opens on this machine: module and function, and its arguments."""
        return f"{__package__}.device:Device", {"isa": str(self.isa), "threads": threads}

    def emit(self, kernel: Kernel, schedule: Schedule) -> Emitted:
        """Object code; loads TVM, so call it in a process of its own."""
        from . import emit

        return emit.emit(kernel, schedule, self.isa)

    def link(self, emitted: Sequence[Emitted], out: Path) -> Path:
        """The kernel library. Raises CannotBuild where there is no C++ compiler."""
        return build.link(emitted, out, self.isa)


def target(level: str | None = None) -> Target:
    """The target for an instruction set by name, else for this machine's. Raises ValueError naming what there is."""
    return Target(isa.host() if level is None else isa.named(level))
