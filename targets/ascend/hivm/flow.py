"""What ops mean that decide what is done next: loops and branches, and flags between pipes and cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from . import axes, cube, fractals, moves, scalars, shapes, vectors
from .machine import Core
from .moves import pipe_of
from .parse import Module, Op, Region, Unreadable
from .scalars import Do, Make

Flow = Callable[[Core], Iterator[None]]  # yields where it cannot go on until another core has
ENDS = ("scf.yield", "func.return")


@dataclass(frozen=True, slots=True)
class Body:
    """A region ready to run. steps: what each op does, and whether it may have to wait for another core.

    arguments, ends: names of what it gets and of what it gives back. scalars: ops on single numbers.
    """

    steps: tuple[tuple[Callable[[Core], Iterator[None] | None], bool], ...]
    arguments: tuple[str, ...]
    ends: tuple[str, ...]
    scalars: int

    def run(self, core: Core) -> Iterator[None]:
        """Does all of it."""
        core.scalars += self.scalars
        for do, waits in self.steps:
            if waits:
                yield from do(core) or ()
            else:
                do(core)


def body(region: Region, module: Module) -> Body:
    """Raises Unreadable for the first op that is not known."""
    ops = [op for op in region.ops if op.name not in ENDS]
    ends = next((op.operands for op in region.ops if op.name in ENDS), ())
    single = sum(op.name.startswith(("arith.", "affine.", "math.")) for op in ops)
    single -= sum(op.name == "arith.constant" for op in ops)
    return Body(tuple(step(op, module) for op in ops), region.arguments, ends, single)


def step(op: Op, module: Module) -> tuple[Callable[[Core], Iterator[None] | None], bool]:
    """What an op does."""
    if op.name in FLOWS:
        return FLOWS[op.name](op, module), True
    if op.name in OPS:
        return OPS[op.name](op, module), False
    raise Unreadable(f"{op}: what {op.name} means is not known; it belongs among targets/ascend/hivm's ops")


def loop(op: Op, module: Module) -> Flow:
    first, end, stride, *starts = op.operands
    inner = body(op.regions[0], module)
    counter, *carried = inner.arguments

    def flow(core: Core) -> Iterator[None]:
        values = core.values
        state = [values[name] for name in starts]
        for i in range(int(values[first]), int(values[end]), int(values[stride])):
            values[counter] = i
            values.update(zip(carried, state))
            yield from inner.run(core)
            state = [values[name] for name in inner.ends]
        values.update(zip(op.results, state))

    return flow


def branch(op: Op, module: Module) -> Flow:
    (test,) = op.operands
    bodies = [body(region, module) for region in op.regions]

    def flow(core: Core) -> Iterator[None]:
        values = core.values
        taken = bodies[0] if values[test] else bodies[1] if len(bodies) > 1 else None
        if taken:
            yield from taken.run(core)
            values.update(zip(op.results, [values[name] for name in taken.ends]))

    return flow


def sync_block_wait(op: Op, module: Module) -> Flow:
    number = flag(op)

    def flow(core: Core) -> Iterator[None]:
        while not core.receive(number(core)):
            yield

    return flow


def sync_block_set(op: Op, module: Module) -> Do:
    number, pipe = flag(op), pipe_of(op, "tpipe")
    if pipe is None:
        raise Unreadable(f"{op} tells when all pipes are done, which is not known")
    return lambda core: core.send(pipe, number(core))


def flag(op: Op) -> Callable[[Core], int]:
    """Its number, which may only be known when it runs."""
    if "static_flag_id" in op.attributes:
        found = op.number("static_flag_id")
        return lambda core: found
    name = op.operands[0]
    return lambda core: int(core.values[name])


def event(op: Op) -> Callable[[Core], int]:
    """The same of a flag between pipes."""
    if "static_event_id" in op.attributes:
        found = int(op.words("static_event_id").removeprefix("EVENT_ID"))
        return lambda core: found
    name = op.operands[0]
    return lambda core: int(core.values[name])


def pipes(op: Op) -> tuple[int, int]:
    """Who sets a flag, and who waits for it."""
    source, target = pipe_of(op, "set_pipe"), pipe_of(op, "wait_pipe")
    if source is None or target is None:
        raise Unreadable(f"{op} is of all pipes; expected one that sets and one that waits")
    return source, target


def set_flag(op: Op, module: Module) -> Do:
    (source, target), number = pipes(op), event(op)
    return lambda core: core.set(source, target, number(core))


def wait_flag(op: Op, module: Module) -> Do:
    (source, target), number = pipes(op), event(op)
    return lambda core: core.wait(source, target, number(core))


def pipe_barrier(op: Op, module: Module) -> Do:
    pipe = pipe_of(op, "pipe")
    return lambda core: core.barrier(pipe)


def nothing(op: Op, module: Module) -> Do:
    return lambda core: None


def block_index(op: Op, module: Module) -> Do:
    (made,) = op.results
    return lambda core: core.values.__setitem__(made, core.machine.block)


def sub_block_index(op: Op, module: Module) -> Do:
    (made,) = op.results
    return lambda core: core.values.__setitem__(made, core.sub_block)


FLOWS: Mapping[str, Callable[[Op, Module], Flow]] = {
    "scf.for": loop,
    "scf.if": branch,
    "hivm.hir.sync_block_wait": sync_block_wait,
}
OPS: Mapping[str, Make] = {
    **scalars.OPS,
    **shapes.OPS,
    **moves.OPS,
    **fractals.OPS,
    **cube.OPS,
    **vectors.OPS,
    **axes.OPS,
    "hivm.hir.sync_block_set": sync_block_set,
    "hivm.hir.set_flag": set_flag,
    "hivm.hir.wait_flag": wait_flag,
    "hivm.hir.pipe_barrier": pipe_barrier,
    "hivm.hir.set_mask_norm": nothing,
    "hivm.hir.set_ffts_base_addr": nothing,
    "hivm.hir.get_block_idx": block_index,
    "hivm.hir.get_sub_block_idx": sub_block_index,
}
