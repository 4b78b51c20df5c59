"""What ops of the vector cores mean that go element by element, axes of size 1 repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ....compiler.ir import Array
from .machine import Core
from .memory import DTYPES
from .moves import lent, repeats
from .parse import Module, Op, Unreadable
from .scalars import Do, Make
from .trace import V
from .view import View

Compute = Callable[..., Any]


def logical(on_bits: Compute, on_masks: Compute) -> Compute:
    """Bits of whole numbers, or masks."""
    return lambda *given: (on_masks if given[0].dtype == np.bool_ else on_bits)(*given)


COMPUTES: Mapping[str, Compute] = {
    "vadd": np.add,
    "vsub": np.subtract,
    "vmul": np.multiply,
    "vdiv": np.divide,
    "vmax": np.maximum,
    "vmin": np.minimum,
    "vand": logical(np.bitwise_and, np.logical_and),
    "vor": logical(np.bitwise_or, np.logical_or),
    "vxor": logical(np.bitwise_xor, np.logical_xor),
    "vnot": logical(np.invert, np.logical_not),
    "vshl": np.left_shift,
    "vshr": np.right_shift,
    "vexp": np.exp,
    "vln": np.log,
    "vsqrt": np.sqrt,
    "vrsqrt": lambda x: (1 / np.sqrt(x.astype(np.float32))).astype(x.dtype),
    "vrec": lambda x: (1 / x).astype(x.dtype),
    "vabs": np.abs,
    "vrelu": lambda x: np.maximum(x, 0),
    "vsin": np.sin,
    "vcos": np.cos,
}
COMPARES: Mapping[str, Compute] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
ROUNDS: Mapping[str, Compute] = {
    "rint": np.rint,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "round": lambda x: np.sign(x) * np.floor(np.abs(x) + 0.5),
}


def elementwise(op: Op, module: Module) -> Do:
    """Numbers stand for arrays of them; a mask is a bit for each element."""
    name = op.name.rpartition(".")[2]
    compute = COMPUTES[name]
    given_names, (target,) = op.operands_by_segment()[:2]
    if op.numbers("transpose"):
        raise Unreadable(f"{op} turns its operands, which is not known")
    written = lent(op)

    def do(core: Core) -> None:
        given, made = [core.values[each] for each in given_names], core.values[target]
        views = [each for each in given if isinstance(each, View)]
        kind = name if len(views) == len(given) else f"{name}s"
        if core.issue(op, V, repeats(kind, made), views, written(core, made)):
            made.write(compute(*(numbers(each, made.type) for each in given)))

    return do


def numbers(given: Any, type_: str) -> Array:
    """A view's elements, or a number as one of that type."""
    return given.read() if isinstance(given, View) else np.asarray(given).astype(DTYPES[type_])


def compare(op: Op, module: Module) -> Do:
    left, right, target = op.operands[:3]
    test = COMPARES[op.words("compare_mode") or "eq"]
    written = lent(op)

    def do(core: Core) -> None:
        given, made = [core.values[left], core.values[right]], core.values[target]
        views = [each for each in given if isinstance(each, View)]
        kind = "vcmp" if len(views) == 2 else "vcmps"
        if core.issue(op, V, repeats(kind, views[0]), views, written(core, made)):
            made.write(test(*(numbers(each, views[0].type) for each in given)))

    return do


def select(op: Op, module: Module) -> Do:
    mask, first, second, target = op.operands[:4]
    written = lent(op)

    def do(core: Core) -> None:
        given = [core.values[each] for each in (mask, first, second)]
        made = core.values[target]
        views = [each for each in given if isinstance(each, View)]
        if core.issue(op, V, repeats("vsel", made), views, written(core, made)):
            chosen = [numbers(each, made.type) for each in given[1:]]
            made.write(np.where(numbers(given[0], "i1"), *chosen))

    return do


def cast(op: Op, module: Module) -> Do:
    """To another type; to a whole number as the rounding mode says, and never past its ends."""
    source, target = op.operands[:2]
    mode = op.words("round_mode")
    written = lent(op)

    def do(core: Core) -> None:
        given, made = core.values[source], core.values[target]
        wider = given if given.itemsize > made.itemsize else made
        if core.issue(op, V, repeats("vcast", wider), [given], written(core, made)):
            made.write(converted(given.read(), made.type, mode, op))

    return do


def converted(values: Array, type_: str, mode: str, op: Op) -> Array:
    """Raises Unreadable for a rounding mode that is not known."""
    dtype = DTYPES[type_]
    whole = dtype.kind == "i" and values.dtype.kind != "i" and values.dtype != np.bool_
    if not whole:
        if dtype.kind != "i" and values.dtype.itemsize > dtype.itemsize and mode not in ("rint", "round", ""):
            if values.dtype.kind != "i":
                raise Unreadable(f"{op} rounds by {mode}, which is not known between floats")
        return values.astype(dtype)
    if mode not in ROUNDS:
        raise Unreadable(f"{op} rounds by {mode}; expected one of {', '.join(ROUNDS)}")
    ends = np.iinfo(dtype)
    rounded = ROUNDS[mode](values.astype(np.float64))
    return np.where(rounded != rounded, 0, np.clip(rounded, ends.min, ends.max)).astype(dtype)


OPS: Mapping[str, Make] = {
    **{f"hivm.hir.{name}": elementwise for name in COMPUTES},
    "hivm.hir.vcmp": compare,
    "hivm.hir.vsel": select,
    "hivm.hir.vcast": cast,
}
