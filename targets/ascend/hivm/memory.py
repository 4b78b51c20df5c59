"""Memories by bytes, of the device and on the chip, and the types of what lies in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from ....compiler.ir import Array
from ..soc import L0C, L1, UB

DTYPES: Mapping[str, Any] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "i64": np.dtype(np.int64),
    "i32": np.dtype(np.int32),
    "i16": np.dtype(np.int16),
    "i8": np.dtype(np.int8),
    "i1": np.dtype(np.bool_),
}
CAPACITIES: Mapping[str, int] = {"ub": UB, "cbuf": L1, "cc": L0C}
NAMES: Mapping[str, str] = {"ub": "UB", "cbuf": "L1", "cc": "L0C"}
MEMREF = re.compile(r"memref<((?:[\d?]+x)*)(\w+)(.*)>$")
SPACE = re.compile(r"address_space<(\w+)>")


@dataclass(frozen=True, slots=True)
class Hollow:
    """An array of the device with a shape and no contents: enough to tell times, not results."""

    type: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * int(DTYPES[self.type].itemsize)


class Memory:
    """Some bytes with a name. data is None where a memory has only a size, which timing can do with; known
    says which bytes hold what they should, None that all do.
    """

    def __init__(self, name: str, space: str, data: Array | None, size: int | None = None) -> None:
        self.name, self.space, self.data = name, space, data
        self.size = data.size if data is not None else int(size or 0)
        self.known: Array | None = None
        self.peak = 0  # bytes up to the end of what was touched

    def track(self) -> None:
        """From here on, not all that is written is known."""
        if self.known is None and self.data is not None:
            self.known = np.ones(self.size, bool)

    @classmethod
    def on_chip(cls, core: str, space: str, poison: int) -> Memory:
        """Memory of its real size, all bytes alike."""
        return cls(f"{core}.{NAMES[space]}", space, np.full(CAPACITIES[space], poison, np.uint8))


def memref(type_: str) -> tuple[list[int], str, str]:
    """A memref type's dims (-1 where unknown), its elements' type and its memory."""
    found = MEMREF.match(type_)
    if not found or found.group(2) not in DTYPES:
        raise ValueError(f"{type_[:80]!r} is no memref of {', '.join(DTYPES)}")
    dims, element, rest = found.groups()
    space = SPACE.search(rest)
    return (
        [-1 if dim == "?" else int(dim) for dim in dims.split("x")[:-1]],
        element,
        space.group(1) if space else "gm",
    )


def row_major(shape: Sequence[int]) -> list[int]:
    """Strides of elements that lie one after the other."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return strides
