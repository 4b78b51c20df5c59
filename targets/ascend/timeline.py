"""How long a kernel takes on an SoC, simulated: blocks are run, then times are put to what they did.

Nothing here was measured: hivm/constants.py says where its numbers come from. Cores get no more of the
memory than their share of what all of them ask for together, and what was read before comes from L2, as does
what earlier launches of the call touched and hivm/l2.py finds there. What hivmc makes of HIVM, L0 within a
product, and launches that overlap are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..base import Kernel, Schedule
from .hivm import l2
from .hivm.calls import Asked, call_of
from .hivm.constants import Constants
from .hivm.costs import Rates
from .hivm.replay import Replayed, replay
from .hivm.sampled import Ran, ran
from .hivm.trace import PIPES, M
from .program import Pointer
from .soc import Soc
from .space import steps as steps_of

MAC_PER_CYCLE = {"bf16": 4096, "fp16": 4096, "i8": 8192, "fp32": 1024}  # of a cube, by what it multiplies
PUBLISHED = Constants()


@dataclass(frozen=True, slots=True)
class Timed:
    """One step. us: without its launch, which takes launch_us. cube: share of us that cubes are busy, all of
    them together; useful: of what they could multiply, what was asked for; bandwidth: of the memory's, for
    what had to be read. busy: by pipe, such as "AIC.MTE2"; peak: bytes by memory; moved: by path.
    """

    name: str
    us: float
    launch_us: float
    cube: float
    useful: float
    bandwidth: float
    busy: Mapping[str, float]
    peak: Mapping[str, int]
    moved: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Simulated:
    """A kernel's steps, simulated."""

    steps: Sequence[Timed]

    @property
    def us(self) -> float:
        """Of all steps with their launches."""
        return sum(step.us + step.launch_us for step in self.steps)

    @property
    def cube(self) -> float:
        """Share of the time between launches in which cubes are busy."""
        return self._share([step.cube for step in self.steps])

    @property
    def bandwidth(self) -> float:
        """Share of the memory's bandwidth in that time."""
        return self._share([step.bandwidth for step in self.steps])

    def _share(self, shares: Sequence[float]) -> float:
        whole = sum(step.us for step in self.steps)
        return sum(share * step.us for share, step in zip(shares, self.steps)) / whole if whole else 0.0


def seconds(
    kernel: Kernel, schedule: Schedule, soc: Soc, asked: Asked, known: Constants = PUBLISHED
) -> Simulated:
    """A call's simulated times. Raises CannotSimulate, Rejected, CannotBuild, Unreadable."""
    return timed(sampled(kernel, schedule, soc, asked), soc, [known])[0]


def sampled(kernel: Kernel, schedule: Schedule, soc: Soc, asked: Asked) -> list[Ran]:
    """What blocks of it do, to be timed by any constants. Raises the same."""
    return ran(steps_of(kernel, schedule, soc), soc, call_of(kernel, asked), dict(kernel.reals))


def timed(found: Sequence[Ran], soc: Soc, variants: Sequence[Constants]) -> list[Simulated]:
    """The same blocks by each set of constants."""
    sizes = [known.l2_bytes for known in variants]
    kept = {nbytes: l2.found(found, nbytes) for nbytes in set(sizes)}
    there = [[kept[nbytes][place] for nbytes in sizes] for place in range(len(found))]
    by_step = [step_times(each, soc, variants, had) for each, had in zip(found, there)]
    return [Simulated([times[v] for times in by_step]) for v in range(len(variants))]


def step_times(
    found: Ran, soc: Soc, variants: Sequence[Constants], there: Sequence[float] = ()
) -> list[Timed]:
    """One step by each set of constants. there: by set, bytes that L2 has of earlier steps, else none."""
    firsts = [sum(found.first().values()) - had for had in there or [0.0] * len(variants)]
    rates = [limited(found, soc, known, first) for known, first in zip(variants, firsts)]
    replays = {block: replay(trace, variants, rates) for block, trace in found.outcome.traces.items()}
    return [step_time(found, soc, known, replays, v, firsts[v]) for v, known in enumerate(variants)]


def limited(found: Ran, soc: Soc, known: Constants, first: float) -> Rates:
    """What a block's cores get where all of them read at once: a share of the memory's and L2's rate.

    first: bytes that have to come from the memory.
    """
    active = min(found.count, cores_of(found, soc))
    total = sum(found.read().values())
    least_us = max(first / (soc.read_gb_s * 1e3), total / known.l2_b_us)
    read = total / least_us / active if least_us else float("inf")
    return Rates(soc.mhz, read, soc.read_gb_s * 1e3 / active)


def cores_of(found: Ran, soc: Soc) -> int:
    """How many blocks run at once."""
    return soc.cubes if "AIC" in found.cores else soc.vectors


def step_time(
    found: Ran, soc: Soc, known: Constants, replays: Mapping[int, Replayed], variant: int, first: float
) -> Timed:
    """Blocks go to cores in turns, and the core that has most to do is last."""
    cores, bandwidth = cores_of(found, soc), soc.read_gb_s * 1e3
    each = found.of_all({block: float(times.us[variant]) for block, times in replays.items()})
    us = max(float(np.bincount(np.arange(found.count) % cores, each, cores).max()), first / bandwidth)
    busy = busy_shares(found, replays, variant, cores * us)
    moved = {path: found.moved(path) for path in found.outcome.moved}
    most = macs_per_cycle(found) * soc.mhz * soc.cubes * us
    return Timed(
        found.step.function,
        us,
        known.launch_cube_us if "AIC" in found.cores else known.launch_vector_us,
        busy.get(f"AIC.{PIPES[M]}", 0.0),
        moved.get("MAC", 0.0) / most,
        first / bandwidth / us,
        busy,
        found.outcome.peak,
        moved,
    )


def busy_shares(
    found: Ran, replays: Mapping[int, Replayed], variant: int, whole_us: float
) -> dict[str, float]:
    """Of the time of all cores, what each kind of pipe is busy."""
    shares = {}
    for place, name in enumerate(f"{core}.{pipe}" for core in found.cores for pipe in PIPES):
        spent = {block: float(times.busy[variant][place]) for block, times in replays.items()}
        if any(spent.values()):
            shares[name] = float(found.of_all(spent).sum()) / whole_us
    return shares


def macs_per_cycle(found: Ran) -> int:
    """Of a cube, for the type of what the step reads first."""
    types = [each.type for each in found.step.arguments.values() if isinstance(each, Pointer)]
    return MAC_PER_CYCLE.get(types[0] if types else "bf16", MAC_PER_CYCLE["bf16"])
