"""What ops that only look at memory in another way mean: dialect memref, and where buffers are planned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from .machine import Core
from .memory import memref, row_major
from .parse import Module, Op
from .scalars import Do, Make
from .view import View

DYNAMIC = -9223372036854775808


def filled(static: Sequence[int], dynamic: Sequence[str], values: Mapping[str, Any]) -> list[int]:
    """Numbers of which some are only known when it runs."""
    rest = iter(dynamic)
    return [int(values[next(rest)]) if each == DYNAMIC else each for each in static]


def remembered(op: Op, of: Callable[[Core], Any], make: Callable[[Core, Any], View]) -> Do:
    """What is made of the same thing again is the same view: loops make few, and often."""
    (made,) = op.results

    def do(core: Core) -> None:
        source = of(core)
        key = (op.line, source)
        if key not in core.views:
            core.views[key] = make(core, source)
        core.values[made] = core.views[key]

    return do


def pointer_cast(op: Op, module: Module) -> Do:
    """A buffer planned at an address; one memory is one core's."""
    shape, type_, space = memref(op.types[0])
    addresses, sizes = op.operands_by_segment()
    (address,) = addresses

    def make(core: Core, found: tuple[int, ...]) -> View:
        start, *rest = found
        dims = iter(rest)
        whole = [next(dims) if dim < 0 else dim for dim in shape]
        return View.buffer(core.memories[space], start, type_, whole)

    return remembered(op, lambda core: tuple(int(core.values[name]) for name in (address, *sizes)), make)


def reinterpret_cast(op: Op, module: Module) -> Do:
    (source,), *dynamic = op.operands_by_segment()
    static = [op.numbers(f"static_{what}") for what in ("offsets", "sizes", "strides")]
    (made,) = op.results

    def do(core: Core) -> None:
        values = core.values
        offset, shape, strides = (filled(*each, values) for each in zip(static, dynamic))
        values[made] = values[source].at(offset[0], shape, strides)

    return do


def subview(op: Op, module: Module) -> Do:
    (source,), *dynamic = op.operands_by_segment()
    static = [op.numbers(f"static_{what}") for what in ("offsets", "sizes", "strides")]
    (made,) = op.results
    kept = kept_axes(static[1], memref(op.types[0])[0])

    def make(core: Core, of: View) -> View:
        offsets, sizes, steps = (filled(*each, core.values) for each in zip(static, dynamic))
        offset = of.offset + sum(at * stride for at, stride in zip(offsets, of.strides))
        strides = [step * stride for step, stride in zip(steps, of.strides)]
        return of.at(offset, [sizes[i] for i in kept], [strides[i] for i in kept])

    if not any(dynamic):
        return remembered(op, lambda core: core.values[source], make)

    def do(core: Core) -> None:
        core.values[made] = make(core, core.values[source])

    return do


def kept_axes(sizes: Sequence[int], shape: Sequence[int]) -> list[int]:
    """Which axes are left in that shape: some of size 1 are not, the first where any would do."""
    kept: list[int] = []
    for axis in reversed(range(len(sizes))):
        left = shape[: len(shape) - len(kept)]
        if left and (sizes[axis] != 1 or left[-1] == 1):
            kept.insert(0, axis)
    return kept


def view(op: Op, module: Module) -> Do:
    """Bytes taken as something else, from a byte on."""
    source, *numbers = op.operands
    shape, type_, _ = memref(op.types[0])

    def make(core: Core, found: tuple[Any, ...]) -> View:
        of, place, *rest = found
        dims = iter(rest)
        whole = [next(dims) if dim < 0 else dim for dim in shape]
        return View.buffer(of.memory, of.base + of.offset + place, type_, whole)

    return remembered(
        op, lambda core: (core.values[source], *(int(core.values[name]) for name in numbers)), make
    )


def same(op: Op, module: Module) -> Do:
    (source,), (made,) = op.operands, op.results

    def do(core: Core) -> None:
        core.values[made] = core.values[source]

    return do


def collapse_shape(op: Op, module: Module) -> Do:
    groups, (source,) = op.groups("reassociation"), op.operands

    def make(core: Core, of: View) -> View:
        shape, strides = [], []
        for group in groups:
            shape.append(prod(of.shape[axis] for axis in group))
            wide = [axis for axis in group if of.shape[axis] != 1] or group[-1:]
            strides.append(of.strides[wide[-1]] if wide else 1)
        return of.at(of.offset, shape, strides)

    return remembered(op, lambda core: core.values[source], make)


def expand_shape(op: Op, module: Module) -> Do:
    groups = op.groups("reassociation")
    source, *sizes = op.operands
    static = op.numbers("static_output_shape")

    def make(core: Core, found: tuple[Any, ...]) -> View:
        of, *dynamic = found
        rest = iter(dynamic)
        shape = [next(rest) if dim == DYNAMIC else dim for dim in static]
        strides = [1] * len(shape)
        for group, stride in zip(groups, of.strides):
            for axis, each in zip(group, row_major([shape[axis] for axis in group])):
                strides[axis] = each * stride
        return View(of.memory, of.base, of.type, of.offset, shape, strides, of.within)

    return remembered(
        op, lambda core: (core.values[source], *(int(core.values[name]) for name in sizes)), make
    )


def strided_metadata(op: Op, module: Module) -> Do:
    """Its first element, offset, sizes and strides; the offset counts from the buffer's start, as here."""
    (source,) = op.operands
    first, offset, *numbers = op.results

    def do(core: Core) -> None:
        of = core.values[source]
        core.values[first] = of.at(0, (), ())
        core.values[offset] = of.offset
        core.values.update(zip(numbers, (*of.shape, *of.strides)))

    return do


OPS: Mapping[str, Make] = {
    "memref.extract_strided_metadata": strided_metadata,
    "hivm.hir.pointer_cast": pointer_cast,
    "memref.reinterpret_cast": reinterpret_cast,
    "memref.subview": subview,
    "memref.view": view,
    "memref.cast": same,
    "memref.memory_space_cast": same,
    "memref.collapse_shape": collapse_shape,
    "memref.expand_shape": expand_shape,
}
