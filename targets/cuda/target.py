"""The CUDA target as the driver sees it: all steps from a graph to an execution provider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from ...compiler.ir import Node
from ...compiler.pipeline import Pass
from ...passes.layout import Layout
from ...passes.precision import ALL_BF16, FP8, Policy
from .. import bf16, listing, paged
from ..base import CannotBuild, Capabilities, Emitted, Kernel, Schedule, Schedules, Space
from ..lookups import ENDS
from . import build, driver, memory, sm, space

# What to do about an artifact that this machine does not run.
REMEDY = "run it where such a GPU is; load it with kernels=False for its standard ops, which are slow"
# Of a kernel beside its own standard ops, relative to the largest value: what is still right. Results are
# bf16, and so is what goes into the second product of attention.
KERNEL_LIMITS = {"mean_error": 3e-3, "max_error": 5e-2}
GPU = {"memory": "gpu", "vendor": 0x10DE}  # as onnxruntime names the memory that kernels read and write
USUAL = "NVIDIA H200"  # what schedules are taken from where there is no GPU

# By kind of kernel, and behind it how weights are stored where that makes it another one: where the sources
# that write it begin.
FAMILIES: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(bf16.MATMULS, ("kernels/matmul.py", "space_matmul.py")),
    **{f"{kind} fp8": ("kernels/fp8.py", "space_fp8.py") for kind in bf16.MATMULS},
    **dict.fromkeys(
        ("embedding", "angles", "rms_norm", "last_norm", "choose_token"), ("kernels/rows.py", "space_rows.py")
    ),
    **dict.fromkeys(("top_k_gate", "permute", "route"), ("kernels/gate.py", "space_rows.py")),
    **dict.fromkeys(("rotary", "append", "attention"), ("kernels/heads.py", "space_rows.py")),
    **dict.fromkeys(paged.with_paged(dict.fromkeys(paged.KINDS)), ("kernels/latent.py", "space_latent.py")),
}


@dataclass(frozen=True, slots=True)
class Target:
    """Kernels for NVIDIA GPUs of one architecture. Works on any machine, also one without a GPU."""

    sm: sm.Sm
    name: str = "cuda"
    library: str = "libmoec_cuda.so"
    elsewhere: str = field(default="", repr=False)  # the GPU that measures, where that is a fleet's
    unit: ClassVar[str] = "gpu"  # what workers of a fleet declare, with its name
    policies: ClassVar[Mapping[str, Policy | None]] = {"none": ALL_BF16, "bf16": ALL_BF16, "fp8": FP8}
    caches: ClassVar[Sequence[str]] = ("bf16", "fp8")  # fp8: latents, as e4m3 with a scale for each row
    pages: ClassVar[Sequence[int]] = (paged.PAGE,)  # rows of a page that caches may be in
    widest: ClassVar[str] = "bf16"  # the format of weights that every kernel reads
    tools: ClassVar[Sequence[str]] = ("moec", "tilelang", "nvidia-cuda-nvcc")  # packages that shape its code
    versions: ClassVar[Mapping[str, str]] = {}  # of what shapes its code and is no package of this Python
    families: ClassVar[Mapping[str, Sequence[str]]] = FAMILIES
    addresses: ClassVar[int | None] = 1 << 46  # of a tuning worker, in bytes: the driver reserves very many

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(self.sm.name, vector_lanes=32, registers=self.sm.registers)

    @property
    def processor(self) -> str:
        """What is measured is measured on this: a fleet's GPU, or the one here, else the usual one."""
        return self.elsewhere or gpu() or USUAL

    def measured_on(self, name: str) -> Target:
        """The same where GPUs of that name measure elsewhere; without one, those it would name anyway."""
        return replace(self, elsewhere=name or self.processor)

    @property
    def folder(self) -> Path:
        """Where the target's sources are: what is measured depends on them."""
        return Path(__file__).parent

    @property
    def measured(self) -> Path | None:
        """A tuning log that comes with moec: of an H200."""
        return self.folder / "measured.jsonl"

    @property
    def sources(self) -> list[Path]:
        """The files that decide what code is written for a kernel and a schedule."""
        names = ("emit.py", "nvcc.py", "program.py", "bundle.py", "sm.py", "widths.py")
        shapes = [*self.folder.glob("*_tiles.py"), *(self.folder / "kernels").glob("*.py")]
        return [*(self.folder / name for name in names), *shapes]

    @property
    def runs_here(self) -> bool:
        """Whether this machine runs what is compiled."""
        return not self.why_not_here

    @property
    def why_not_here(self) -> str:
        """A sentence where it does not."""
        return unfit(self.facts)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What an artifact's manifest says of it: all that is needed to load one."""
        named = {"name": self.name, "isa": self.sm.name, "features": [], "library": self.library}
        return {**named, "provider": GPU}

    @property
    def passes(self) -> tuple[Pass, ...]:
        return bf16.passes(*ENDS)

    @property
    def formats(self) -> Mapping[str, Sequence[str]]:
        """The formats of weights that the kernels of each kind read."""
        return {**bf16.FORMATS, **dict.fromkeys(bf16.MATMULS, ("bf16", "fp8"))}

    def kernel_of(self, region: Node) -> Kernel:
        """The kernel a region asks for."""
        return bf16.kernel_of(region)

    def space(self, kernel: Kernel) -> Space:
        """Every schedule worth trying."""
        return space.space(kernel, self.sm)

    def layout_of(self, kernel: Kernel, schedule: Schedule) -> Mapping[int, Layout]:
        """Weights lie as they are stored: rows of one after the other."""
        return {}

    def op_name(self, kernel: Kernel, schedules: Schedules) -> str:
        """The kernel's operator in onnxruntime."""
        return listing.op_name(kernel, schedules)

    def is_cold(self, weights: float) -> bool:
        """Whether a model of so many bytes finds its weights in memory when it comes to them again."""
        return weights > self.sm.l2_bytes

    def sharers(self, threads: int) -> int:
        """How many of so many threads share a kernel's work: it is the GPU's, whatever the number."""
        return 1

    def device(self, threads: int, cold: bool = True, trace: str = "") -> tuple[str, dict[str, Any]]:
        """What a tuning worker opens on this machine: module and function, and its arguments (see Device)."""
        options: dict[str, Any] = {"sm": self.sm.name, "cold": cold, "trace": trace}
        return f"{__package__}.device:Device", options

    def emit(self, kernel: Kernel, schedules: Schedules) -> Emitted:
        """Machine code; loads TileLang and its TVM, so call it in a process of its own."""
        from . import emit

        return emit.emit(kernel, schedules, self.sm)

    def expect_tools(self) -> None:
        """Raises CannotBuild, with what to install, where `emit` or `link` would in the end."""
        build.find_tools()

    def link(self, emitted: Sequence[Emitted], out: Path) -> Path:
        """The execution provider. Raises CannotBuild where there is no C++ compiler."""
        return build.link(emitted, out, self.sm)

    def files(self, emitted: Sequence[Emitted]) -> Mapping[str, bytes]:
        """What else an artifact holds, by path in it: nothing."""
        return {}


def target(level: str | None = None) -> Target:
    """The target for an architecture by name, else for this machine's GPU or, without one, for the first.

    Raises ValueError.
    """
    if level is not None:
        return Target(sm.named(level))
    try:
        return Target(sm.host())
    except ValueError:
        return Target(sm.SMS[0])


def gpu() -> str:
    """The name of this machine's GPU, nothing where there is none."""
    try:
        return driver.driver().name
    except driver.CudaError:
        return ""


def accelerator() -> str:
    """What this machine declares as a worker of a fleet; nothing without a GPU."""
    return f"{Target.unit}:{name}" if (name := gpu()) else ""


def unfit(facts: Mapping[str, Any]) -> str:
    """Why this machine does not run an artifact of these facts: "is built for ..", or nothing."""
    built = f"is built for {facts.get('isa')}, but "
    try:
        here = sm.host().name
    except ValueError as error:
        return f"{built}{error}"
    return "" if here == facts.get("isa") else f"{built}this machine's GPU is {here}"


def read_bandwidth(threads: int, isa: str) -> float:
    """Bytes per second that the GPU reads from its memory, at best. Raises CannotBuild without a GPU."""
    try:
        return memory.read_bandwidth()
    except driver.CudaError as error:
        raise CannotBuild(str(error)) from None


def here() -> dict[str, str | bool]:
    """What this machine is for the CUDA target: what it runs, builds with and can measure."""
    try:
        level, runs = sm.host().name, True
    except ValueError as error:
        level, runs = str(error), False
    try:
        compiler, builds = " ".join(build.find_tools()), True
    except CannotBuild as error:
        compiler, builds = str(error), False
    return {
        "target": "cuda",
        "device": gpu() or "no GPU",
        "isa": level,
        "compiler": compiler,
        "builds": builds,
        "runs": runs,
        "measures": builds and runs,
    }
