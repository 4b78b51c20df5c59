"""RMSNorm: one pass for the mean square, one to scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm.script import tirx as T

from ...base import Kernel, Schedule
from ..isa import Isa
from . import rotary
from .coded import encode
from .matmul import divisor

# Of squares summed side by side.
VECTORS = 4


def tree(terms: Sequence[Any]) -> Any:
    """Their sum, in pairs, so that it takes few steps one after the other."""
    half = len(terms) // 2
    return tree(terms[:half]) + tree(terms[half:]) if half else terms[0]


def rms(symbol: str, size: int, lanes: int) -> Any:
    """A function (x, w, y, eps, rows, xstep, ystep): y = w * x / sqrt(mean(x**2) + eps).

    x, y: float32[rows, size], rows xstep and ystep elements apart; w: float32[size].
    """
    width = divisor(size, VECTORS * lanes)
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
            factor[0] = T.float32(1) / T.sqrt(tree([square[j] for j in range(width)]) / T.float32(size) + eps)
            for c in T.serial(chunks):
                for j in T.vectorized(width):
                    Y[i * ystep + c * width + j] = X[i * xstep + c * width + j] * factor[0] * W[c * width + j]

    return nest


def rms_norm(kernel: Kernel, schedule: Schedule, isa: Isa, prefix: str) -> Sequence[Any]:
    """In the order of runtime/rows.cc."""
    return [rms(f"{prefix}_rms", kernel["n"], isa.lanes)]


def latent_write(kernel: Kernel, schedule: Schedule, isa: Isa, prefix: str) -> Sequence[Any]:
    """In the order of runtime/rows.cc: the norm of latents, the rotation of keys, codes."""
    turned = rotary.rotate(
        f"{prefix}_rotate", kernel["r"], isa.lanes, kernel["pairs_in"], kernel["pairs_out"]
    )
    coded = [encode(f"{prefix}_encode", kernel["c"])] if kernel.cache == "int8" else []
    return [rms(f"{prefix}_rms", kernel["c"], isa.lanes), turned, *coded]


BUILDERS: Mapping[str, Callable[[Kernel, Schedule, Isa, str], Sequence[Any]]] = {
    "rms_norm": rms_norm,
    "latent_write": latent_write,
}
