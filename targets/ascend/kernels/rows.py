"""Triton functions that go row by row."""

import triton
import triton.language as tl


@triton.jit
def rms_norm(x, w, y, m, eps, N: tl.constexpr, WIDTH: tl.constexpr, START: tl.constexpr, BLOCK: tl.constexpr):
    """Columns START..START+N of rows of x, normed and weighted: a block takes every so-manieth row."""
    columns = tl.arange(0, BLOCK)
    inside = columns < N
    weight = tl.load(w + columns, mask=inside, other=0.0).to(tl.float32)
    for row in range(tl.program_id(0), m, tl.num_programs(0)):
        values = tl.load(x + row * WIDTH + START + columns, mask=inside, other=0.0).to(tl.float32)
        mean = tl.sum(values * values, axis=0) / N
        normed = values * tl.rsqrt(mean + eps) * weight
        tl.store(y + row * N + columns, normed.to(tl.bfloat16), mask=inside)
