"""The cube's product: fractals in L1 times fractals in L1, added up in L0C."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ....compiler.ir import Array
from .fractals import folded, unfolded
from .machine import Core
from .parse import Module, Op, Unreadable
from .scalars import Do, Make
from .trace import MTE1, MTE2, M, Work
from .view import View

NO_FLAG = -1
SYNC = 7  # operands on flags: wait for a, for b, free a, free b, which half of L0, two more


def product(op: Op, module: Module) -> Do:
    """c [m, n] = or += a [m, k] @ b [k, n]; sums are f32, or i32 of i8.

    The vendor's library waits for both tiles, and tells when it has taken them from L1. How it goes through
    L0A and L0B on its own is not looked at.
    """
    groups = op.operands_by_segment()
    (a,), (b,), (first,), (m,), (k,), (n,), (c,), sync = groups[:8]
    if any(groups[8:]) or len(sync) not in (0, SYNC):
        raise Unreadable(f"{op} has operands that are not known")
    turned = {"a": "a_transpose" in op.attributes, "b": "b_transpose" in op.attributes}

    def do(core: Core) -> None:
        values = core.values
        flags = [int(values[name]) for name in sync] or [NO_FLAG] * SYNC
        left, right, made = values[a], values[b], values[c]
        sizes = int(values[m]), int(values[k]), int(values[n])
        wait_for(core, flags[:2])
        known = core.issue(op, MTE1, fed(left, right, sizes), [left, right], [])
        for event in flags[2:4]:
            if event != NO_FLAG:
                core.set(MTE1, MTE2, event)
        core.feed()
        core.machine.trace.moved["MAC"] += sizes[0] * sizes[1] * sizes[2]
        begins = bool(values[first])
        if core.issue(op, M, multiplied(left, sizes), [] if begins else [made], [made], known):
            add(made, times(left, right, sizes, **turned), begins)

    return do


def wait_for(core: Core, events: list[int]) -> None:
    """Both tiles are there; one flag may stand for both."""
    for event in dict.fromkeys(events):
        if event != NO_FLAG:
            core.wait(MTE2, MTE1, event)


def fed(left: View, right: View, sizes: tuple[int, int, int]) -> Work:
    """Bytes into L0A and into L0B."""
    m, k, n = sizes
    return Work("l1_l0", (m * k * left.itemsize, k * n * right.itemsize))


def multiplied(left: View, sizes: tuple[int, int, int]) -> Work:
    """Fractals of 16x16 sums, 32 bytes of each row at a time; f32 takes two turns."""
    m, k, n = sizes
    turns = 2 if left.type == "f32" else 1
    return Work("mad", (-(-m // 16) * -(-k * left.itemsize // 32) * -(-n // 16) * turns,))


def times(left: View, right: View, sizes: tuple[int, int, int], a: bool, b: bool) -> Array:
    """The product of what counts of both tiles."""
    m, k, n = sizes
    number = np.float64 if left.type == "i8" else np.float32
    x, y = unfolded(left.read()), unfolded(right.read())
    x, y = x.T if a else x, y.T if b else y
    return np.asarray(x[:m, :k].astype(number) @ y[:k, :n].astype(number))


def add(made: View, sums: Array, begins: bool) -> None:
    """Sets or adds to the sums in L0C."""
    m, n = sums.shape
    whole = unfolded(made.read()).copy()
    whole[:m, :n] = sums if begins else whole[:m, :n] + sums
    made.write(folded(whole, made.shape))


OPS: Mapping[str, Make] = {"hivm.hir.mmadL1": product}
