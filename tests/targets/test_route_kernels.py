"""From tokens to rows by expert in one kernel, against the ops it stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moec.targets.base import Kernel
from moec.targets.cpu import isa

ROWS = (0, 1, 2, 7, 90, 300)
PLAIN = {"groups": 1, "keep": 1, "sigmoid": 0, "top2": 0, "normalise": 0, "bias": 0, "shared": 0}
FAMILIES: dict[str, dict[str, int]] = {
    "V2-Lite": {"k": 64, "n": 64, "chosen": 6, **PLAIN, "shared": 2},
    "V2": {"k": 48, "n": 160, "chosen": 6, **PLAIN, "groups": 8, "keep": 3, "shared": 2},
    "V3": {"k": 33, "n": 256, "chosen": 8, "groups": 8, "keep": 4, "sigmoid": 1, "top2": 1, "normalise": 1,
           "bias": 1, "shared": 1},
    "Qwen3": {"k": 40, "n": 128, "chosen": 8, **PLAIN, "normalise": 1},
    "all of few": {"k": 1, "n": 7, "chosen": 7, **PLAIN, "sigmoid": 1},
    "one": {"k": 5, "n": 1, "chosen": 1, **PLAIN, "shared": 3},
}  # fmt: skip


def kernel(sizes: dict[str, int]) -> Kernel:
    return Kernel("route", tuple(sizes.items()), (("eps", 1e-20), ("scale", 2.5)))


@pytest.mark.parametrize("sizes", FAMILIES.values(), ids=FAMILIES)
def test_route(build: Any, level: isa.Isa, sizes: dict[str, int]) -> None:
    built = build(kernel(sizes), level)
    for rows in ROWS:
        assert built.check_feeds(built.feeds(rows)) is None, rows


@pytest.mark.parametrize("sizes", FAMILIES.values(), ids=FAMILIES)
def test_equal_tokens_choose_the_same_and_the_lower_among_equals(build: Any, sizes: dict[str, int]) -> None:
    built = build(kernel(sizes), isa.host())
    for x in (np.zeros((50, sizes["k"]), np.float32), np.ones((50, sizes["k"]), np.float32)):
        bias = [np.zeros(sizes["n"], np.float32)] * sizes["bias"]
        feeds = [x, *bias]
        assert built.check_feeds(feeds) is None
    _, ends, _ = built.run(feeds, built.sample.wanted(feeds))
    assert sorted(set(np.diff(ends, prepend=0).tolist())) in ([0, 50], [50])


@pytest.mark.parametrize("knobs", [{"grain": 256}, {"group": 64, "grain": 4096}, {"nr": 32}], ids=str)
def test_every_schedule_chooses_alike(build: Any, level: isa.Isa, knobs: dict[str, int]) -> None:
    built = build(kernel(FAMILIES["V3"]), level, **knobs)
    for rows in ROWS:
        assert built.check_feeds(built.feeds(rows)) is None, rows


def test_tokens_may_lie_in_any_shape(build: Any) -> None:
    built = build(kernel(FAMILIES["V2-Lite"]), isa.host())
    (x,) = built.feeds(12)
    wanted = built.sample.wanted([x])
    for mine, its in zip(built.run([x.reshape(3, 4, -1)], wanted), wanted):
        assert np.allclose(mine, its, atol=1e-6)


def test_tokens_that_are_no_numbers_go_to_experts_that_exist(build: Any) -> None:
    built = build(kernel(FAMILIES["V3"]), isa.host())
    x, bias = built.feeds(5)
    x[1:3] = np.nan
    order, ends, _ = built.run([x, bias], built.sample.wanted([np.zeros_like(x), bias]))
    assert sorted(order.tolist()) == [*range(45)]
    assert ends[-1] == 45
    assert (np.diff(ends) >= 0).all()


def test_tokens_of_another_width_are_refused(build: Any) -> None:
    built = build(kernel(FAMILIES["V2-Lite"]), isa.host())
    (x,) = built.feeds(3)
    with pytest.raises(Exception, match="input 0 has 63 columns; 64 were compiled in"):
        built.run([x[:, 1:].copy()], built.sample.wanted([x]))
