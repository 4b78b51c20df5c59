"""Rotary embedding of one row, from either order of pairs into either."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm.script import tirx as T

from ...base import Kernel, Schedule
from ..isa import Isa
from .matmul import divisor


def rotate(symbol: str, size: int, lanes: int, pairs_in: int, pairs_out: int) -> Any:
    """A function (x, cos, sin, y): float32[size], [size/2], [size/2], [size].

    Pairs are neighbours (0) or lie half a row apart (1): o1 = x1*cos - x2*sin, o2 = x1*sin + x2*cos.
    pairs_in 2 means the caller never rotates.
    """
    half = size // 2
    width = divisor(half, lanes)

    def place(order: int, pair: Any, which: int) -> Any:
        return pair + which * half if order else pair * 2 + which

    @T.prim_func(s_tir=True)
    def nest(
        x: T.handle("float32"), cos: T.handle("float32"), sin: T.handle("float32"), y: T.handle("float32")
    ):
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        X = T.decl_buffer((size,), "float32", data=x, align=4)
        COS = T.decl_buffer((half,), "float32", data=cos, align=4)
        SIN = T.decl_buffer((half,), "float32", data=sin, align=4)
        Y = T.decl_buffer((size,), "float32", data=y, align=4)
        for c in T.serial(half // width):
            for j in T.vectorized(width):
                Y[place(pairs_out, c * width + j, 0)] = (
                    X[place(pairs_in, c * width + j, 0)] * COS[c * width + j]
                    - X[place(pairs_in, c * width + j, 1)] * SIN[c * width + j]
                )
            for j in T.vectorized(width):
                Y[place(pairs_out, c * width + j, 1)] = (
                    X[place(pairs_in, c * width + j, 0)] * SIN[c * width + j]
                    + X[place(pairs_in, c * width + j, 1)] * COS[c * width + j]
                )

    return nest


def rows(kernel: Kernel, schedule: Schedule, isa: Isa, prefix: str) -> Sequence[Any]:
    """In the order of runtime/rows.cc."""
    return [rotate(f"{prefix}_rotate", kernel["r"], isa.lanes, kernel["pairs_in"], kernel["pairs_out"])]


BUILDERS: Mapping[str, Callable[[Kernel, Schedule, Isa, str], Sequence[Any]]] = {"rotary": rows}
