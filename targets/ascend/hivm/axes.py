"""What ops of the vector cores mean that go along axes: sums, turns, places, and elements in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .machine import Core
from .moves import lent, repeats
from .parse import Module, Op, Unreadable
from .scalars import Do, Make
from .trace import V

REDUCES: Mapping[str, Callable[..., Any]] = {"sum": np.sum, "max": np.max, "min": np.min, "prod": np.prod}
CHANNELS: Mapping[str, tuple[int, ...]] = {"CHANNEL_0": (0,), "CHANNEL_1": (1,), "ALL_CHANNELS": (0, 1)}


def reduce(op: Op, module: Module) -> Do:
    """Along axes, which stay with size 1."""
    source, target = op.operands[:2]
    word, axes = op.words("arith"), tuple(op.numbers("reduce_dims"))
    if word not in REDUCES:
        raise Unreadable(f"{op} reduces by {word}; expected one of {', '.join(REDUCES)}")
    written = lent(op)

    def do(core: Core) -> None:
        given, made = core.values[source], core.values[target]
        last = len(given.shape) - 1 in axes
        work = repeats(f"vreduce_{'last' if last else 'first'}", given)
        if core.issue(op, V, work, [given], written(core, made)):
            values = given.read()
            exact = values.astype(np.float32) if values.dtype.itemsize == 2 else values
            made.write(REDUCES[word](exact, axis=axes, keepdims=True).reshape(made.shape))

    return do


def arange(op: Op, module: Module) -> Do:
    """offset + i0 * stride0 + i1 * stride1 .."""
    (target,), (offset, *strides) = (
        op.operands_by_segment()[0],
        [n for g in op.operands_by_segment()[1:] for n in g],
    )

    def do(core: Core) -> None:
        made = core.values[target]
        if core.issue(op, V, repeats("varange", made), [], [made]):
            places = np.indices(made.shape).astype(np.int64)
            steps = [int(core.values[name]) for name in strides]
            made.write(int(core.values[offset]) + sum(at * step for at, step in zip(places, steps)))

    return do


def transpose(op: Op, module: Module) -> Do:
    source, target = op.operands[:2]
    axes = op.numbers("permutation")
    written = lent(op)

    def do(core: Core) -> None:
        given, made = core.values[source], core.values[target]
        if core.issue(op, V, repeats("vtranspose", made), [given], written(core, made)):
            made.write(given.read().transpose(axes))

    return do


def deinterleave(op: Op, module: Module) -> Do:
    """Every second element, from the first or from the second on; or both apart."""
    source, *targets = op.operands
    channels, mode = op.number("channel_num"), op.words("index_mode")
    if channels != 2 or mode not in CHANNELS or len(targets) != len(CHANNELS[mode]):
        raise Unreadable(f"{op} takes {channels} channels apart by {mode}, which is not known")

    def do(core: Core) -> None:
        given, made = core.values[source], [core.values[name] for name in targets]
        if core.issue(op, V, repeats("vdeinterleave", given), [given], made):
            for channel, view in zip(CHANNELS[mode], made):
                view.write(given.read()[..., channel::2])

    return do


def interleave(op: Op, module: Module) -> Do:
    """Elements of two in turns."""
    names, (target,) = op.operands_by_segment()[:2]
    written = lent(op)

    def do(core: Core) -> None:
        given, made = [core.values[name] for name in names], core.values[target]
        if core.issue(op, V, repeats("vinterleave", made), given, written(core, made)):
            made.write(np.stack([each.read() for each in given], axis=-1).reshape(made.shape))

    return do


OPS: Mapping[str, Make] = {
    "hivm.hir.vreduce": reduce,
    "hivm.hir.varange": arange,
    "hivm.hir.vtranspose": transpose,
    "hivm.hir.vdeinterleave": deinterleave,
    "hivm.hir.vinterleave": interleave,
}
