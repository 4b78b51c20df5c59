"""Operands of kernels whose weights are stored in few bits: random ones, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..compiler.ir import Array
from ..compiler.ops import fp8
from ..compiler.ops.fp8 import TILE
from ..compiler.ops.quantize import FORMATS, RANGES
from .base import Kernel
from .regions import BITS

TOLERANCE = 1e-3  # of the largest value: codes of x may differ where a quotient falls between two of them


@dataclass(frozen=True, slots=True)
class Codes:
    """A weight [.., n, k] as codes i8 and scales f16 [.., n, groups], or as bytes of e4m3 and scales f32 of
    tiles; only parts of it are spelled out.
    """

    codes: Array
    scales: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, part: Any) -> Codes:
        """An expert's part, or some rows: of tiles, whole ones."""
        scales = part
        if self.tiled and self.codes.ndim == 2:
            start, stop, _ = part.indices(len(self.codes))
            scales = slice(start // TILE, fp8.tiles(stop))
        return Codes(self.codes[part], self.scales[scales])

    @property
    def tiled(self) -> bool:
        """Whether scales are of tiles."""
        return self.codes.dtype == np.uint8

    def astype(self, dtype: Any) -> Array:
        """The numbers."""
        if self.tiled:
            return fp8.dequantize(self.codes, self.scales.astype(dtype))
        groups = self.codes.reshape(*self.scales.shape, -1).astype(dtype)
        groups *= self.scales[..., None].astype(dtype)
        return groups.reshape(self.shape)


def weight(
    kernel: Kernel, place: int, random: np.random.Generator, shape: Sequence[int]
) -> Mapping[int, Array]:
    """Random codes of every value there is, and scales, from operand `place` on; as floats about -1 to 1.

    Big ones repeat after a million values, which makes them fast to make.
    """
    if kernel.weights == "fp8":
        return tiled_weight(place, random, shape)
    low, high = RANGES[BITS[kernel.weights]]
    size, group = int(np.prod(shape)), group_of(kernel, shape[-1])
    codes = random.integers(low, high, min(size, 1_000_003), np.int8, endpoint=True)
    scales = random.uniform(0.2, 1, min(size // group, 1_000_003)).astype(np.float16) / np.float16(high)
    *outer, k = shape
    return {place: np.resize(codes, shape), place + 1: np.resize(scales, (*outer, k // group))}


def tiled_weight(place: int, random: np.random.Generator, shape: Sequence[int]) -> Mapping[int, Array]:
    """The same for bytes of e4m3, in which the largest exponent of either sign is no number's."""
    *outer, n, k = shape
    codes = random.integers(0, 254, min(int(np.prod(shape)), 1_000_003), np.uint8, endpoint=True)
    codes[codes == 127] = 0
    scales = random.uniform(0.2, 1, (*outer, fp8.tiles(n), fp8.tiles(k))).astype(np.float32)
    return {place: np.resize(codes, shape), place + 1: scales / np.float32(fp8.LARGEST)}


def meant(kernel: Kernel, place: int, operands: Sequence[Array]) -> list[Any]:
    """The operands of the same kernel on floats: x rounded as the kernel does, the weight in one."""
    if kernel.weights not in BITS:
        return list(operands)
    x, *others = operands
    whole = Codes(*operands[place : place + 2])
    exact = in_e4m3(x) if whole.tiled else rounded(x, group_of(kernel, x.shape[-1]))
    return [exact, *others[: place - 1], whole, *others[place + 1 :]]


def group_of(kernel: Kernel, columns: int) -> int:
    """How many numbers of a row have a scale together."""
    return FORMATS[kernel.weights]["group"] or columns


def rounded(x: Array, group: int) -> Array:
    """x with each group rounded to whole multiples of its largest / 127, as float64."""
    groups = x.astype(np.float32).reshape(*x.shape[:-1], x.shape[-1] // group, group)
    scales = np.abs(groups).max(axis=-1, keepdims=True) / np.float32(127)
    codes = np.rint(groups / np.where(scales == 0, np.float32(1), scales))
    whole: Array = (codes.astype(np.float64) * scales).reshape(x.shape)
    return whole


def in_e4m3(x: Array) -> Array:
    """x with each group of 128, the last perhaps of fewer, in e4m3 under largest / 448, as float64."""
    parts = [x[..., start : start + TILE].astype(np.float32) for start in range(0, x.shape[-1], TILE)]
    found = []
    for part in parts:
        scales = np.abs(part).max(axis=-1, keepdims=True) / np.float32(fp8.LARGEST)
        codes = (part / np.where(scales == 0, np.float32(1), scales)).astype(fp8.E4M3)
        found.append(codes.astype(np.float64) * scales)
    return np.concatenate(found, axis=-1)
