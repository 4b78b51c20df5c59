"""What the compiler knows of an Ascend SoC: data, from the vendor's target description.

Cores and memories are those of NPUTargetSpec.td in AscendNPU-IR; cores come as one cube core with two vector
cores beside it. Clock and bandwidth are figures of others' documents, not measured here: what is computed
with them is a simulation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

UB, L1, L0A, L0B, L0C = 192 << 10, 512 << 10, 64 << 10, 64 << 10, 128 << 10  # bytes, alike on all of them


@dataclass(frozen=True, slots=True)
class Soc:
    """One SoC, by the name that the vendor's compiler has for it.

    cubes: cube cores, each with two vector cores. mhz: clock of the cube. read_gb_s: of the memory, at best.
    """

    name: str
    cubes: int
    mhz: float
    read_gb_s: float
    known_as: str = ""

    @property
    def vectors(self) -> int:
        """Vector cores."""
        return 2 * self.cubes


SOCS: tuple[Soc, ...] = (
    Soc("Ascend910B3", 20, 1800.0, 1600.0),
    Soc("Ascend910B1", 24, 1850.0, 1600.0),
    Soc("Ascend910B2", 24, 1800.0, 1600.0),
    Soc("Ascend910B4", 20, 1500.0, 800.0),
    Soc("Ascend910_9392", 24, 1800.0, 1600.0, "910C"),
    Soc("Ascend910_9382", 24, 1800.0, 1600.0, "910C"),
    Soc("Ascend910_9362", 20, 1800.0, 1600.0, "910C"),
)


def named(name: str) -> Soc:
    """The SoC of that name, with "Ascend" before it or without. Raises ValueError with what there is."""
    short: Mapping[str, Soc] = {soc.name.removeprefix("Ascend"): soc for soc in SOCS}
    if name.removeprefix("Ascend") in short:
        return short[name.removeprefix("Ascend")]
    raise ValueError(f"the ascend target has no code for {name!r}; there is {', '.join(short)}")
