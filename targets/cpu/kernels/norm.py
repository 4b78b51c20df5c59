"""RMSNorm: one pass for the mean square, one to scale."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from .matmul import divisor


def rms(symbol: str, size: int, lanes: int) -> Any:
    """A function (x, w, y, eps, rows, xstep, ystep): y = w * x / sqrt(mean(x**2) + eps), rows that many elements apart."""
    width = divisor(size, 4 * lanes)
    chunks = size // width

    @T.prim_func(s_tir=True)
    def nest(
        x: T.handle("float32"),
        w: T.handle("float32"),
        y: T.handle("float32"),
        eps: T.float32,
        rows: T.int32,
        xstep: T.int32,
        ystep: T.int32,
    ):
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        X = T.decl_buffer((rows * xstep,), "float32", data=x, align=4)
        W = T.decl_buffer((size,), "float32", data=w, align=4)
        Y = T.decl_buffer((rows * ystep,), "float32", data=y, align=4)
        square = T.sblock_alloc_buffer((width,), "float32")
        factor = T.sblock_alloc_buffer((1,), "float32")
        for i in T.serial(rows):
            for j in T.vectorized(width):
                square[j] = T.float32(0)
            for c in T.serial(chunks):
                for j in T.vectorized(width):
                    square[j] = square[j] + X[i * xstep + c * width + j] * X[i * xstep + c * width + j]
            factor[0] = T.float32(0)
            for j in T.unroll(width):
                factor[0] = factor[0] + square[j]
            factor[0] = T.float32(1) / T.sqrt(factor[0] / T.float32(size) + eps)
            for c in T.serial(chunks):
                for j in T.vectorized(width):
                    Y[i * ystep + c * width + j] = X[i * xstep + c * width + j] * factor[0] * W[c * width + j]

    return nest
