"""Default tiles of products for Ascend: what they reach in the simulated timeline, and what they fit into.

Nothing of it was measured.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moec.targets.ascend import lowering, soc, space, timeline, vendor
from moec.targets.ascend.hivm import sampled
from moec.targets.ascend.hivm.calls import Asked
from moec.targets.ascend.programs import tiling
from moec.targets.base import Kernel, Schedule, serving

from . import ascend
from .ascend_models import V2_LITE, V3, kernel, kernels

B3 = soc.SOCS[0]
needs_toolchain = pytest.mark.usefixtures("ascend_toolchain", "home")
PRODUCTS = [
    one for lines in (V2_LITE, V3) for one in kernels(lines) if one.kind.startswith(("linear", "grouped"))
]
FEW_COLUMNS = kernel("linear k=7168 n=2112 wide=0 bf16")
SHORT, DEEP = (kernel(f"linear k={k} n={n} wide=0 bf16") for k, n in ((2048, 3648), (10944, 2048)))
SMALL = kernel("grouped_combine k=1408 n=2048 experts=66 share=8 base=2 bf16")
LARGE = kernel("linear k=1536 n=24576 wide=0 bf16")


def default(one: Kernel, tokens: int) -> Schedule:
    """Its default schedule for so many tokens."""
    defaults = space.space(one, B3).defaults
    return defaults[serving(defaults, tokens)]


def longest(one: Kernel, tokens: int, schedule: Schedule | None = None) -> timeline.Timed:
    """The simulated step that takes longest, which is the products."""
    found = timeline.seconds(one, schedule or default(one, tokens), B3, Asked(tokens))
    return max(found.steps, key=lambda step: step.us)


@needs_toolchain
@pytest.mark.parametrize("tokens", [1, 64])
@pytest.mark.parametrize("one", [FEW_COLUMNS, SHORT, SMALL], ids=str)
def test_few_tokens_are_bound_by_the_memory(one: Kernel, tokens: int) -> None:
    assert longest(one, tokens).bandwidth > 0.8


@needs_toolchain
@pytest.mark.parametrize("one", [LARGE, FEW_COLUMNS, SHORT, DEEP], ids=str)
def test_many_tokens_keep_the_cube_busy(one: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks are run: tiles that end a row are narrower, and few blocks may have too many of them."""
    monkeypatch.setattr(sampled, "MOST_BLOCKS", 24)
    assert longest(one, 1024).cube > 0.7


@needs_toolchain
def test_the_default_is_among_the_fastest_of_some() -> None:
    """Every so-manieth tile of those that are as high as there are tokens."""
    found, best = space.space(FEW_COLUMNS, B3), longest(FEW_COLUMNS, 64).us
    every = (dict(zip(found.choices, values)) for values in itertools.product(*found.choices.values()))
    some = [each for each in every if each["bm"] == 64 and not found.objection(each)][3::9]
    assert len(some) > 5
    for each in some:
        assert best < 1.02 * longest(FEW_COLUMNS, 64, each).us, each


@pytest.mark.parametrize("one", PRODUCTS, ids=str)
def test_defaults_fit_on_every_soc_and_neighbours_are_tried_first(one: Kernel) -> None:
    for chip in soc.SOCS:
        found = space.space(one, chip)
        assert found.objection_to(found.defaults) is None
        assert all(found.objection(each) is None for each in found.known)
        assert all(one["k"] % int(each["bk"]) == 0 for each in found.known), "nothing has to be filled up"


def test_tiles_grow_with_tokens() -> None:
    heights = [int(default(LARGE, tokens)["bm"]) for tokens in (1, 17, 65, 257)]
    assert heights == sorted(heights)
    assert heights[0] == tiling.HEIGHTS[0]
    assert heights[-1] == tiling.HEIGHTS[-1]


@needs_toolchain
def test_what_the_rules_refuse_the_vendor_s_compiler_refuses_or_changes() -> None:
    one = kernel("linear k=1024 n=512 wide=0 bf16")
    found = space.space(one, B3)
    deep = {"bm": 128, "bn": 256, "bk": 512, "buffers": 2}
    high = {"bm": 128, "bn": 320, "bk": 128, "buffers": 2}
    assert "2 buffers of both sides are 786432 bytes; L1 has 524288" in str(found.objection(deep))
    assert found.objection({**deep, "buffers": 1}) is None
    assert any("sums are 163840 bytes; L0C has 131072" in str(rule(high)) for rule in found.rules)
    (step,) = space.steps(one, deep, B3)
    assert vendor.planned(lowering.lowering()(step, B3), B3, step.compiler).notes
    (step,) = space.steps(one, high, B3)
    with pytest.raises(vendor.Rejected, match="cc overflow"):
        vendor.planned(lowering.lowering()(step, B3), B3, step.compiler)


@needs_toolchain
@pytest.mark.parametrize("share", [1, 9])
def test_rows_of_a_token_are_added_up(share: int) -> None:
    """One row of each, and more than fit a power of two; columns that no power of two divides."""
    one = kernel(f"grouped_combine k=64 n=70 experts=18 share={share} base={share > 1:d} bf16")
    assert ascend.wrong(one, only=lambda call: call["rows"] <= 33) == []


@pytest.mark.parametrize(("n", "block"), [(7168, 1024), (2048, 1024), (70, 70), (1408, 704)])
def test_parts_of_rows_divide_them(n: int, block: int) -> None:
    one = kernel(f"grouped_combine k=64 n={n} experts=18 share=9 base=2 bf16")
    step = space.steps(one, default(one, 1), B3)[-1]
    assert step.constants["BLOCK"] == block
    assert np.prod([axis.at({"m": 2}) for axis in step.grid]) == 2 * n // block
