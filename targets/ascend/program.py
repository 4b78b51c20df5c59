"""What a builder of kernels gives: the launches that compute one kernel, in order, and sizes they depend on.

This describes Triton functions and never loads Triton, which lives in an environment of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..base import Kernel, Schedule
from ..listing import SIZES as SIZES
from .soc import Soc

CPP: Mapping[str, str] = {
    "+": "({} + {})",
    "-": "({} - {})",
    "*": "({} * {})",
    "//": "({} / {})",
    "min": "smaller({}, {})",
    "max": "larger({}, {})",
}


@dataclass(frozen=True, slots=True)
class Size:
    """A whole number that is known when a kernel is called: one of SIZES, a constant, or made of two.

    None is negative, so that // is C++'s division. at() gives its value, str() its C++.
    """

    op: str
    parts: tuple[Size, ...] = ()

    def __add__(self, other: Size | int) -> Size:
        return Size("+", (self, sized(other)))

    def __radd__(self, other: int) -> Size:
        return sized(other) + self

    def __sub__(self, other: Size | int) -> Size:
        return Size("-", (self, sized(other)))

    def __mul__(self, other: Size | int) -> Size:
        return Size("*", (self, sized(other)))

    def __rmul__(self, other: int) -> Size:
        return sized(other) * self

    def __floordiv__(self, other: Size | int) -> Size:
        return Size("//", (self, sized(other)))

    def at(self, sizes: Mapping[str, int]) -> int:
        """Its value where SIZES have these."""
        if not self.parts:
            return sizes[self.op] if self.op in SIZES else int(self.op)
        left, right = (part.at(sizes) for part in self.parts)
        match self.op:
            case "+":
                return left + right
            case "-":
                return left - right
            case "*":
                return left * right
            case "//":
                return left // right
        return min(left, right) if self.op == "min" else max(left, right)

    def __str__(self) -> str:
        if not self.parts:
            return self.op
        return CPP[self.op].format(*self.parts)


def sized(value: Size | int) -> Size:
    """A constant as a size."""
    return value if isinstance(value, Size) else Size(str(value))


def smaller(left: Size | int, right: Size | int) -> Size:
    """The smaller of two."""
    return Size("min", (sized(left), sized(right)))


def larger(left: Size | int, right: Size | int) -> Size:
    """The larger of two."""
    return Size("max", (sized(left), sized(right)))


def tiles(of: Size | int, by: int) -> Size:
    """How many tiles cover so many rows."""
    return (sized(of) + (by - 1)) // by


M, BATCH, TOKENS, SEEN, ROOM = map(Size, SIZES[:5])  # no kernel here has pages
ONE = Size("1")


@dataclass(frozen=True, slots=True)
class Pointer:
    """Memory that a function gets: the kernel's operand x0.., its result y0.., or scratch s0.. of this call.

    type: of its elements in Triton's words: bf16, fp16, fp32, i8, i32, i64.
    """

    port: str
    type: str


@dataclass(frozen=True, slots=True)
class Number:
    """A number that a function gets: an i32 size, or a real of the kernel by its name (fp32)."""

    value: Size | str

    @property
    def type(self) -> str:
        """In Triton's words."""
        return "i32" if isinstance(self.value, Size) else "fp32"


Argument = Pointer | Number


@dataclass(frozen=True, slots=True)
class Step:
    """One launch of a Triton function.

    function: "file:name" among kernels/. arguments: by the names of its parameters, in their order, but for
    constants, which are its constexprs. grid: how many blocks there are; nothing is launched where one is 0.
    scratch: bytes by port, undefined contents. when: the step is left out where this size is 0.
    compiler: how the vendor's compiler is told to do it other than by default, such as {"multi-buffer": 0}.
    """

    function: str
    arguments: Mapping[str, Argument]
    constants: Mapping[str, int | float | bool | str]
    grid: tuple[Size, Size, Size]
    scratch: Mapping[str, Size] = field(default_factory=dict)
    when: Size | None = None
    compiler: Mapping[str, int] = field(default_factory=dict)


def scratch_bytes(steps: Iterable[Step], sizes: Mapping[str, int]) -> dict[str, int]:
    """Of each port of scratch, the most that a step needs which is not left out."""
    found: dict[str, int] = {}
    for step in steps:
        if step.when is None or step.when.at(sizes):
            found |= {port: max(found.get(port, 0), size.at(sizes)) for port, size in step.scratch.items()}
    return found


Builder = Callable[[Kernel, Schedule, Soc], Sequence[Step]]
