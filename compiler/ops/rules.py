"""What the type rules of several ops share."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir import FLOATS, Dim, Type, TypeMismatch

INTEGERS = ("i64", "i32", "i8", "u8")
INDICES = ("i64", "i32")
NUMBERS = (*FLOATS, *INTEGERS)


def broadcast(*shapes: Sequence[Dim]) -> tuple[Dim, ...]:
    """The shape of operands of these shapes together, as numpy has it; a symbolic size equals only itself."""
    rank = max(map(len, shapes), default=0)
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(_together(sizes, shapes) for sizes in zip(*padded))


def _together(sizes: Sequence[Dim], shapes: Sequence[Sequence[Dim]]) -> Dim:
    wide = list(dict.fromkeys(size for size in sizes if size != 1))
    if len(wide) > 1:
        shown = " and ".join(shown_shape(shape) for shape in shapes)
        raise TypeMismatch(f"shapes {shown} do not broadcast: {wide[0]} is not {wide[1]}")
    return wide[0] if wide else 1


def shown_shape(shape: Sequence[Dim]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def check_dtype(what: str, operand: Type, allowed: Sequence[str]) -> None:
    """Raises TypeMismatch where the operand's dtype is none of the allowed ones."""
    if operand.dtype not in allowed:
        raise TypeMismatch(f"{what} is {operand.dtype}, but must be {' or '.join(allowed)}; cast it first")


def check_same_dtype(*operands: Type) -> None:
    """Raises TypeMismatch where the operands' dtypes differ: nothing is promoted in silence."""
    if len({operand.dtype for operand in operands}) > 1:
        raise TypeMismatch(f"dtypes {', '.join(o.dtype for o in operands)} differ; cast to one of them first")


def check_shape(what: str, operand: Type, shape: Sequence[Dim]) -> None:
    """Raises TypeMismatch where the operand is not of exactly this shape."""
    if operand.shape != tuple(shape):
        raise TypeMismatch(f"{what} is {operand}, but its shape must be {shown_shape(shape)}")


def check_rank(what: str, operand: Type, *ranks: int) -> None:
    """Raises TypeMismatch where the operand has another number of axes."""
    if operand.rank not in ranks:
        raise TypeMismatch(f"{what} is {operand}, but must have {' or '.join(map(str, ranks))} axes")


def check_axis(operand: Type, axis: int) -> None:
    """Raises TypeMismatch where the operand has no such axis; axes are counted from the front only."""
    if not isinstance(axis, int) or not 0 <= axis < operand.rank:
        raise TypeMismatch(f"{operand} has no axis {axis}; axes count from 0, never from the end")


def check_choice(what: str, value: object, choices: Sequence[object]) -> None:
    """Raises TypeMismatch where an attribute is none of the values that have a meaning."""
    if value not in choices:
        raise TypeMismatch(f"{what} is {value!r}, but must be {' or '.join(map(repr, choices))}")


def without(shape: Sequence[Dim], axis: int) -> tuple[Dim, ...]:
    """The shape less one axis."""
    return (*shape[:axis], *shape[axis + 1 :])
