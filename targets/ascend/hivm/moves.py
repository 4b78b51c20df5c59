"""What ops that move numbers between memories mean.

Amounts of their work: bytes, and bursts: how many pieces of the device's memory that lie apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .machine import Core
from .memory import DTYPES, NAMES
from .parse import Module, Op, Unreadable
from .scalars import Do, Make
from .trace import MTE2, MTE3, PLACES, S, V, Work
from .view import View

Spread = tuple[int, ...]


def counted(core: Core, source: View, target: View, kind: str) -> Work:
    """Notes what is moved; the work of it."""
    trace, device = core.machine.trace, source if source.memory.space == "gm" else target
    nbytes = max(source.nbytes if device is source else target.nbytes, 0)
    path = "->".join(NAMES.get(view.memory.space, "GM") for view in (source, target))
    trace.moved[path] += nbytes
    (trace.read if device is source else trace.written)[device.memory.name] += nbytes
    if nbytes:
        trace.touched.append((device.memory.name, *device.span))
    return Work(kind, (nbytes, device.size / device.run if device.size else 0))


def plain(op: Op, allowed: Mapping[str, tuple[str, ...]]) -> None:
    """Raises Unreadable for an attribute that means something which is not done here."""
    for name, values in allowed.items():
        if op.words(name) not in values:
            raise Unreadable(f"{op} has {name} = {op.attributes[name]}, which is not known")


def load(op: Op, module: Module) -> Do:
    """From the device to a vector core. With a value to pad with, what is left over is filled with it."""
    groups = op.operands_by_segment()
    (source,), (target,), padding, left, *rest = [*groups, (), ()][:6]
    plain(
        op, {"pad_mode": ("", "PadNull", "PadValue"), "may_implicit_transpose_with_last_axis": ("false", "")}
    )
    if any(rest) and op.words("init_out_buffer") != "true":
        raise Unreadable(f"{op} has operands that are not known")

    def do(core: Core) -> None:
        values = core.values
        given, made = values[source], values[target]
        work = counted(core, given, made, "gm_ub")
        if core.issue(op, MTE2, work, [given], [made]):
            skip = int(values[left[0]]) if left else 0
            if padding and (skip or made.shape != given.shape):
                made.write(values[padding[0]])
            corner(made, given.shape, skip).write(given.read())

    return do


def corner(view: View, shape: Spread, skip: int = 0) -> View:
    """So many elements of each axis, of the last those from `skip` on."""
    offset = view.offset + (skip * view.strides[-1] if skip else 0)
    return view if view.shape == shape and not skip else view.at(offset, shape, view.strides)


def store(op: Op, module: Module) -> Do:
    """From a vector core to the device, or added to what is there."""
    source, target = op.operands[:2]
    plain(op, {"atomic_kind": ("", "none", "add")})
    adds = op.words("atomic_kind") == "add"

    def do(core: Core) -> None:
        given, made = core.values[source], core.values[target]
        work = counted(core, given, made, "ub_gm")
        if core.issue(op, MTE3, work, [given], [made]):
            made.write(made.read() + given.read() if adds else given.read())

    return do


def copy(op: Op, module: Module) -> Do:
    """Within a vector core."""
    source, target = op.operands[:2]

    def do(core: Core) -> None:
        given, made = core.values[source], core.values[target]
        if {given.memory.space, made.memory.space} != {"ub"}:
            raise Unreadable(f"{op} copies from {given.memory.name} to {made.memory.name}; expected UB")
        if core.issue(op, V, repeats("vcopy", made), [given], [made]):
            made.write(given.read())

    return do


def repeats(kind: str, view: View, *more: float) -> Work:
    """Work of a vector core: how many times 256 bytes, row by row where rows lie apart."""
    if view.type == "i1":
        return Work(kind, (-(-view.size // 2048) or 1, *more))
    row = max(view.run, 1)
    return Work(kind, (max(view.size // row, 1) * -(-row * view.itemsize // 256), *more))


def broadcast(op: Op, module: Module) -> Do:
    """A number or a short axis, repeated; into L1 by the pipe that loads it."""
    source, target = op.operands[:2]
    written = lent(op)

    def do(core: Core) -> None:
        given, made = core.values[source], core.values[target]
        reads = [given] if isinstance(given, View) else []
        if made.memory.space == "cbuf":
            moves = core.issue(op, MTE2, Work("l1_fill", (made.nbytes,)), reads, [made])
        else:
            moves = core.issue(op, V, repeats("vdup", made), reads, written(core, made))
        if moves:
            made.write(given.read() if isinstance(given, View) else given)

    return do


def lent(op: Op) -> Callable[[Core, View], list[View]]:
    """What an op writes: its result, and the buffers that it is lent."""
    names = [name for group in op.operands_by_segment()[2:] for name in group]

    def written(core: Core, made: View) -> list[View]:
        return [made, *(each for name in names if isinstance(each := core.values[name], View))]

    return written


def element(of: View, places: list[Any]) -> View:
    """One element."""
    return of.at(of.offset + sum(int(at) * stride for at, stride in zip(places, of.strides)), (1,), (1,))


def scalar_load(op: Op, module: Module) -> Do:
    source, *places = op.operands
    (made,) = op.results

    def do(core: Core) -> None:
        given = element(core.values[source], [core.values[place] for place in places])
        there = core.issue(op, S, Work(f"scalar_{given.memory.space}", (1,)), [given], [])
        value = given.read()[0] if there else DTYPES[given.type].type(0)
        core.values[made] = int(value) if given.type.startswith("i") else value

    return do


def scalar_store(op: Op, module: Module) -> Do:
    value, target, *places = op.operands

    def do(core: Core) -> None:
        made = element(core.values[target], [core.values[place] for place in places])
        if core.issue(op, S, Work(f"scalar_{made.memory.space}", (1,)), [], [made]):
            made.write(np.asarray(core.values[value]))

    return do


def pipe_of(op: Op, name: str) -> int | None:
    """The pipe that an attribute names; None is all."""
    word = op.words(name).removeprefix("PIPE_")
    if word != "ALL" and word not in PLACES:
        raise Unreadable(f"{op} names a pipe {word!r}; expected ALL or one of {', '.join(PLACES)}")
    return PLACES.get(word)


OPS: Mapping[str, Make] = {
    "hivm.hir.load": load,
    "hivm.hir.store": store,
    "hivm.hir.copy": copy,
    "hivm.hir.vbrc": broadcast,
    "memref.load": scalar_load,
    "memref.store": scalar_store,
}
