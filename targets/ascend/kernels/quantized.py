"""Triton functions: products of int8 with int8, with a scale for each row of x and of the weight.

Sums are i32, exact up to k = 133,000; scales come after.
"""

import triton
import triton.language as tl

from .matmul import panel, swiglu, write

NEAREST = tl.constexpr(12582912.0)  # added to a float below 2**22 and taken away: the nearest whole, even
LEAST = tl.constexpr(1e-35)  # of what a row's largest number counts as: a row of zeros has a scale too


@triton.jit
def to_codes(x, codes, scales, rows, K: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of x [rows, K] in multiples of their largest number / 127.

    The scale of a row with what is no number is none either, so that it shows in all products.
    """
    for i in range(tl.program_id(0), rows, tl.num_programs(0)):
        if K <= BLOCK:
            whole_row(x + i * K, codes + i * K, scales + i, K, BLOCK)
        else:
            long_row(x + i * K, codes + i * K, scales + i, K, BLOCK)


@triton.jit
def whole_row(row, codes, scale_of, K: tl.constexpr, BLOCK: tl.constexpr):
    """A row at once. It is folded before it is reduced, which is the dearer the longer the last axis is."""
    columns = tl.arange(0, BLOCK)
    values = tl.load(row + columns, mask=columns < K, other=0.0).to(tl.float32)
    FOLD: tl.constexpr = 64 if BLOCK % 64 == 0 else BLOCK
    sizes = tl.max(tl.reshape(tl.abs(values), (BLOCK // FOLD, FOLD)), 0)
    scale = tl.max(tl.where(sizes > LEAST, sizes, LEAST), 0) / 127
    whole = values / scale + NEAREST - NEAREST
    tl.store(codes + columns, whole.to(tl.int8), mask=columns < K)
    # A sum of codes, unless one of the numbers was none or infinite.
    seen = tl.sum(tl.reshape(whole, (BLOCK // FOLD, FOLD)), 0)
    tl.store(scale_of, scale + tl.sum(seen, 0) * 0.0)


@triton.jit
def long_row(row, codes, scale_of, K: tl.constexpr, BLOCK: tl.constexpr):
    """A row part by part, read twice."""
    sizes = tl.full((BLOCK,), LEAST, tl.float32)
    for start in range(0, K, BLOCK):
        size = tl.abs(part(row, start, K, BLOCK))
        sizes = tl.where(size > sizes, size, sizes)
    scale = tl.max(sizes, axis=0) / 127
    seen = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, K, BLOCK):
        whole = part(row, start, K, BLOCK) / scale + NEAREST - NEAREST
        seen += whole
        columns = start + tl.arange(0, BLOCK)
        tl.store(codes + columns, whole.to(tl.int8), mask=columns < K)
    tl.store(scale_of, scale + tl.sum(seen, axis=0) * 0.0)


@triton.jit
def part(row, start, K: tl.constexpr, BLOCK: tl.constexpr):
    """Columns of a row, f32 [BLOCK], 0 behind its end."""
    columns = start + tl.arange(0, BLOCK)
    return tl.load(row + columns, mask=columns < K, other=0.0).to(tl.float32)


@triton.jit
def gather(
    codes, scales, order, own, own_scales, rows, K: tl.constexpr, SHARE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Row i of `own` is row order[i] / SHARE of the codes."""
    one = tl.arange(0, 1)  # of a vector, not a scalar: those are written by whole lines of 64 bytes
    for i in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.load(order + i).to(tl.int32) // SHARE
        for start in range(0, K, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            values = tl.load(codes + row * K + columns, mask=columns < K)
            tl.store(own + i * K + columns, values, mask=columns < K)
        tl.store(own_scales + i + one, tl.load(scales + row + one))


@triton.jit
def scaled(sums, x_scales, w_scales, rows, end, columns, N: tl.constexpr):
    """What sums of codes mean, f32 [BM, BN]."""
    left = tl.load(x_scales + rows, mask=rows < end, other=0.0)
    right = tl.load(w_scales + columns, mask=columns < N, other=0.0).to(tl.float32)
    return sums.to(tl.float32) * left[:, None] * right[None, :]


@triton.jit
def product(
    x, x_scales, w, w_scales, rows, end, columns, K: tl.constexpr, N: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """These rows of x [end, K] times these of w [N, K]: f32 [BM, BN]."""
    sums = tl.zeros((BM, BN), tl.int32)
    for k in range(0, K, BK):
        right = tl.trans(panel(w, columns, N, k, K, BK))
        sums = tl.dot(panel(x, rows, end, k, K, BK), right, sums, out_dtype=tl.int32)
    return scaled(sums, x_scales, w_scales, rows, end, columns, N)


@triton.jit
def gated(
    x, x_scales, w, w_scales, rows, end, columns, K: tl.constexpr, N: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """SwiGLU of these rows of x [end, K] times these of w's gate [N, K] and up, which lies behind it."""
    gates = tl.zeros((BM, BN), tl.int32)
    ups = tl.zeros((BM, BN), tl.int32)
    for k in range(0, K, BK):
        left = panel(x, rows, end, k, K, BK)
        gates = tl.dot(left, tl.trans(panel(w, columns, N, k, K, BK)), gates, out_dtype=tl.int32)
        ups = tl.dot(left, tl.trans(panel(w + N * K, columns, N, k, K, BK)), ups, out_dtype=tl.int32)
    gate = scaled(gates, x_scales, w_scales, rows, end, columns, N)
    return swiglu(gate, scaled(ups, x_scales, w_scales + N, rows, end, columns, N))


@triton.jit
def linear(
    x, x_scales, w, w_scales, residual, y, m, K: tl.constexpr, N: tl.constexpr, ADDED: tl.constexpr,
    GATED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y [m, N] = x times w transposed; its SwiGLU where GATED, and the residual [m, N] to it where ADDED."""
    across: tl.constexpr = (N + BN - 1) // BN
    for tile in range(tl.program_id(0), tl.cdiv(m, BM) * across, tl.num_programs(0)):
        rows = tile // across * BM + tl.arange(0, BM)
        columns = tile % across * BN + tl.arange(0, BN)
        if GATED:
            result = gated(x, x_scales, w, w_scales, rows, m, columns, K, N, BM, BN, BK)
        else:
            result = product(x, x_scales, w, w_scales, rows, m, columns, K, N, BM, BN, BK)
        if ADDED:
            inside = (rows[:, None] < m) & (columns[None, :] < N)
            before = tl.load(residual + rows[:, None] * N + columns[None, :], mask=inside, other=0.0)
            result += before.to(tl.float32)
        write(y, result, rows, m, columns, N)


@triton.jit
def grouped(
    x, x_scales, w, w_scales, table, y, slots, K: tl.constexpr, N: tl.constexpr, GATED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y [rows, N] = rows of x times their experts, tile by tile of the table that grouped.py describes."""
    across: tl.constexpr = (N + BN - 1) // BN
    for item in range(tl.program_id(0), tl.load(table + 3 * slots) * across, tl.num_programs(0)):
        tile = item // across
        expert = tl.load(table + tile).to(tl.int64)
        end = tl.load(table + 2 * slots + tile)
        rows = tl.load(table + slots + tile) + tl.arange(0, BM)
        columns = item % across * BN + tl.arange(0, BN)
        if GATED:
            mine, scales = w + expert * (2 * N * K), w_scales + expert * (2 * N)
            result = gated(x, x_scales, mine, scales, rows, end, columns, K, N, BM, BN, BK)
        else:
            mine, scales = w + expert * (N * K), w_scales + expert * N
            result = product(x, x_scales, mine, scales, rows, end, columns, K, N, BM, BN, BK)
        write(y, result, rows, end, columns, N)


@triton.jit
def invert(order, inverse, rows, LINE: tl.constexpr):
    """Line order[i] of the inverse holds i. A line is 64 bytes, so that no two cores write into the same."""
    for i in range(tl.program_id(0), rows, tl.num_programs(0)):
        line = inverse + tl.load(order + i).to(tl.int32) * LINE
        tl.store(line + tl.arange(0, LINE), tl.zeros((LINE,), tl.int32) + i)


@triton.jit
def combine(
    x, inverse, weights, base, y, m, N: tl.constexpr, SHARE: tl.constexpr, BASED: tl.constexpr,
    LINE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y [m, N] = the rows of x [m * SHARE, N] that are a token's by its weights, and base where BASED.

    BLOCK divides N: rows found by numbers are read without looking at a mask.
    """
    slot = tl.arange(0, SHARE)
    across: tl.constexpr = N // BLOCK
    for item in range(tl.program_id(0), m * across, tl.num_programs(0)):
        token = item // across
        columns = item % across * BLOCK + tl.arange(0, BLOCK)
        if SHARE == 1:  # which is no array for Triton's lowering
            row = tl.load(inverse + token * LINE)
            result = tl.load(x + row * N + columns).to(tl.float32) * tl.load(weights + token)
        else:
            lines = (token * SHARE + slot)[:, None] * LINE + tl.arange(0, LINE)[None, :]
            rows = tl.max(tl.load(inverse + lines), 1)
            shares = tl.load(weights + token * SHARE + slot)
            values = tl.load(x + rows[:, None] * N + columns[None, :]).to(tl.float32)
            result = tl.sum(values * shares[:, None], 0)
        if BASED:
            result += tl.load(base + token * N + columns).to(tl.float32)
        tl.store(y + token * N + columns, result.to(y.dtype.element_ty))
