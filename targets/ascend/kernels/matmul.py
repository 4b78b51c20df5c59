"""Triton functions: products with weights [n, k], tile by tile.

A tile has BM rows and BN columns of the result, of both halves where there is a gate; BK of k are multiplied
at once. Rows behind an array's end are not loaded: what lies there on the chip is multiplied and not stored.
"""

import triton
import triton.language as tl


@triton.jit
def panel(p, rows, end, k, K: tl.constexpr, BK: tl.constexpr):
    """Columns k..k+BK of these rows of an array [end, K]; anything for rows from `end` on."""
    deep = k + tl.arange(0, BK)
    places = p + rows[:, None] * K + deep[None, :]
    if K % BK == 0:
        # Filling what is masked would make loads wait for the product before.
        return tl.load(places, mask=rows[:, None] < end, care_padding=False)
    return tl.load(places, mask=(rows[:, None] < end) & (deep[None, :] < K), other=0.0)


@triton.jit
def product(
    x, w, rows, end, columns, K: tl.constexpr, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """These rows of x [end, K] times these of w [N, K]: f32 [BM, BN]."""
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        acc = tl.dot(panel(x, rows, end, k, K, BK), tl.trans(panel(w, columns, N, k, K, BK)), acc)
    return acc


@triton.jit
def gated(
    x, w, rows, end, columns, K: tl.constexpr, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """SwiGLU of these rows of x [end, K] times these of w's gate [N, K] and up, which lies behind it."""
    gate = tl.zeros((BM, BN), tl.float32)
    up = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        a = panel(x, rows, end, k, K, BK)
        gate = tl.dot(a, tl.trans(panel(w, columns, N, k, K, BK)), gate)
        up = tl.dot(a, tl.trans(panel(w + N * K, columns, N, k, K, BK)), up)
    return swiglu(gate, up)


@triton.jit
def swiglu(gate, up):
    """gate * sigmoid(gate) * up."""
    return gate / (1 + tl.exp(-gate)) * up


@triton.jit
def write(y, values, rows, end, columns, N: tl.constexpr):
    """Stores a tile into y [end, N], rounded to its type."""
    inside = (rows[:, None] < end) & (columns[None, :] < N)
    tl.store(y + rows[:, None] * N + columns[None, :], values.to(y.dtype.element_ty), mask=inside)


@triton.jit
def linear(
    x, w, y, m, K: tl.constexpr, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """y [m, N] = x [m, K] times w [N, K] transposed."""
    across: tl.constexpr = (N + BN - 1) // BN
    for tile in range(tl.program_id(0), tl.cdiv(m, BM) * across, tl.num_programs(0)):
        rows = tile // across * BM + tl.arange(0, BM)
        columns = tile % across * BN + tl.arange(0, BN)
        write(y, product(x, w, rows, m, columns, K, N, BM, BN, BK), rows, m, columns, N)


@triton.jit
def linear_add(
    x, w, residual, y, m, K: tl.constexpr, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """y [m, N] = x [m, K] times w [N, K] transposed, and the residual [m, N]."""
    across: tl.constexpr = (N + BN - 1) // BN
    for tile in range(tl.program_id(0), tl.cdiv(m, BM) * across, tl.num_programs(0)):
        rows = tile // across * BM + tl.arange(0, BM)
        columns = tile % across * BN + tl.arange(0, BN)
        acc = product(x, w, rows, m, columns, K, N, BM, BN, BK)
        inside = (rows[:, None] < m) & (columns[None, :] < N)
        before = tl.load(residual + rows[:, None] * N + columns[None, :], mask=inside, other=0.0)
        write(y, acc + before.to(tl.float32), rows, m, columns, N)


@triton.jit
def linear_swiglu(
    x, w, y, m, K: tl.constexpr, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """y [m, N] = SwiGLU of x [m, K] times w [2N, K] transposed."""
    across: tl.constexpr = (N + BN - 1) // BN
    for tile in range(tl.program_id(0), tl.cdiv(m, BM) * across, tl.num_programs(0)):
        rows = tile // across * BM + tl.arange(0, BM)
        columns = tile % across * BN + tl.arange(0, BN)
        write(y, gated(x, w, rows, m, columns, K, N, BM, BN, BK), rows, m, columns, N)
