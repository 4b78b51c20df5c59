"""Sums of products of bytes, four neighbours to an int32 lane, in the words of each instruction set.

A vector of weights is int32 lanes of four unsigned bytes, each its code plus `zero`; x is the four int8 codes
that every lane is multiplied by. A group's sum begins at -zero * (the sum of its x), which makes up for the
offset, and at ONES, which makes a float32 of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from tvm.tirx.script import builder as T

from ..isa import Isa

# As float32 these bits are 1.5 * 2**23, where the last one counts ones. A sum that begins at them is, as
# float32, that plus the sum, exactly: no conversion is needed, only to take it away again.
ONES, ONES_FLOAT = 0x4B400000, 1.5 * 2**23


class Dot(Protocol):
    """How a group of 32 products is summed. Expressions are vectors of int32[lanes] unless said otherwise."""

    @property
    def zero(self) -> int:
        """What a weight's byte exceeds its code by when it is multiplied."""

    @property
    def sums(self) -> tuple[str, int]:
        """Type and lanes of a running sum."""

    def weight(self, w: Any) -> tuple[Any, ...]:
        """What all rows need of a vector of weights."""

    def start(self, first: Any) -> Any:
        """A running sum that begins at the int32 `first`, or at 0 where `total` adds that."""

    def add(self, sums: Any, weight: tuple[Any, ...], x: Any) -> Any:
        """The running sum and 4 more products a lane; x: int32, four codes."""

    def total(self, sums: Any, first: Any) -> Any:
        """The group's sum and ONES."""


def dot(isa: Isa, bits: int) -> Dot:
    """The fastest way of an instruction set for weights of 4 or 8 bits."""
    if isa.dot in ("vpdpbusd", "tdpbsud"):  # what has the latter also has the former
        return Vpdpbusd(isa.lanes, 1 << bits - 1)
    if isa.dot == "sdot":
        return Sdot(bits)
    return Short(isa.lanes) if bits == 4 else Signed(isa.lanes)


def call(result: str, name: str, *arguments: Any) -> Any:
    """An LLVM intrinsic of vectors that depends on nothing else."""
    return T.call_llvm_pure_intrin(result, name, *arguments)


def bytes_of(vector: Any, lanes: int, kind: str = "uint8") -> Any:
    """int32[lanes] as four times as many bytes."""
    return T.reinterpret(f"{kind}x{4 * lanes}", vector)


@dataclass(frozen=True, slots=True)
class Vpdpbusd:
    """AVX512-VNNI: four products and their sum in one instruction."""

    lanes: int
    zero: int

    @property
    def sums(self) -> tuple[str, int]:
        return "int32", self.lanes

    def weight(self, w: Any) -> tuple[Any, ...]:
        return (w,)

    def start(self, first: Any) -> Any:
        return T.broadcast(first, self.lanes)

    def add(self, sums: Any, weight: tuple[Any, ...], x: Any) -> Any:
        bits, lanes = 32 * self.lanes, self.lanes
        operands = sums, bytes_of(weight[0], lanes), bytes_of(T.broadcast(x, lanes), lanes, "int8")
        return call(f"int32x{lanes}", f"llvm.x86.avx512.vpdpbusd.{bits}", *operands)

    def total(self, sums: Any, first: Any) -> Any:
        return sums


@dataclass(frozen=True, slots=True)
class Sdot:
    """ARM's dot product, of signed bytes: four bits plus 8 are that as they are, eight bits once centred."""

    bits: int
    lanes: int = 4

    @property
    def zero(self) -> int:
        return 8 if self.bits == 4 else 0

    @property
    def sums(self) -> tuple[str, int]:
        return "int32", self.lanes

    def weight(self, w: Any) -> tuple[Any, ...]:
        return (w,) if self.bits == 4 else (centred(w, self.lanes),)

    def start(self, first: Any) -> Any:
        return T.broadcast(first, self.lanes)

    def add(self, sums: Any, weight: tuple[Any, ...], x: Any) -> Any:
        codes = (bytes_of(each, self.lanes, "int8") for each in (weight[0], T.broadcast(x, self.lanes)))
        return call("int32x4", "llvm.aarch64.neon.sdot", sums, *codes)

    def total(self, sums: Any, first: Any) -> Any:
        return sums


def centred(w: Any, lanes: int) -> Any:
    """Bytes minus 128, which are signed then."""
    return w ^ T.broadcast(T.int32(-0x7F7F7F80), lanes)


def products(w: Any, x: Any, lanes: int) -> Any:
    """Unsigned times signed bytes, neighbours added, as int16[2 * lanes]: exact below 32768."""
    name = {8: "llvm.x86.avx2.pmadd.ub.sw", 16: "llvm.x86.avx512.pmaddubs.w.512"}[lanes]
    return call(f"int16x{2 * lanes}", name, bytes_of(w, lanes), bytes_of(x, lanes, "int8"))


def pairs(sums: Any, lanes: int) -> Any:
    """int16[2 * lanes], neighbours added."""
    name = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[lanes]
    return call(f"int32x{lanes}", name, sums, T.broadcast(T.int16(1), 2 * lanes))


@dataclass(frozen=True, slots=True)
class Short:
    """Four bits without VNNI: 16 products of up to 15 * 127 fit int16, so a sum is widened once a group."""

    lanes: int
    zero: int = 8

    @property
    def sums(self) -> tuple[str, int]:
        return "int16", 2 * self.lanes

    def weight(self, w: Any) -> tuple[Any, ...]:
        return (w,)

    def start(self, first: Any) -> Any:
        return T.broadcast(T.int16(0), 2 * self.lanes)

    def add(self, sums: Any, weight: tuple[Any, ...], x: Any) -> Any:
        return sums + products(weight[0], T.broadcast(x, self.lanes), self.lanes)

    def total(self, sums: Any, first: Any) -> Any:
        return pairs(sums, self.lanes) + T.broadcast(first, self.lanes)


@dataclass(frozen=True, slots=True)
class Signed:
    """Eight bits without VNNI: two products of bytes up to 255 would overflow int16, two of up to 127 do not.

    So the weight's sign goes over to x.
    """

    lanes: int
    zero: int = 0

    @property
    def sums(self) -> tuple[str, int]:
        return "int32", self.lanes

    def weight(self, w: Any) -> tuple[Any, ...]:
        code = bytes_of(centred(w, self.lanes), self.lanes, "int8")
        size = T.Select(code < T.broadcast(T.int8(0), 4 * self.lanes), self.negative(code), code)
        return tuple(T.reinterpret(f"int32x{self.lanes}", part) for part in (code, size))

    def negative(self, codes: Any) -> Any:
        return T.broadcast(T.int8(0), 4 * self.lanes) - codes

    def start(self, first: Any) -> Any:
        return T.broadcast(first, self.lanes)

    def add(self, sums: Any, weight: tuple[Any, ...], x: Any) -> Any:
        code, size = weight
        return sums + pairs(products(size, self.signed(x, code), self.lanes), self.lanes)

    def signed(self, x: Any, code: Any) -> Any:
        """x negated where the weight is negative."""
        x, code = (bytes_of(each, self.lanes, "int8") for each in (T.broadcast(x, self.lanes), code))
        if self.lanes == 8:
            signed = call("int8x32", "llvm.x86.avx2.psign.b", x, code)
        else:
            signed = T.Select(code < T.broadcast(T.int8(0), 4 * self.lanes), self.negative(x), x)
        return T.reinterpret(f"int32x{self.lanes}", signed)

    def total(self, sums: Any, first: Any) -> Any:
        return sums
