"""What the kernels of latent attention share: dtypes, sizes, where rotated pairs lie."""

from typing import Any

import tilelang.language as T

BF16, F32, I64, E4M3 = "bfloat16", "float32", "int64", "float8_e4m3fn"
INTERLEAVED, HALVES, NONE = 0, 1, 2  # targets/regions.py PAIRS
LOG2E = 1.4426950408889634
NEAR = 4  # heads whose keys and values are read at a time, so that the cache before memory holds them
LOWEST = -1e30  # below any score, yet differences of two of them are numbers

# exp2f keeps denormal results by three more instructions; weights that small do not matter.
PRELUDE = """
__device__ __forceinline__ float moec_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ int moec_blocks() { return gridDim.x; }
"""


def sizes() -> tuple[Any, ...]:
    """batch, tokens, seen, room, m."""
    return tuple(T.dynamic(name) for name in ("batch", "tokens", "seen", "room", "m"))


def place(order: int, half: int, pair: Any, which: int) -> Any:
    """The column of a pair's first or second number: pairs are neighbours, or lie half a row apart."""
    return pair * 2 + which if order == INTERLEAVED else pair + which * half


def exp2(x: Any) -> Any:
    """2 ** x, f32; needs PRELUDE in the kernel."""
    return T.call_extern(F32, "moec_exp2", x)


def grid_blocks() -> Any:
    """How many blocks the grid's first axis has; TileLang fails on the expression of sizes that says it."""
    return T.call_extern("int32", "moec_blocks")
