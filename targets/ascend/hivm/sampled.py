"""Some blocks of each of a kernel's steps, run for what they do and not for their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np

from ....compiler.ir import Array
from ..program import Step
from ..soc import Soc
from . import blocks, interpret
from .blocks import Outcome
from .calls import Call

EVENTS = 40_000  # of a step's blocks, after which no further one is run
MOST_BLOCKS = 9


class CannotSimulate(RuntimeError):
    """A step that stops before its end: says why."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A step's blocks that were run, of `count`. cores: what a block has, such as AIC, AIV0 and AIV1.

    sizes: bytes by memory of the device, of those that a call touches.
    """

    step: Step
    count: int
    cores: tuple[str, ...]
    outcome: Outcome
    sizes: Mapping[str, int]

    def of_all(self, known: Mapping[int, float]) -> Array:
        """Of every block, from those that were run: between two it goes evenly from one to the other."""
        at = sorted(known)
        return np.interp(np.arange(self.count), at, [known[block] for block in at])

    def moved(self, path: str) -> float:
        """Bytes by a path in all blocks."""
        traces = self.outcome.traces
        return float(self.of_all({block: trace.moved[path] for block, trace in traces.items()}).sum())

    def read(self) -> Mapping[str, float]:
        """Bytes that all blocks read of the device, by memory."""
        traces = self.outcome.traces
        names = {name for trace in traces.values() for name in trace.read}
        return {
            name: float(self.of_all({block: trace.read[name] for block, trace in traces.items()}).sum())
            for name in names
        }

    def first(self) -> Mapping[str, float]:
        """Those of them that none had read before."""
        return {name: min(nbytes, self.sizes.get(name, nbytes)) for name, nbytes in self.read().items()}


def ran(steps: Sequence[Step], soc: Soc, call: Call, reals: Mapping[str, float]) -> list[Ran]:
    """What some blocks of each step do in this call.

    Raises CannotSimulate, Rejected, CannotBuild, or Unreadable with the op that is not known.
    """
    ports = interpret.placed(steps, call.operands, call.results, call.sizes, call.in_place, whole=False)
    sizes = {port: call.touched.get(port, memory.size) for port, memory in ports.items()}
    sizes["workspace"] = 0  # what a block's cores hand each other stays in L2
    return [
        one(step, soc, interpret.arguments(step, ports, call.sizes, reals), call, sizes)
        for step in interpret.taken(steps, call.sizes)
    ]


def one(
    step: Step, soc: Soc, arguments: Sequence[blocks.Argument], call: Call, sizes: Mapping[str, int]
) -> Ran:
    """The same of one step."""
    program, outcome = interpret.program(step, soc), Outcome()
    grid = [axis.at(call.sizes) for axis in step.grid]
    for block in chosen(prod(grid)):
        blocks.run(program, grid, arguments, [block], checked=False, moves=False, outcome=outcome)
        if outcome.faults:
            raise CannotSimulate(f"{step.function} stops: {outcome.faults[0]}")
        if len(outcome.traces) > 1 and sum(len(each.events) for each in outcome.traces.values()) > EVENTS:
            break
    return Ran(step, prod(grid), tuple(program.bodies), outcome, sizes)


def chosen(count: int) -> list[int]:
    """Blocks worth running, first those at the ends; each further one halves the widest gap."""
    places = dict.fromkeys((0, count - 1))
    while len(places) < min(count, MOST_BLOCKS):
        ordered = sorted(places)
        low, high = max(pairwise(ordered), key=lambda pair: pair[1] - pair[0])
        places[(low + high) // 2] = None
    return list(places)
