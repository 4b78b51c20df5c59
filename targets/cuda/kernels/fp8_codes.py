"""Activations as e4m3 codes, with a scale for each token and 128 neighbours: the step before a product."""

from typing import Any

import tilelang.language as T

from ..fp8_tiles import ALIGNED, DEPTH, LANES

BF16, F32, U32, I32, I64, E4M3 = T.bfloat16, T.float32, T.uint32, T.int32, T.int64, T.float8_e4m3fn
LARGEST = 448  # of e4m3
WARPS = 4
TEAM = DEPTH // LANES  # lanes that share a scale


def groups(k: int) -> int:
    """Scales of a row."""
    return -(-k // DEPTH)


def scales(k: int, rows: Any) -> Any:
    """The scratch that holds the scales of so many rows: f32 [groups, rows], rows of whole 16 bytes."""
    return T.Tensor((groups(k), T.ceildiv(rows, ALIGNED) * ALIGNED), F32)


@T.macro
def encode(x: Any, k: int, source: Any, column: Any, code: Any, factor: Any) -> None:
    """Of row `source` of x, 8 numbers from a column on, zeros behind the last: their codes and, in factor[0],
    the scale that they share with those of the other 15 lanes of a team.
    """
    pairs = T.alloc_local((LANES // 2,), U32)  # of bf16, which are f32 with fewer bits
    number = T.alloc_local((LANES,), F32)
    largest = T.alloc_var(F32, init=0.0)
    divisor = T.alloc_var(F32, init=1.0)
    pairs[0 : LANES // 2] = T.ldg128(x[source, column], column < k)
    for v in T.unroll(LANES // 2):
        number[2 * v] = T.reinterpret(pairs[v] << T.uint32(16), F32)
        number[2 * v + 1] = T.reinterpret(pairs[v] & T.uint32(0xFFFF0000), F32)
    largest = 0.0
    for v in T.unroll(LANES):
        largest = T.max(largest, T.abs(number[v]))
    for s in T.unroll(TEAM.bit_length() - 1):
        largest = T.max(largest, T.shfl_xor(largest, 1 << s))
    factor[0] = largest / T.float32(LARGEST)
    divisor = factor[0]
    if divisor == 0:
        divisor = 1.0
    for v in T.unroll(LANES):
        code[v] = T.cast(number[v] / divisor, E4M3)


@T.macro
def store(x: Any, codes: Any, factors: Any, k: int, source: Any, row: Any, first: Any, lane: Any) -> None:
    """128 numbers from `first` + 8 * lane / 16 on, by 16 lanes, become part of row `row` of codes."""
    code = T.alloc_local((LANES,), E4M3)
    factor = T.alloc_local((1,), F32)
    column = first + lane * LANES
    encode(x, k, source, column, code, factor)
    if column < k:
        if lane % TEAM == 0:
            factors[column // DEPTH, row] = factor[0]
        for v in T.vectorized(LANES):
            codes[row, column + v] = code[v]


@T.macro
def each(x: Any, order: Any, codes: Any, factors: Any, k: int, rows: Any, share: int) -> None:
    """All rows; with an order, row r is that of token order[r] // share."""
    with T.Kernel(T.ceildiv(rows * T.ceildiv(groups(k), 2), WARPS), threads=32 * WARPS) as block:
        thread = T.get_thread_binding(0)
        unit = block * WARPS + thread // 32
        row = T.truncdiv(unit, T.ceildiv(groups(k), 2))
        first = (unit - row * T.ceildiv(groups(k), 2)) * (2 * DEPTH)
        T.pdl_sync()
        T.pdl_trigger()
        if row < rows:
            if order is None:
                store(x, codes, factors, k, row, row, first, thread % 32)
            else:
                source = T.cast(order[row], I32) // share
                store(x, codes, factors, k, source, row, first, thread % 32)


def plain(k: int, rows: Any) -> Any:
    """s0 e4m3 [rows, k] and s1 of x0 bf16 [rows, k]."""

    @T.prim_func
    def fp8_codes(x0: T.Tensor((rows, k), BF16), s0: T.Tensor((rows, k), E4M3), s1: scales(k, rows)):
        each(x0, None, s0, s1, k, rows, 1)

    return fp8_codes


def sorted_rows(k: int, m: Any, share: int) -> Any:
    """s0 e4m3 [m * share, k] and s1 of x0 bf16 [m, k], rows by the order x1."""

    @T.prim_func
    def fp8_sorted_codes(
        x0: T.Tensor((m, k), BF16),
        x1: T.Tensor((m * share,), I64),
        s0: T.Tensor((m * share, k), E4M3),
        s1: scales(k, m * share),
    ):
        each(x0, x1, s0, s1, k, m * share, share)

    return fp8_sorted_codes
