"""The Ascend target as the driver sees it: all steps from a graph to an execution provider.

Without an NPU, an artifact's kernels are simulated on the CPU, block by block: right, but slow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from ...compiler.ir import Node
from ...compiler.pipeline import Pass
from ...passes.layout import Layout
from ...passes.precision import ALL_BF16, ALL_F16, INT8_ROWS, Policy
from .. import base, bf16, flags, listing
from ..base import CannotBuild, Capabilities, Emitted, Flip, Kernel, Schedule, Schedules, Space
from . import build, finish, npu, refitted, soc, space, toolchain
from .families import FAMILIES
from .hivm.constants import GUESSED
from .programs import quantized

# What to do about an artifact that this machine does not run.
REMEDY = "run it where such an NPU is; load it with kernels=False for its standard ops, which are slow"
# Of a kernel beside its own standard ops, relative to the largest value: what is still right. Results are
# bf16 at worst, and so is what goes into the second product of attention.
KERNEL_LIMITS = {"mean_error": 3e-3, "max_error": 5e-2}
NPU = {"memory": "npu", "vendor": 0x19E5}  # as onnxruntime names the memory that kernels read and write
SIMULATED = "simulated on this CPU"
L2_BYTES = 192 << 20  # of the cache in front of the memory, alike on all SoCs


@dataclass(frozen=True, slots=True)
class Target:
    """Kernels for Ascend NPUs of one SoC. Works on any machine, also one without an NPU or CANN."""

    soc: soc.Soc
    name: str = "ascend"
    library: str = "libmoec_ascend.so"
    elsewhere: str = field(default="", repr=False)  # the NPU that measures, where that is a fleet's
    unit: ClassVar[str] = "npu"  # what workers of a fleet declare, with its name
    half: str = "bf16"  # or f16: what all numbers are in that are no sums
    policies: ClassVar[Mapping[str, Policy | None]] = {
        **{"none": ALL_BF16, "bf16": ALL_BF16, "f16": ALL_F16, "int8": INT8_ROWS},
    }
    pages: ClassVar[Sequence[int]] = ()  # no kernel reads caches in pages
    tools: ClassVar[Sequence[str]] = ("moec",)  # packages that shape its code
    families: ClassVar[Mapping[str, Sequence[str]]] = FAMILIES

    def halved(self, quant: str) -> Target:
        """The same in f16, where that is how weights are stored (see base.Halving)."""
        return replace(self, half="f16") if quant == "f16" else self

    @property
    def caches(self) -> Sequence[str]:
        """How earlier tokens may be kept."""
        return (self.half,)

    @property
    def widest(self) -> str:
        """The format of weights that every kernel reads."""
        return self.half

    @property
    def simulated(self) -> str:
        """Why times are simulated on this machine; nothing where its NPU takes them, or a fleet's."""
        return "" if self.elsewhere else npu.why_simulated(self.soc.name)

    def measured_on(self, name: str) -> Target:
        """The same where NPUs of a fleet measure. Raises ValueError for those of another SoC's name."""
        if name and name != self.soc.name:
            raise ValueError(f"kernels for {self.soc.name} are not measured on {name}; name that with --isa")
        return replace(self, elsewhere=self.soc.name)

    @property
    def addresses(self) -> int | None:
        """Bytes of addresses for a tuning worker: as many as of memory, or more, which a driver reserves."""
        return None if self.simulated else 1 << 46

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(self.soc.name, vector_lanes=64, registers=0)

    @property
    def processor(self) -> str:
        """What is measured on: the NPU here, or no machine, but what the compiler knows of one."""
        return refitted.named(self.soc.name) if self.simulated else self.soc.name

    @property
    def folder(self) -> Path:
        """Where the target's sources are: what is measured depends on them."""
        return Path(__file__).parent

    @property
    def measured(self) -> Path | None:
        """A tuning log that comes with moec: none."""
        return None

    @property
    def sources(self) -> list[Path]:
        """The files that decide what code is written for a kernel and a schedule."""
        names = ("emit", "lowering", "vendor", "host", "program", "bundle", "soc")
        folders = [file for name in ("kernels", "programs") for file in (self.folder / name).glob("*.py")]
        return [*(self.folder / f"{name}.py" for name in names), *folders, *self.folder.glob("pins.*")]

    @property
    def versions(self) -> Mapping[str, str]:
        """Of what is in the toolchain, by package, nothing where it is not installed; and of hivmc, where an
        NPU here takes the times.
        """
        return {**toolchain.versions(), **({"hivmc": self.finished_by} if self.finished_by else {})}

    @property
    def finished_by(self) -> str:
        """Of hivmc its version, where an NPU here takes the times (see base.Finished)."""
        return "" if self.simulated or self.elsewhere else npu.hivmc_version()

    @property
    def runs_here(self) -> bool:
        """Whether this machine runs what is compiled, on an NPU or simulated."""
        return not self.why_not_here

    @property
    def why_not_here(self) -> str:
        """A sentence where it does not."""
        return unfit(self.facts)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What an artifact's manifest says of it: all that is needed to load one.

        features: of the CPU; without_npu: what becomes of its kernels there; times: how
        those come about that schedules were chosen by; linked: the processor that the library is for, and
        finish, what links it for others.
        """
        named = {"name": self.name, "isa": self.soc.name, "features": list(flags.V3), "library": self.library}
        made = {"linked": "x86_64", "finish": f"{finish.FOLDER}/finish.sh"}
        times = "simulated" if self.simulated else "measured"
        return {**named, **made, "provider": NPU, "without_npu": SIMULATED, "times": times}

    @property
    def passes(self) -> tuple[Pass, ...]:
        return bf16.passes(half=self.half)

    @property
    def formats(self) -> Mapping[str, Sequence[str]]:
        """The formats of weights that the kernels of each kind read."""
        if self.half == "f16":  # codes are multiplied with bf16 only
            return dict.fromkeys(bf16.FORMATS, ("f16",))
        return {**bf16.FORMATS, **quantized.FORMATS}

    def kernel_of(self, region: Node) -> Kernel:
        """The kernel a region asks for."""
        return bf16.kernel_of(region)

    def space(self, kernel: Kernel) -> Space:
        """Every schedule worth trying."""
        return space.space(kernel, self.soc)

    def layout_of(self, kernel: Kernel, schedule: Schedule) -> Mapping[int, Layout]:
        """Weights lie as they are stored: rows of one after the other."""
        return {}

    def op_name(self, kernel: Kernel, schedules: Schedules) -> str:
        """The kernel's operator in onnxruntime."""
        return listing.op_name(kernel, schedules)

    def is_cold(self, weights: float) -> bool:
        """Whether a model of so many bytes finds its weights in memory when it comes to them again."""
        return weights > L2_BYTES

    def sharers(self, threads: int) -> int:
        """How many of so many threads share a kernel's work: it is the NPU's, whatever the number."""
        return 1

    def device(self, threads: int, cold: bool = True, trace: str = "") -> tuple[str, dict[str, Any]]:
        """What a tuning worker opens on this machine: module and function, and its arguments (see Device)."""
        options: dict[str, Any] = {"soc": self.soc.name, "cold": cold, "trace": trace}
        options |= {"simulated": bool(self.simulated), "constants": dict(refitted.constants())}
        return f"{__package__}.device:Device", options

    @property
    def guesses(self) -> Sequence[str]:
        """The constants of the simulated timeline that are guesses (see base.Guessing); none where an NPU
        takes the times.
        """
        return GUESSED if self.simulated else ()

    def flips(
        self, kernel: Kernel, point: str, schedules: Sequence[Schedule], trace: str = ""
    ) -> Sequence[Flip]:
        """Where halving or doubling a guess would choose another than the first of these schedules."""
        from . import sensitivity

        known = refitted.known(refitted.constants())
        return sensitivity.flips(kernel, point, schedules, self.soc, trace, known)

    def refit(self, times: Sequence[base.Took]) -> base.Refit:
        """The guesses fitted to times that an NPU took."""
        from . import refit

        return refit.refit(times, self.soc)

    def emit(self, kernel: Kernel, schedules: Schedules) -> Emitted:
        """Code in all its forms; runs the toolchain's programs."""
        from . import emit

        return emit.emit(kernel, schedules, self.soc)

    def expect_tools(self) -> None:
        """Raises CannotBuild, with what to install, where `emit` or `link` would in the end."""
        build.find_tools()

    def link(self, emitted: Sequence[Emitted], out: Path) -> Path:
        """The execution provider. Raises CannotBuild where there is no C++ compiler."""
        return build.link(emitted, out, self.soc)

    def files(self, emitted: Sequence[Emitted]) -> Mapping[str, bytes]:
        """What else an artifact holds, by path in it: what a machine with CANN makes its kernels of."""
        return finish.files(emitted, self.soc, self.library, self.versions)


def target(level: str | None = None) -> Target:
    """The target for a SoC by name, else for this machine's NPU or, without one, for the first.

    Raises ValueError.
    """
    if level is not None:
        return Target(soc.named(level))
    try:
        return Target(soc.named(npu.soc_here()))
    except ValueError:
        return Target(soc.SOCS[0])


def accelerator() -> str:
    """What this machine declares as a worker of a fleet; nothing without an NPU."""
    try:
        return f"{Target.unit}:{npu.soc_here()}"
    except ValueError:
        return ""


def unfit(facts: Mapping[str, Any]) -> str:
    """Why this machine does not run an artifact of these facts: "is built for ..", or nothing."""
    built = f"is built for {facts.get('isa')}, but "
    try:
        here = npu.soc_here()
    except ValueError as error:
        missing = sorted(set(facts["features"]) - flags.cpu_flags())
        lacks = f"{built}{error}, and this CPU, which lacks {', '.join(missing)}, cannot simulate it"
        return lacks if missing else ""
    return "" if here == facts.get("isa") else f"{built}this machine's NPU is {here}"


def read_bandwidth(threads: int, isa: str) -> float:
    """Bytes per second that a SoC reads from its memory, at best. As published: it is not measured."""
    return soc.named(isa).read_gb_s * 1e9


def here() -> dict[str, str | bool]:
    """What this machine is for the Ascend target: what it runs, builds with and can measure."""
    try:
        device, simulated = npu.soc_here(), False
    except ValueError as error:
        device, simulated = f"{error}: {SIMULATED}", True
    try:
        compiler, builds = " ".join(build.find_tools()), True
    except CannotBuild as error:
        compiler, builds = str(error), False
    machine = target()
    return {
        "target": "ascend",
        "device": device,
        "isa": machine.soc.name,
        "compiler": compiler,
        "builds": builds,
        "runs": machine.runs_here,
        "measures": builds and machine.runs_here,
        "simulated": simulated,
        "times": f"simulated: {machine.simulated}" if machine.simulated else "measured",
        **machine.versions,
    }
