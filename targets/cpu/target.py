"""The CPU target as the driver sees it: all steps from a graph to a kernel library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ...compiler.ir import Node
from ...compiler.pipeline import Pass
from ...passes.layout import Layout
from ...passes.precision import POLICIES, Policy
from .. import native, regions
from ..base import CannotBuild, Capabilities, Emitted, Kernel, Schedule, Schedules, Space
from . import build, isa, lower, memory, space, table
from .pipeline import PASSES

# What to do about an artifact that this machine does not run.
REMEDY = "compile the model for this machine, or name its level with --isa"

# Of a kernel beside its own standard ops, relative to the largest value: what is still right.
KERNEL_LIMITS = {"mean_error": 1e-4, "max_error": 1e-2}


@dataclass(frozen=True, slots=True)
class Target:
    """Kernels for x86-64 CPUs of one level. Works on any machine, also one that cannot run the result."""

    isa: isa.Isa
    name: str = "cpu"
    library: str = "libmoec_cpu.so"
    processor: str = ""  # what is measured is measured on; nothing: whatever processor this machine has
    unit: ClassVar[str] = "cpu"  # what workers of a fleet declare, with its name
    policies: ClassVar[Mapping[str, Policy | None]] = {"none": None, **POLICIES}
    caches: ClassVar[Sequence[str]] = ("f32", "bf16", "int8")  # the first by default; int8: of latents
    pages: ClassVar[Sequence[int]] = (64,)  # rows of a page that caches may be in
    widest: ClassVar[str] = "f32"  # the format of weights that every kernel reads
    tools: ClassVar[Sequence[str]] = ("moec", "apache-tvm")  # packages that shape its code
    versions: ClassVar[Mapping[str, str]] = {}  # of what shapes its code and is no package of this Python
    families: ClassVar[Mapping[str, Sequence[str]]] = {}  # all sources shape all kernels: its C++ does
    addresses: ClassVar[int | None] = None  # bytes of addresses for a tuning worker: as many as of memory

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(str(self.isa), self.isa.lanes, self.isa.registers, self.isa.features)

    def measured_on(self, name: str) -> Target:
        """The same where processors of that name measure elsewhere; without one, those alike this one."""
        return replace(self, processor=name)

    @property
    def folder(self) -> Path:
        """Where the target's sources are: what is measured depends on them."""
        return Path(__file__).parent

    @property
    def measured(self) -> Path | None:
        """A tuning log that comes with moec: none, CPUs differ too much."""
        return None

    @property
    def sources(self) -> list[Path]:
        """The files that decide what code is written for a kernel and a schedule."""
        return [self.folder / "emit.py", self.folder / "isa.py", *(self.folder / "kernels").glob("*.py")]

    @property
    def runs_here(self) -> bool:
        """Whether this machine runs what is compiled."""
        return isa.supports(self.isa)

    @property
    def why_not_here(self) -> str:
        """A sentence where it does not."""
        return unfit({"isa": str(self.isa), "features": self.isa.features})

    @property
    def facts(self) -> Mapping[str, Any]:
        """What an artifact's manifest says of it: all that is needed to load one."""
        features = list(self.isa.features)
        return {"name": self.name, "isa": str(self.isa), "features": features, "library": self.library}

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

    def is_cold(self, weights: float) -> bool:
        """Whether a model of so many bytes finds its weights in memory when it comes to them again."""
        return memory.is_cold(weights)

    def sharers(self, threads: int) -> int:
        """How many of so many threads share a kernel's work, so that its time depends on it."""
        return threads

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
        native.find_compiler()

    def link(self, emitted: Sequence[Emitted], out: Path) -> Path:
        """The kernel library. Raises CannotBuild where there is no C++ compiler."""
        return build.link(emitted, out, self.isa)

    def files(self, emitted: Sequence[Emitted]) -> Mapping[str, bytes]:
        """What else an artifact holds, by path in it: nothing."""
        return {}


def target(level: str | None = None) -> Target:
    """The target for an instruction set by name, else for this machine's. Raises ValueError."""
    return Target(isa.host() if level is None else isa.named(level))


def accelerator() -> str:
    """What this machine declares as a worker of a fleet, beside its CPU: nothing."""
    return ""


def unfit(facts: Mapping[str, Any]) -> str:
    """Why this machine does not run an artifact of these facts: "is built for ..", or nothing."""
    missing = sorted(set(facts["features"]) - isa.cpu_flags())
    lacks = f"is built for {facts.get('isa')}, but this CPU lacks {', '.join(missing)}"
    return lacks if missing else ""


def read_bandwidth(threads: int, isa: str) -> float:
    """Bytes per second that this machine reads from memory with so many threads, at best."""
    return memory.read_bandwidth(threads)


def here() -> dict[str, str | bool]:
    """What this machine is for the CPU target: what it runs, builds with and can measure."""
    try:
        level, runs = str(isa.host()), True
    except ValueError as error:
        level, runs = str(error), False
    try:
        compiler, builds = " ".join(native.find_compiler()), True
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
