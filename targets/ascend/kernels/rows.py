"""Triton functions that go row by row: RMSNorm, embedding, the angles of positions.

A block takes every so-manieth group of rows. They are padded to a power of two, what lies behind is masked.
"""

import triton
import triton.language as tl

# Two pi in parts of which the first two have 5 bits: what up to 2**19 turns take away of them is exact.
TURN_FIRST: tl.constexpr = 6.25
TURN_SECOND: tl.constexpr = 0.033203125
TURN_REST: tl.constexpr = -1.7817820413e-05
TURNS: tl.constexpr = 0.15915494309189535


@triton.jit
def rms_norm(
    x,
    w,
    y,
    m,
    eps,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    START: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Columns START..START+N of rows of x, normed and weighted, ROWS of them at a time."""
    columns = tl.arange(0, BLOCK)
    weight = tl.load(w + columns, mask=columns < N, other=0.0)
    for first in range(tl.program_id(0) * ROWS, m, tl.num_programs(0) * ROWS):
        rows = first + tl.arange(0, ROWS)
        inside = (rows < m)[:, None] & (columns < N)[None, :]
        places = x + rows[:, None] * WIDTH + (START + columns)[None, :]
        values = tl.load(places, mask=inside, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(values * values, axis=1) / N + eps)
        normed = values * scale[:, None] * weight[None, :]
        tl.store(y + rows[:, None] * N + columns[None, :], normed.to(y.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_wide(
    x, w, y, m, eps, N: tl.constexpr, WIDTH: tl.constexpr, START: tl.constexpr, BLOCK: tl.constexpr
):
    """The same for rows that do not fit: BLOCK columns at a time, each read twice."""
    columns = tl.arange(0, BLOCK)
    for row in range(tl.program_id(0), m, tl.num_programs(0)):
        squares = tl.zeros((BLOCK,), tl.float32)
        for part in range(0, N, BLOCK):
            inside = part + columns < N
            values = tl.load(x + row * WIDTH + START + part + columns, mask=inside, other=0.0).to(tl.float32)
            squares += values * values
        scale = tl.rsqrt(tl.sum(squares, axis=0) / N + eps)
        for part in range(0, N, BLOCK):
            inside = part + columns < N
            values = tl.load(x + row * WIDTH + START + part + columns, mask=inside, other=0.0).to(tl.float32)
            weight = tl.load(w + part + columns, mask=inside, other=0.0)
            tl.store(
                y + row * N + part + columns, (values * scale * weight).to(y.dtype.element_ty), mask=inside
            )


@triton.jit
def embedding(ids, table, y, m, V: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of the table. An id outside the table reads the row nearest to it."""
    columns = tl.arange(0, BLOCK)
    for row in range(tl.program_id(0), m, tl.num_programs(0)):
        at = tl.minimum(tl.maximum(tl.load(ids + row), 0), V - 1)
        for part in range(0, N, BLOCK):
            inside = part + columns < N
            copied = tl.load(table + at * N + part + columns, mask=inside, other=0.0)
            tl.store(y + row * N + part + columns, copied, mask=inside)


@triton.jit
def cos_and_sin(angle):
    """Of angles from 0 to 3e6, to 3e-7: the angle less whole turns, halved, then polynomials to pi / 2."""
    whole = (angle * TURNS + 0.5).to(tl.int32).to(tl.float32)
    half = (angle - whole * TURN_FIRST - whole * TURN_SECOND - whole * TURN_REST) * 0.5
    square = half * half
    sin = -1 / 39916800 * square + 1 / 362880
    sin = ((sin * square - 1 / 5040) * square + 1 / 120) * square - 1 / 6
    sin = (sin * square + 1.0) * half
    cos = 1 / 479001600 * square - 1 / 3628800
    cos = ((cos * square + 1 / 40320) * square - 1 / 720) * square + 1 / 24
    cos = (cos * square - 0.5) * square + 1.0
    return 1.0 - 2.0 * sin * sin, 2.0 * sin * cos


@triton.jit
def real_columns(mask, seen, COLUMNS: tl.constexpr):
    """Where the ones of a row of the mask begin and end; seen and 0 where there are none."""
    columns = tl.arange(0, COLUMNS)
    lows = tl.full((COLUMNS,), 0, tl.int32) + seen
    highs = tl.full((COLUMNS,), 0, tl.int32)
    for part in range(0, seen, COLUMNS):
        real = tl.load(mask + part + columns, mask=part + columns < seen, other=0) != 0
        lows = tl.minimum(lows, tl.where(real, part + columns, seen))
        highs = tl.maximum(highs, tl.where(real, part + columns + 1, 0))
    return tl.min(lows, axis=0), tl.max(highs, axis=0)


@triton.jit
def angles(
    mask,
    freqs,
    cos,
    sin,
    span,
    tokens,
    seen,
    F: tl.constexpr,
    FREQS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """cos and sin of ROWS tokens' positions in their sequence, and where its real tokens are.

    Positions count from the first real token. Where nothing is real, the new tokens take the first rows.
    """
    b = tl.program_id(1)
    low, high = real_columns(mask + b * seen, seen, COLUMNS)
    end = tl.where(high == 0, tokens, high)
    first = tl.minimum(low, end)
    if tl.program_id(0) == 0:
        tl.store(span + 2 * b, first.to(tl.int64))
        tl.store(span + 2 * b + 1, end.to(tl.int64))
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    pairs = tl.arange(0, FREQS)
    inside = (rows < tokens)[:, None] & (pairs < F)[None, :]
    position = tl.maximum(end - tokens + rows - first, 0).to(tl.float32)
    turn = position[:, None] * tl.load(freqs + pairs, mask=pairs < F, other=0.0)[None, :]
    cosine, sine = cos_and_sin(turn)
    places = (b * tokens + rows)[:, None] * F + pairs[None, :]
    tl.store(cos + places, cosine, mask=inside)
    tl.store(sin + places, sine, mask=inside)
