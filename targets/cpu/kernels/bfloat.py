"""bfloat16 as its bits in uint16: a float32 without its lower half, so reading one is a shift.

Arithmetic is in float32 on every instruction set; the type only halves the bytes that memory moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm.script import tirx as T

# How the floats of a Kernel.dtype lie in memory, or codes of them (coded.py), and the bytes of one.
STORED: Mapping[str, str] = {"f32": "float32", "bf16": "uint16", "int8": "int8"}
BYTES: Mapping[str, int] = {"float32": 4, "uint16": 2, "int8": 1}


def widened(x: Any) -> Any:
    """The float32 that a stored float is."""
    return x if x.dtype == "float32" else T.reinterpret("float32", T.cast(x, "uint32") << T.uint32(16))
