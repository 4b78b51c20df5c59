"""Kernels whose weights are bfloat16, against float64 with the same rounded weights."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import ml_dtypes
import numpy as np
import pytest

from moec.targets.base import Kernel
from moec.targets.cpu import isa
from moec.targets.cpu.device import Bench
from moec.targets.cpu.space import space

Build = Callable[..., Bench]
KINDS = ("linear", "linear_add", "linear_swiglu", "grouped_swiglu", "grouped_combine")


def kernel_of(kind: str, k: int, n: int) -> Kernel:
    """A kernel; n is even where it must be."""
    n += n % 2 if kind.endswith("swiglu") else 0
    dims = [("k", k), ("n", n)]
    if kind.startswith("grouped"):
        dims += [("experts", 8), ("share", 3)]
    return Kernel(kind, tuple([*dims, ("base", 1)] if kind == "grouped_combine" else dims), dtype="bf16")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("k", "n"), [(1, 1), (7, 13), (129, 100), (1024, 352)])
def test_linear_and_experts(kind: str, k: int, n: int, level: isa.Isa, build: Build) -> None:
    bench = build(kernel_of(kind, k, n), level)
    for rows in (*range(4), 9, 40):
        assert (rows, bench.check_feeds(bench.feeds(rows))) == (rows, None)


@pytest.mark.parametrize("kind", KINDS)
def test_schedules_of_the_space(kind: str, level: isa.Isa, build: Build) -> None:
    kernel, dice = kernel_of(kind, 96, 200), Random(0)
    where, tried = space(kernel, level), 0
    while tried < 2:
        schedule = {knob: dice.choice(list(values)) for knob, values in where.choices.items()}
        if where.objection(schedule):
            continue
        assert (schedule, build(kernel, level, 2, **schedule).check()) == (schedule, None)
        tried += 1


LATENT = {"heads": 20, "nope": 12, "rope": 8, "latent": 16, "value": 10, "pairs_in": 0, "pairs_out": 1}
GROUPED = {"heads": 6, "groups": 2, "dk": 12, "dv": 10}
# batch, new tokens, cached tokens, left padding of the second sequence; 60 tokens are cheaper materialised
SHAPES = ((1, 1, 0, 0), (2, 1, 6, 4), (1, 7, 129, 0), (2, 60, 40, 20), (2, 2, 700, 701))


def latent_kernel(dtype: str) -> Kernel:
    """Queries are all columns of their operand."""
    columns = {"width": LATENT["heads"] * (LATENT["nope"] + LATENT["rope"]), "start": 0}
    return Kernel("latent_attention", tuple({**LATENT, **columns}.items()), (("scale", 0.3),), dtype)


@pytest.mark.parametrize("dtype", ["bf16", "f32+bf16", "bf16+bf16"])
def test_latent_attention(dtype: str, level: isa.Isa, build: Build) -> None:
    bench = build(latent_kernel(dtype), level)
    for batch, tokens, cached, padding in SHAPES:
        feeds = bench.case.feeds(
            bench.kernel, tokens, np.random.default_rng(tokens), batch=batch, cached=cached, padding=padding
        )
        assert ((tokens, cached), bench.check_feeds(feeds)) == ((tokens, cached), None)


def test_grouped_attention(level: isa.Isa, build: Build) -> None:
    bench = build(Kernel("attention", tuple(GROUPED.items()), (("scale", 0.3),), "f32+bf16"), level)
    for batch, tokens, cached, padding in SHAPES:
        feeds = bench.case.feeds(
            bench.kernel, tokens, np.random.default_rng(tokens), batch=batch, cached=cached, padding=padding
        )
        assert ((tokens, cached), bench.check_feeds(feeds)) == ((tokens, cached), None)


@pytest.mark.parametrize("pairs", [0, 1, 2])
def test_a_narrow_cache_holds_what_the_wide_one_would_rounded(
    pairs: int, level: isa.Isa, build: Build
) -> None:
    sizes = {"c": 48, "r": 24, "width": 100, "start": 10, "pairs_in": pairs, "pairs_out": max(1, pairs)}
    wide, narrow = (
        build(Kernel("latent_write", tuple(sizes.items()), (("eps", 1e-5),), dtype), level)
        for dtype in ("f32", "f32+bf16")
    )
    for tokens in (0, 1, 7):
        feeds = narrow.feeds(tokens)
        exact = [feed.astype(np.float32) if feed.dtype == ml_dtypes.bfloat16 else feed for feed in feeds]
        likes = [np.zeros(feed.shape) for feed in feeds[3:5]]
        expected = wide.run(exact, likes)
        rounded = narrow.run(feeds, [like.astype(ml_dtypes.bfloat16) for like in likes])
        for mine, its in zip(rounded, expected, strict=True):
            np.testing.assert_array_equal(mine, its.astype(ml_dtypes.bfloat16))


def test_appended_rows_are_rounded_to_the_nearest_even(build: Build) -> None:
    bench = build(Kernel("append", (("h", 3), ("d", 64)), dtype="f32+bf16"), isa.V3)
    past, rows, mask = bench.feeds(40)
    bits = np.random.default_rng(0).integers(0, 1 << 32, rows.size, np.uint64).astype(np.uint32)
    bits[::5] = bits[::5] & 0xFFFF0000 | 0x8000  # halfway
    bits[:6] = (0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0x7FFFFFFF)
    rows = bits.view(np.float32).reshape(rows.shape)
    wanted = past.copy()
    with np.errstate(invalid="ignore"):
        wanted[:, :, 1000:1040] = rows.astype(ml_dtypes.bfloat16)
    (present,) = bench.run([past, rows, mask], [wanted])
    np.testing.assert_array_equal(present.astype(np.float32), wanted.astype(np.float32))


def test_weights_are_half_as_many_bytes(build: Build) -> None:
    bench = build(kernel_of("linear", 64, 96), isa.V3)
    (packed,) = bench.packed[1]
    assert packed.dtype == ml_dtypes.bfloat16
    assert packed.nbytes == 2 * 64 * 96


def test_every_bfloat16_is_read_as_it_is(build: Build) -> None:
    """All finite ones, denormal numbers and both zeros among them, each times one."""
    bench = build(kernel_of("linear", 1, 96), isa.V3)
    bits = np.arange(1 << 16, dtype=np.uint16)
    every = bits[(bits >> 7 & 0xFF) != 0xFF]
    packed = bench.packed[1][0]
    saved = packed.copy()
    try:
        for start in range(0, every.size, packed.size):
            some = np.resize(every[start : start + packed.size], packed.shape).view(ml_dtypes.bfloat16)
            packed[...] = some
            (y,) = bench.run([np.ones((1, 1), np.float32)], [np.zeros((1, 96))])
            np.testing.assert_array_equal(y.reshape(-1), some.astype(np.float32).reshape(-1))
    finally:
        packed[...] = saved
