"""A kernel's blocks, one after the other: each on its own cores, all on the same memory of the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ....compiler.ir import Array
from .flow import Body, body
from .hazards import Owners
from .machine import Core, Fault, Machine
from .memory import DTYPES, Hollow, Memory
from .parse import Module, Unreadable, parse
from .trace import Trace
from .view import OutOfBounds, View

Argument = View | Array | Hollow | float
TYPES: Mapping[str, str] = {str(dtype): name for name, dtype in DTYPES.items()}
LOCKS = 64  # bytes


@dataclass(slots=True)
class Outcome:
    """What came of a kernel's blocks. races: accesses that nothing orders; faults: why a block stopped.

    peak: bytes by memory up to the end of what was touched. moved: bytes by path, "MAC" products.
    traces: what each block did, by its number.
    """

    races: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    peak: dict[str, int] = field(default_factory=dict)
    moved: Counter[str] = field(default_factory=Counter)
    traces: dict[int, Trace] = field(default_factory=dict)

    @property
    def wrong(self) -> str | None:
        """A sentence on the first thing that is wrong, or None."""
        found = [*self.faults, *self.races]
        return f"{found[0]} (and {len(found) - 1} more)" if len(found) > 1 else next(iter(found), None)


@dataclass(frozen=True, slots=True)
class Program:
    """A kernel read and ready to run. bodies: a core's name to what it does. workspace: bytes of a block."""

    module: Module
    bodies: Mapping[str, Body]
    workspace: int


def program(text: str, name: str) -> Program:
    """Raises Unreadable for text or an op that is not known."""
    module = parse(text)
    made: dict[str, Body] = {}
    for function, cores in ((name, ()), (f"{name}_mix_aic", ("AIC",)), (f"{name}_mix_aiv", ("AIV0", "AIV1"))):
        if function in module.functions:
            op = module.functions[function]
            alone = ("AIC",) if "func_core_type<AIC>" in op.rest else ("AIV0",)
            made |= dict.fromkeys(cores or alone, body(op.regions[0], module))
    if not made:
        raise Unreadable(f"there is no function {name!r}; there are {', '.join(module.functions)}")
    return Program(module, made, module.constant("_infer_workspace_shape_function"))


def run(
    kernel: Program,
    grid: Sequence[int],
    arguments: Sequence[Argument],
    blocks: Sequence[int] | None = None,
    checked: bool = True,
    moves: bool = True,
    outcome: Outcome | None = None,
) -> Outcome:
    """Runs these blocks, or all. arguments: memory or arrays, which are changed, and numbers, in their order.

    checked: whether accesses are looked at for races. moves: False leaves out what only computes.
    outcome: what came of other blocks, to be added to.
    """
    count = int(np.prod(grid))
    arrays = [device(f"argument {i}", each) for i, each in enumerate(arguments)]
    spare = [
        device("ffts", 0),
        device("locks", np.zeros(LOCKS, np.int8)),
        device("workspace", np.full(max(kernel.workspace * count, 1), -1 if moves else 0, np.int8)),
    ]
    given = [*spare, *arrays, *grid]
    memories = {each.memory.name: each.memory for each in given if isinstance(each, View)}
    for memory in memories.values() if not moves else ():
        memory.track()
    owners = {name: Owners(memory.size) for name, memory in memories.items()} if checked else {}
    outcome = outcome or Outcome()
    for block in range(count) if blocks is None else blocks:
        one(kernel, given, block, Machine(list(kernel.bodies), block, checked, moves), owners, outcome)
    return outcome


def device(name: str, value: Any) -> Any:
    """Memory of the device as a function gets it; numbers stay."""
    if isinstance(value, Hollow):
        return View.whole(Memory(name, "gm", None, value.nbytes), value.type)
    if not isinstance(value, np.ndarray):
        return value
    return View.whole(Memory(name, "gm", value.reshape(-1).view(np.uint8)), TYPES[str(value.dtype)])


def one(
    kernel: Program,
    given: Sequence[Any],
    block: int,
    machine: Machine,
    owners: dict[str, Owners],
    outcome: Outcome,
) -> None:
    """One block, into the outcome."""
    machine.owners = owners
    try:
        with np.errstate(all="ignore"):
            together(machine.cores, [start(core, kernel.bodies[core.name], given) for core in machine.cores])
        machine.left()
    except (Fault, OutOfBounds) as fault:
        outcome.faults.append(f"block {block}: {fault}")
    outcome.races += [f"block {block}: {each}" for each in machine.wrong]
    outcome.traces[block] = machine.trace
    outcome.moved += machine.trace.moved
    for core in machine.cores:
        for memory in core.memories.values():
            _, _, name = memory.name.partition(".")
            outcome.peak[name] = max(outcome.peak.get(name, 0), memory.peak)


def start(core: Core, work: Body, given: Sequence[Any]) -> Iterator[None]:
    """A core with its function's arguments."""
    core.values.update(zip(work.arguments, given))
    return work.run(core)


def together(cores: Sequence[Core], running: Sequence[Iterator[None]]) -> None:
    """Lets cores go on in turns until all are done. Raises Fault where none can."""
    live = dict(zip(cores, running))
    while live:
        events = [core.machine.trace.events for core in live]
        before = len(events[0]), len(live)
        for core in list(live):
            for _ in live[core]:
                break
            else:
                del live[core]
        if (len(events[0]), len(live)) == before:
            raise Fault(f"deadlock: {', '.join(core.name for core in live)} wait for flags that nobody sets")
