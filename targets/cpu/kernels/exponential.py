"""exp and what follows from it, as plain arithmetic that vectorises and needs no libm."""

from __future__ import annotations

from functools import reduce
from typing import Any

from tvm.script import tirx as T

LOG2_E = 1.4426950408889634
# ln 2 in two parts: the first has few enough bits that its product with any exponent in range is exact.
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
LOWEST, HIGHEST = -87.3, 88.3
# exp(r) = 1 + r + r^2 * q(r) on |r| <= ln(2)/2, as the Cephes library has it: relative error below 1e-7.
QUOTIENT = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)


def exp(x: Any) -> Any:
    """e**x for a float32 expression, x clamped to the range where the result is a normal number."""
    x = T.max(T.min(x, T.float32(HIGHEST)), T.float32(LOWEST))
    power = T.floor(x * T.float32(LOG2_E) + T.float32(0.5))
    rest = x - power * T.float32(LN2_HIGH) - power * T.float32(LN2_LOW)
    q = reduce(lambda sum_, term: sum_ * rest + T.float32(term), QUOTIENT[1:], T.float32(QUOTIENT[0]))
    scale = T.reinterpret("float32", (T.cast(power, "int32") + T.int32(127)) << T.int32(23))
    return (rest * rest * q + rest + T.float32(1)) * scale


def sigmoid(x: Any) -> Any:
    """1 / (1 + e**-x)."""
    return T.float32(1) / (T.float32(1) + exp(T.float32(0) - x))


def silu(x: Any) -> Any:
    """x * sigmoid(x)."""
    return x / (T.float32(1) + exp(T.float32(0) - x))
