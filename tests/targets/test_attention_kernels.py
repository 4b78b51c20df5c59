"""Attention kernels against the ops' references: shapes at the edges, both ways, what else must hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

import numpy as np
import pytest

from moec.targets import cases_attention
from moec.targets.base import Kernel
from moec.targets.cpu import isa, space
from moec.targets.cpu.device import Bench, Device

# One instruction set of each width: these kernels multiply floats.
HERE = [*{level.lanes: level for level in isa.ISAS if isa.supports(level)}.values()]
AUTO, ABSORBED, MATERIALISED = 0, 1, 2
# batch, new tokens, cached tokens, left padding of the second sequence
SHAPES = (
    (1, 1, 0, 0),
    (2, 1, 6, 4),
    (2, 5, 0, 3),
    (1, 7, 129, 0),
    (2, 33, 64, 20),
    (2, 2, 700, 701),
)


def latent_kernel(
    heads: int,
    nope: int = 12,
    rope: int = 8,
    latent: int = 16,
    value: int = 10,
    pairs: int = 0,
    start: int = 0,
    spare: int = 0,
) -> Kernel:
    """Queries lie from column `start` on, with `spare` columns behind them."""
    sizes = {"heads": heads, "nope": nope, "rope": rope, "latent": latent, "value": value}
    columns = {"width": start + heads * (nope + rope) + spare, "start": start}
    return Kernel(
        "latent_attention",
        (*sizes.items(), ("pairs_in", pairs), ("pairs_out", 1), *columns.items()),
        (("scale", 0.3),),
    )


def grouped_kernel(heads: int, groups: int, dk: int, dv: int) -> Kernel:
    sizes = {"heads": heads, "groups": groups, "dk": dk, "dv": dv}
    return Kernel("attention", tuple(sizes.items()), (("scale", 0.3),))


@cache
def bench(kernel: Kernel, level: isa.Isa, threads: int = 2, **knobs: int) -> Bench:
    """The kernel built, with these knobs instead of the default schedule's."""
    schedule = {**space.space(kernel, level).default, **knobs}
    return Device(level.name, threads).bench(kernel, {1: schedule})


def feeds(kernel: Kernel, batch: int, tokens: int, cached: int, padding: int) -> list[np.ndarray]:
    make: Callable[..., list[np.ndarray]] = cases_attention.CASES[kernel.kind].feeds
    return make(kernel, tokens, np.random.default_rng(tokens), batch=batch, cached=cached, padding=padding)


def output(built: Bench, operands: list[np.ndarray]) -> np.ndarray:
    everything = cases_attention.CASES[built.kernel.kind].reference(
        built.kernel, [*operands, *built.weights.values()]
    )
    return built.run(operands, everything)[0]


@pytest.mark.parametrize("path", [ABSORBED, MATERIALISED])
@pytest.mark.parametrize("heads", [1, 4, 16, 128])
def test_latent_attention(heads: int, path: int) -> None:
    built = bench(latent_kernel(heads), HERE[0], path=path)
    for shape in SHAPES:
        assert built.check_feeds(feeds(built.kernel, *shape)) is None, shape


@pytest.mark.parametrize("path", [ABSORBED, MATERIALISED])
@pytest.mark.parametrize("level", HERE, ids=str)
def test_latent_attention_of_real_proportions(level: isa.Isa, path: int) -> None:
    built = bench(latent_kernel(20, 64, 32, 128, 48, pairs=1), level, path=path)
    for shape in SHAPES:
        assert built.check_feeds(feeds(built.kernel, *shape)) is None, shape


@pytest.mark.parametrize("path", [ABSORBED, MATERIALISED])
@pytest.mark.parametrize(("start", "spare"), [(0, 24), (5, 0), (3, 7)])
def test_queries_are_columns_of_something_wider(path: int, start: int, spare: int) -> None:
    built = bench(latent_kernel(4, start=start, spare=spare), HERE[0], path=path)
    for shape in SHAPES:
        operands = feeds(built.kernel, *shape)
        operands[0][..., :start] = operands[0][..., built.kernel["width"] - spare :] = np.nan
        assert built.check_feeds(operands) is None, shape


def test_the_cheaper_way_is_taken() -> None:
    kernel = latent_kernel(4, 32, 16, 64, 32)
    ways = [bench(kernel, HERE[0], path=path) for path in (AUTO, ABSORBED, MATERIALISED)]
    for shape, taken, other in (((1, 1, 200, 0), 1, 2), ((1, 64, 0, 0), 2, 1)):
        operands = feeds(kernel, *shape)
        results = [output(built, operands) for built in ways]
        assert np.array_equal(results[0], results[taken]), shape
        assert not np.array_equal(results[0], results[other]), shape


@pytest.mark.parametrize(
    ("heads", "groups", "dk", "dv"), [(5, 1, 9, 7), (6, 2, 12, 10), (32, 4, 32, 32), (4, 4, 16, 24)]
)
@pytest.mark.parametrize("level", HERE, ids=str)
def test_grouped_attention(level: isa.Isa, heads: int, groups: int, dk: int, dv: int) -> None:
    built = bench(grouped_kernel(heads, groups, dk, dv), level)
    for shape in SHAPES:
        assert built.check_feeds(feeds(built.kernel, *shape)) is None, shape


@pytest.mark.parametrize("level", HERE, ids=str)
def test_keys_that_are_no_whole_tiles(level: isa.Isa) -> None:
    """Few keys go one by one, and a last tile of more is moved back: nothing beyond is read or written."""
    kernel = grouped_kernel(4, 4, 16, 24)
    keys = int(space.space(kernel, level).default["few_sums"])  # a panel is one vector
    built = bench(kernel, level, lone=keys * 3 // 2)
    for cached in range(0, 40, 3):
        operands = feeds(built.kernel, 1, 1, cached, 0)
        for past in operands[1:3]:
            past[:, :, cached + 1 :] = np.nan
        assert built.check_feeds(operands) is None, cached


@pytest.mark.parametrize(
    "kernel", [latent_kernel(16), grouped_kernel(8, 2, 16, 16)], ids=lambda kernel: kernel.kind
)
def test_schedules(kernel: Kernel) -> None:
    """A few of those the space admits."""
    admitted, random = space.space(kernel, HERE[0]), Random(0)
    tried = 0
    while tried < 3:
        schedule = {knob: random.choice(list(values)) for knob, values in admitted.choices.items()}
        if admitted.objection(schedule):
            continue
        built = bench(kernel, HERE[0], **schedule)
        for shape in ((2, 1, 300, 5), (2, 9, 150, 5)):
            assert built.check_feeds(feeds(kernel, *shape)) is None, (schedule, shape)
        tried += 1


@pytest.mark.parametrize(
    "kernel", [latent_kernel(16), grouped_kernel(8, 2, 16, 16)], ids=lambda kernel: kernel.kind
)
def test_same_bits_for_any_number_of_threads(kernel: Kernel) -> None:
    for shape in SHAPES[-3:]:
        operands = feeds(kernel, *shape)
        results = [output(bench(kernel, HERE[0], threads=threads), operands) for threads in (1, 2)]
        assert np.array_equal(*results)


def test_tokens_that_see_nothing_give_zero() -> None:
    for kernel in (latent_kernel(4), grouped_kernel(6, 2, 12, 10)):
        operands = feeds(kernel, 2, 5, 0, 5)
        assert not output(bench(kernel, HERE[0]), operands)[1].any()


@pytest.mark.parametrize(
    "kernel", [latent_kernel(4), grouped_kernel(6, 2, 12, 10)], ids=lambda kernel: kernel.kind
)
def test_no_tokens(kernel: Kernel) -> None:
    assert output(bench(kernel, HERE[0]), feeds(kernel, 2, 0, 5, 0)).size == 0


@pytest.mark.parametrize(
    "kernel", [latent_kernel(4), grouped_kernel(6, 2, 12, 10)], ids=lambda kernel: kernel.kind
)
def test_mask_beyond_the_cache(kernel: Kernel) -> None:
    operands: list[Any] = feeds(kernel, 1, 1, 5, 0)
    wanted = [output(bench(kernel, HERE[0]), operands)]
    place = next(i for i, operand in enumerate(operands) if operand.dtype == np.int64)
    operands[place] = np.ones((1, 20), np.int64)
    with pytest.raises(Exception, match=r"the attention mask covers 20 tokens, .* the cache's 9 rows"):
        bench(kernel, HERE[0]).run(operands, wanted)
