"""Instruction sets: what LLVM may use, what a tile may assume, and what a CPU must say it has."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..flags import V3 as V3_FEATURES
from ..flags import cpu_flags as cpu_flags


@dataclass(frozen=True, slots=True)
class Isa:
    """One level of x86-64, or of another architecture.

    lanes: float32 in a vector register; features: in the words of /proc/cpuinfo; dot: the instruction that
    sums products of bytes.
    """

    name: str
    llvm_cpu: str
    llvm_attributes: tuple[str, ...]
    lanes: int
    registers: int
    features: tuple[str, ...]
    dot: str = "vpmaddubsw"
    triple: str = "x86_64-linux-gnu"

    def __str__(self) -> str:
        return self.name


V3 = Isa("x86-64-v3", "x86-64-v3", (), 8, 16, V3_FEATURES)
# LLVM would rather use half of each register on this level; the kernels are written for all of it.
V4_FEATURES = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
V4 = Isa("x86-64-v4", "x86-64-v4", ("-prefer-256-bit",), 16, 32, V3_FEATURES + V4_FEATURES)
V4_VNNI = replace(
    V4,
    name="x86-64-v4-vnni",
    llvm_attributes=(*V4.llvm_attributes, "+avx512vnni"),
    features=(*V4.features, "avx512_vnni"),
    dot="vpdpbusd",
)
V4_AMX = replace(
    V4_VNNI,
    name="x86-64-v4-amx",
    llvm_attributes=(*V4_VNNI.llvm_attributes, "+amx-tile", "+amx-int8"),
    features=(*V4_VNNI.features, "amx_tile", "amx_int8"),
    dot="tdpbsud",
)
# Kernels can be written for it; the library around them is for x86-64 only, so far.
NEON = Isa(
    "armv8.2-a+dotprod",
    "generic",
    ("+v8.2a", "+dotprod"),
    lanes=4,
    registers=32,
    features=("asimd", "asimddp"),
    dot="sdot",
    triple="aarch64-linux-gnu",
)
# From the most capable to the least.
ISAS = (V4_AMX, V4_VNNI, V4, V3)


def named(name: str) -> Isa:
    """The instruction set of that name. Raises ValueError with the names there are."""
    for isa in ISAS:
        if isa.name == name:
            return isa
    raise ValueError(f"no instruction set is called {name!r}; there are {', '.join(map(str, ISAS))}")


def supports(isa: Isa) -> bool:
    """Whether code for isa runs on this machine."""
    return cpu_flags().issuperset(isa.features)


def host() -> Isa:
    """The most capable instruction set this machine runs. Raises ValueError when it runs none."""
    for isa in ISAS:
        if supports(isa):
            return isa
    missing = sorted(set(ISAS[-1].features) - cpu_flags())
    raise ValueError(
        f"this machine runs no instruction set the cpu target knows: {ISAS[-1]} needs {', '.join(missing)}; "
        f"compile for another machine by naming one of {', '.join(map(str, ISAS))}"
    )
