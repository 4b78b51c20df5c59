"""Rows of latents as codes of int8, with a scale for each group of columns: written, and read back.

Attention reads them back a block at a time, into memory that stays in the first or second cache: for each
vector of columns a load that widens, a conversion and a product. Over 4096 keys from memory that took 1.0 to
1.06 times as long as float32, with 16 heads and with 128, and 0.96 to 1.01 times as long as bfloat16: scores
and values are what takes the time, and reading hides behind it. What would be faster is products of bfloat16,
which holds each code as it is; queries would be rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ....compiler.ops.coded import CODINGS
from .bfloat import BYTES
from .codes import pointers, registers
from .matmul import FAR, loops
from .quantized import magnitude, nearest, reduced

CODING = CODINGS["int8"]
GROUP = CODING.group


def encode(symbol: str, columns: int) -> Any:
    """A function (x, codes, scales): a row float32[columns] as int8[columns] and float32[groups].

    As ENCODE_ROWS has it; the scale of a group with a NaN is that.
    """
    whole, rest = divmod(columns, GROUP)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        (X, CODES, SCALES), _ = parameters(symbol, [], X="float32", CODES="int8", SCALES="float32")
        with loops(g=T.serial(whole)) as (g,):
            place = T.ramp(g * GROUP, 1, GROUP)
            scale, codes = encoded(X[place])
            T.buffer_store(SCALES, scale, [g])
            T.buffer_store(CODES, codes, [place])
        if rest:
            every = T.ramp(0, 1, GROUP)
            LAST, CODED = registers("LAST", "float32", GROUP), registers("CODED", "int8", GROUP)
            T.buffer_store(LAST, T.broadcast(T.float32(0), GROUP), [every])
            with loops(j=T.serial(rest)) as (j,):
                T.buffer_store(LAST, X[whole * GROUP + j], [j])
            scale, codes = encoded(LAST[every])
            T.buffer_store(SCALES, scale, [whole])
            T.buffer_store(CODED, codes, [every])
            with loops(j=T.serial(rest)) as (j,):
                T.buffer_store(CODES, CODED[j], [whole * GROUP + j])
    return builder.get()


def encoded(x: Any) -> tuple[Any, Any]:
    """The scale and the codes of a group."""
    part = T.bind(x)
    largest = T.reinterpret("float32", reduced("smax", magnitude(part)))
    scale = T.bind(largest / T.float32(CODING.largest))
    by = T.Select(scale == T.float32(0), T.float32(1), scale)
    return scale, T.cast(nearest(part / T.broadcast(by, GROUP)), f"int8x{GROUP}")


def decode(symbol: str, columns: int) -> Any:
    """A function (codes, scales, y, rows): rows int8[columns] with scales float32[groups] as float32."""
    whole, rest = divmod(columns, GROUP)
    parts = [part for part in ((0, whole, GROUP), (whole, 1, rest)) if all(part[1:])]
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        kinds = {"CODES": "int8", "SCALES": "float32", "Y": "float32"}
        (CODES, SCALES, Y), (rows,) = parameters(symbol, ["rows"], **kinds)
        with loops(row=T.serial(rows)) as (row,):
            for first, count, size in parts:
                with loops(g=T.serial(count), j=T.vectorized(size)) as (g, j):
                    at = row * columns + (first + g) * GROUP + j
                    scale = SCALES[row * CODING.scales(columns) + first + g]
                    T.buffer_store(Y, T.cast(CODES[at], "float32") * scale, [at])
    return builder.get()


def parameters(symbol: str, counts: Sequence[str], **kinds: str) -> tuple[list[Any], list[Any]]:
    """Name the function that is being written; its parameters: memory of any length, then counts."""
    T.func_name(symbol)
    T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
    at, numbers = pointers(**kinds), [T.arg(name, T.int32()) for name in counts]
    far = [T.int64(FAR)]
    return [
        IRBuilder.name(name, T.decl_buffer(far, kind, data=at[name], align=BYTES[kind]))
        for name, kind in kinds.items()
    ], numbers
