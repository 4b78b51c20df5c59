"""What ops on single numbers mean: dialects arith, math and affine."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .machine import Core
from .memory import DTYPES
from .parse import Module, Op, Unreadable

Do = Callable[[Core], None]
Make = Callable[[Op, Module], Do]
WIDTHS = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64}
UNCHANGED = ("index", "i64")


def divided(left: int, right: int) -> int:
    """Rounded towards zero."""
    whole = abs(left) // abs(right)
    return whole if (left < 0) == (right < 0) else -whole


def remainder(left: int, right: int) -> int:
    """Of a division rounded towards zero."""
    return left - divided(left, right) * right


INTEGERS: Mapping[str, Callable[[int, int], int]] = {
    "arith.addi": operator.add,
    "arith.subi": operator.sub,
    "arith.muli": operator.mul,
    "arith.divsi": divided,
    "arith.remsi": remainder,
    "arith.floordivsi": operator.floordiv,
    "arith.ceildivsi": lambda left, right: -(-left // right),
    "arith.andi": operator.and_,
    "arith.ori": operator.or_,
    "arith.xori": operator.xor,
    "arith.shli": operator.lshift,
    "arith.shrsi": operator.rshift,
    "arith.maxsi": max,
    "arith.minsi": min,
}
COMPARED: tuple[Callable[[Any, Any], bool], ...] = (
    *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
)
FLOATS: Mapping[str, Callable[[Any, Any], Any]] = {
    "arith.addf": operator.add,
    "arith.subf": operator.sub,
    "arith.mulf": operator.mul,
    "arith.divf": np.divide,
    "arith.maximumf": np.maximum,
    "arith.minimumf": np.minimum,
    "arith.maxnumf": np.fmax,
    "arith.minnumf": np.fmin,
}
FUNCTIONS: Mapping[str, Callable[[Any], Any]] = {
    "arith.negf": operator.neg,
    "math.sqrt": np.sqrt,
    "math.rsqrt": lambda x: 1 / np.sqrt(x),
    "math.exp": np.exp,
    "math.log": np.log,
    "math.absf": np.abs,
}
# In the order of MLIR's predicates; the second six are also true where one is NaN.
FLOATS_COMPARED: tuple[Callable[[Any, Any], bool], ...] = (
    *(operator.eq, operator.gt, operator.ge, operator.lt, operator.le),
    lambda left, right: bool(left < right or left > right),
)


def wrapped(type_: str) -> Callable[[Any], Any]:
    """What a whole number is in so many bits."""
    if type_ in UNCHANGED:
        return int
    bits = WIDTHS[type_]
    half = 1 << (bits - 1)
    if bits == 1:
        return lambda value: int(value) & 1
    return lambda value: (int(value) + half) % (half << 1) - half


def integer(op: Op, module: Module) -> Do:
    left, right = op.operands
    (made,), compute, fit = op.results, INTEGERS[op.name], wrapped(op.types[0])

    def do(core: Core) -> None:
        values = core.values
        values[made] = fit(compute(values[left], values[right]))

    return do


def floating(op: Op, module: Module) -> Do:
    compute = FLOATS.get(op.name) or FUNCTIONS[op.name]
    (made,), number = op.results, DTYPES[op.types[0]].type

    def do(core: Core) -> None:
        core.values[made] = number(compute(*(number(core.values[name]) for name in op.operands)))

    return do


def whole(op: Op, module: Module) -> Do:
    """A whole number in another type, taken as signed; an i1 that is made wider without a sign is 0 or 1."""
    (given,), (made,), fit = op.operands, op.results, wrapped(op.types[0])
    signed_bit = op.name == "arith.extsi" and op.signature[0][0] == "i1"

    def do(core: Core) -> None:
        value = core.values[given]
        value = value if np.isfinite(value) else 0
        core.values[made] = fit(-value if signed_bit else value)

    return do


def to_float(op: Op, module: Module) -> Do:
    (given,), (made,), number = op.operands, op.results, DTYPES[op.types[0]].type

    def do(core: Core) -> None:
        core.values[made] = number(core.values[given])

    return do


def compared(op: Op, module: Module) -> Do:
    left, right = op.operands
    (made,), place = op.results, op.number("predicate")
    if op.name == "arith.cmpi" and place >= len(COMPARED):
        mask = (1 << 64) - 1
        test: Callable[[Any, Any], bool] = lambda a, b: COMPARED[place - 4](a & mask, b & mask)  # noqa: E731
    elif op.name == "arith.cmpi":
        test = COMPARED[place]
    else:
        test = float_test(place, op)

    def do(core: Core) -> None:
        core.values[made] = int(test(core.values[left], core.values[right]))

    return do


def float_test(place: int, op: Op) -> Callable[[Any, Any], bool]:
    """MLIR's predicate of that number: 1 to 6 are ordered, 8 to 13 also true of NaN."""
    if 1 <= place <= 6:
        return FLOATS_COMPARED[place - 1]
    if 8 <= place <= 13:
        return lambda a, b: bool(a != a or b != b or FLOATS_COMPARED[place - 8](a, b))
    raise Unreadable(f"{op} has predicate {place}, which is not known")


def chosen(op: Op, module: Module) -> Do:
    test, first, second = op.operands
    (made,) = op.results

    def do(core: Core) -> None:
        values = core.values
        values[made] = values[first] if values[test] else values[second]

    return do


def constant(op: Op, module: Module) -> Do:
    value = literal(op.attributes["value"].partition(" : ")[0], op)
    (made,) = op.results

    def do(core: Core) -> None:
        core.values[made] = value

    return do


def literal(text: str, op: Op) -> Any:
    """A number as MLIR writes it: hexadecimal digits of a float are its bits."""
    type_ = op.types[0]
    if text in ("true", "false"):
        return int(text == "true")
    if type_ not in DTYPES or type_ not in ("f32", "f16", "bf16"):
        if not re.fullmatch(r"-?\d+", text):
            raise Unreadable(f"{op} has the value {text!r}; expected a whole number")
        return int(text)
    if text.startswith("0x"):
        dtype = DTYPES[type_]
        return np.array([int(text, 16)], f"u{dtype.itemsize}").view(dtype)[0]
    return DTYPES[type_].type(float(text))


def affine(op: Op, module: Module) -> Do:
    found = module.maps[op.attributes["map"].strip()]
    pick = {"affine.min": min, "affine.max": max, "affine.apply": min}[op.name]
    (made,), names = op.results, op.operands

    def do(core: Core) -> None:
        core.values[made] = pick(found([core.values[name] for name in names]))

    return do


OPS: Mapping[str, Make] = {
    **dict.fromkeys(INTEGERS, integer),
    **dict.fromkeys((*FLOATS, *FUNCTIONS), floating),
    **dict.fromkeys(("arith.cmpi", "arith.cmpf"), compared),
    **dict.fromkeys(("arith.index_cast", "arith.index_castui", "arith.extsi", "arith.extui"), whole),
    **dict.fromkeys(("arith.trunci", "arith.fptosi"), whole),
    **dict.fromkeys(("arith.sitofp", "arith.uitofp", "arith.extf", "arith.truncf"), to_float),
    **dict.fromkeys(("affine.min", "affine.max", "affine.apply"), affine),
    "arith.select": chosen,
    "arith.constant": constant,
}
