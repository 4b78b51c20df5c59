"""Ascend's gate and sort, simulated here, where they differ from size to size: equal scores, many slots."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moec.compiler.ir import DTYPES, Array
from moec.targets.ascend import soc, space, trial
from moec.targets.ascend.hivm import interpret
from moec.targets.ascend.hivm.shapes import kept_axes
from moec.targets.ascend.programs.gate import EXACT, FEW, parts_of
from moec.targets.ascend.trial import sizes_of
from moec.targets.base import Kernel
from moec.targets.cases_bf16 import CASES, Example
from moec.targets.sample import unwritten

from . import ascend
from .ascend_models import kernel

B3 = soc.SOCS[0]
SORT = kernel("permute experts=257 k=9 f32")
GATES = [
    kernel(f"top_k_gate {sizes} f32")
    for sizes in (
        "experts=256 k=8 groups=8 keep=4 sigmoid=1 top2=1 normalise=1 bias=1 shared=1",  # DeepSeek-V3
        "experts=160 k=6 groups=8 keep=3 sigmoid=0 top2=0 normalise=0 bias=0 shared=2",  # V2: 8 x 20
        "experts=128 k=8 groups=1 keep=1 sigmoid=0 top2=0 normalise=1 bias=0 shared=0",  # Qwen3
        "experts=9 k=2 groups=3 keep=2 sigmoid=1 top2=1 normalise=0 bias=1 shared=0",
        "experts=4 k=3 groups=4 keep=3 sigmoid=1 top2=1 normalise=1 bias=0 shared=1",  # groups of one
    )
]
needs_toolchain = pytest.mark.usefixtures("ascend_toolchain", "home")


def example(one: Kernel, operands: list[Array]) -> Example:
    """What must come of these operands."""
    results = CASES[one.kind].reference(one, operands)
    kinds = [DTYPES["i64" if each.dtype.kind == "i" else "f32"] for each in results]
    return Example(operands, results, kinds, tolerance=2e-6)


def tried(one: Kernel, operands: list[Array], before: bool = False) -> list[Any]:
    """The results of a call by the kernel's default schedules."""
    return trial.run(one, space.space(one, B3).defaults, B3, example(one, operands), before)


def coarse(one: Kernel, tokens: int) -> list[Array]:
    """Logits and a bias of few numbers, so that many experts and many groups are equal."""
    random = np.random.default_rng(tokens)
    logits = random.integers(0, 3, (tokens, one["experts"])).astype(np.float32)
    bias = random.integers(0, 2, one["experts"]).astype(np.float32)
    return [logits, bias] if one["bias"] else [logits]


@needs_toolchain
@pytest.mark.parametrize("one", GATES, ids=str)
@pytest.mark.parametrize("tokens", [1, 41, 70, 259])
def test_of_equal_scores_the_lowest_expert_is_chosen(one: Kernel, tokens: int) -> None:
    operands = coarse(one, tokens)
    assert example(one, operands).wrong(tried(one, operands, before=tokens == 41)) is None
    operands[0][:] = 0
    assert example(one, operands).wrong(tried(one, operands)) is None


@needs_toolchain
@pytest.mark.parametrize("one", GATES, ids=str)
def test_a_token_that_is_no_number_disturbs_no_other(one: Kernel) -> None:
    operands = coarse(one, 70)
    clean, real = example(one, operands), np.arange(70) % 3 != 0
    operands[0][~real] = np.nan
    ids, weights = tried(one, operands)
    others = replace(clean, results=[each[real] for each in clean.results])
    assert others.wrong([ids[real], weights[real]]) is None
    assert ids.min() >= 0
    assert ids.max() < one["experts"] + one["shared"]


@needs_toolchain
@pytest.mark.parametrize("one", [GATES[0], GATES[2]], ids=str)
def test_every_count_of_tokens_side_by_side(one: Kernel) -> None:
    for rows in space.space(one, B3).choices["rows"]:
        found = ascend.wrong(one, {1: {"rows": rows}}, lambda options: options["rows"] in (1, 33, 130))
        assert found == [], rows


@needs_toolchain
@pytest.mark.parametrize("one", [SORT, kernel("permute experts=128 k=8 f32")], ids=str)
def test_sorts_of_real_sizes(one: Kernel) -> None:
    assert ascend.wrong(one) == []


@needs_toolchain
@pytest.mark.parametrize(
    ("one", "tokens"),
    [
        (SORT, 4096),
        (SORT, FEW // 9),
        (SORT, FEW // 9 + 1),
        (kernel("permute experts=1 k=1 f32"), 3),
        (kernel("permute experts=1 k=1 f32"), 2000),
        (kernel("permute experts=1000 k=4 f32"), 700),
    ],
    ids=str,
)
@pytest.mark.parametrize("how", ["mixed", "first", "last", "beyond"])
def test_sorts_of_many_slots_or_of_one_expert(one: Kernel, tokens: int, how: str) -> None:
    """Ids that are no expert's count as the nearest."""
    experts, share = one["experts"], one["k"]
    mixed = np.random.default_rng(tokens).integers(0, experts, (tokens, share))
    only = {"first": 0 * mixed, "last": 0 * mixed + experts - 1, "beyond": 3 * mixed - experts}
    given = only.get(how, mixed)
    wanted = example(one, [given.clip(0, experts - 1)])
    found = trial.run(one, space.space(one, B3).defaults, B3, replace(wanted, operands=[given]))
    assert wanted.wrong(found) is None


def test_keys_of_few_slots_are_exact() -> None:
    """Slots that are compared have keys below 2**24, however many experts there are."""
    for experts in (2, 257, 100_000):
        one = Kernel("permute", (("experts", experts), ("k", 1)), (), "f32")
        sort = space.steps(one, {}, B3)[0]
        assert sort.when is not None
        taken = [m for m in range(1, 2000) if sort.when.at({"m": m})]
        assert taken == [*range(1, min(FEW, EXACT // experts) + 1)]


@needs_toolchain
@pytest.mark.parametrize("tokens", [3, 200])
def test_synchronised_sorts_of_deepseek_v3_are_right_and_ordered(tokens: int) -> None:
    """Both ways: by comparing, and by counting."""
    wanted = example(SORT, [np.random.default_rng(0).integers(0, 257, (tokens, 9))])
    sizes = sizes_of(SORT, wanted.operands)
    results = [unwritten(each) for each in wanted.results]
    found, outcomes = interpret.run(space.steps(SORT, {}, B3), B3, wanted.operands, results, sizes, {})
    assert [each.wrong for each in outcomes] == [None] * (1 if tokens == 3 else 2)
    assert wanted.wrong(found) is None


@pytest.mark.parametrize("most", [1, 2, 4, 8])
def test_parts_of_a_router_have_columns(most: int) -> None:
    for k in (1, 32, 256, 257, 1280, 2048, 7168):
        for bk in (128, 256, 512):
            parts = parts_of(k, bk, most)
            share = -(-k // (parts * bk)) * bk  # as the kernel cuts them
            assert 1 <= parts <= most
            assert (parts - 1) * share < k <= parts * share, (k, bk)


@pytest.mark.parametrize(
    ("sizes", "shape", "kept"),
    [
        ([1, 4, 2, 1], [1, 4, 2], [0, 1, 2]),
        ([1, 4, 2], [4, 2], [1, 2]),
        ([4, 1], [4], [0]),
        ([1, 1, 4], [1, 4], [1, 2]),
        ([1, 1], [], []),
        ([3, 4], [3, 4], [0, 1]),
    ],
)
def test_axes_that_a_subview_drops(sizes: list[int], shape: list[int], kept: list[int]) -> None:
    assert kept_axes(sizes, shape) == kept
