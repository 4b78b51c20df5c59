"""Latent attention for Ascend with its products apart: results, order, scratch, when it pays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moec.targets.ascend import lowering, soc, space, timeline, vendor
from moec.targets.ascend.hivm import interpret
from moec.targets.ascend.hivm.calls import Asked
from moec.targets.ascend.program import ONE, Step
from moec.targets.ascend.programs import latent_apart
from moec.targets.ascend.trial import run, sizes_of
from moec.targets.base import Kernel
from moec.targets.cases_bf16 import Example, Sample
from moec.targets.sample import unwritten

from . import ascend
from .ascend_models import MODELS, kernel

B3 = soc.SOCS[0]
needs_toolchain = pytest.mark.usefixtures("ascend_toolchain", "home")


def decode(heads: int, latent: int, rope: int) -> Kernel:
    one = kernel(f"mla_decode heads={heads} latent={latent} rope={rope} f32+bf16")
    return replace(one, reals=(("scale", 0.125),))


V3, TINY = decode(128, 512, 64), decode(4, 14, 8)
LAYER = next(one for one in map(kernel, MODELS["v3"].strip().splitlines()) if one.kind == "latent_attention")
# One half and two, tiles that are a token's heads and others, sizes that are no powers of two.
KERNELS = (TINY, decode(20, 48, 16), decode(128, 32, 16))


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are apart however little there is to do."""
    monkeypatch.setattr(latent_apart, "pays", lambda *given: ONE)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is apart, for scratch holds no chances."""
    monkeypatch.setattr(latent_apart, "MOST", 0)


def launched(one: Kernel, example: Example, **knobs: int) -> tuple[list[Step], Mapping[str, int]]:
    """A call's launches, and its sizes."""
    sizes, schedule = sizes_of(one, example.operands), {**space.space(one, B3).default, **knobs}
    return list(interpret.taken(space.steps(one, schedule, B3), sizes)), sizes


@needs_toolchain
@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("one", KERNELS, ids=str)
def test_every_call_is_right_apart(one: Kernel) -> None:
    """Of many heads only the smaller calls, which take long enough."""
    few = 1000 if one is TINY else 40
    assert ascend.wrong(one, only=lambda call: call["rows"] * call.get("batch", 1) <= few) == []


@needs_toolchain
@pytest.mark.usefixtures("fused")
def test_every_call_is_right_in_one_launch() -> None:
    assert ascend.wrong(TINY) == []


@needs_toolchain
@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("cached", [0, 62, 63, 64, 191, 192, 193])
def test_blocks_that_are_full_and_one_key_more_or_less(cached: int) -> None:
    """With 192 keys to a block."""
    for options in ({"rows": 1, "batch": 2}, {"rows": 2, "batch": 1}):
        example = Sample(TINY).example(cached=cached, **options)
        assert example.wrong(run(TINY, space.space(TINY, B3).defaults, B3, example)) is None


@needs_toolchain
@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize(
    ("batch", "cached", "together"),
    [
        (23, 450, 1 << 20),  # a round of 20 tiles, and three for which cores come in pairs
        (3, 4000, 1 << 20),  # each tile of several cores
        (7, 450, 902),  # groups of two, the last of one
        (5, 450, 1),  # a group for each is too many
    ],
)
def test_sequences_come_in_rounds_in_shares_and_in_groups(batch: int, cached: int, together: int) -> None:
    example = Sample(TINY).example(rows=1, batch=batch, cached=cached)
    schedules = {1: {**space.space(TINY, B3).default, "together": together}}
    assert example.wrong(run(TINY, schedules, B3, example)) is None


@pytest.mark.parametrize(
    ("batch", "seen", "groups"),
    [(64, 4096, [64]), (128, 4096, [64, 64]), (226, 4096, [76, 76, 74]), (2000, 1024, 4 * [500])],
    ids=str,
)
def test_groups_are_alike_and_have_as_many_keys_as_the_schedule_says(
    batch: int, seen: int, groups: list[int]
) -> None:
    sizes = {"m": batch, "batch": batch, "tokens": 1, "seen": seen, "room": seen}
    steps = latent_apart.attend(
        V3, space.space(V3, B3).default, B3, dict.fromkeys(latent_apart.READ, "x0") | {"y": "s1"}, True
    )
    scores = [step for step in steps if step.function == "latent_apart:score" and step.when.at(sizes)]
    found = [[step.arguments[name].value.at(sizes) for name in ("skipped", "batch")] for step in scores]
    assert found == [[sum(groups[:i]), many] for i, many in enumerate(groups)]


@needs_toolchain
@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_shows_in_its_head_only(bad: float) -> None:
    example = Sample(TINY).example(rows=1, batch=2, cached=70)
    defaults = space.space(TINY, B3).defaults
    (clean,) = run(TINY, defaults, B3, example)
    example.operands[0][1, 0, 2, 3] = bad
    with np.errstate(invalid="ignore"):
        (found,) = run(TINY, defaults, B3, example)
    assert not np.isfinite(found[1, 0, 2].astype(np.float32)).any()
    found[1, 0, 2] = clean[1, 0, 2]
    np.testing.assert_array_equal(found, clean)


@needs_toolchain
@pytest.mark.usefixtures("apart")
def test_scores_far_apart_neither_overflow_nor_are_lost() -> None:
    """A key in the last of several blocks has nearly all of the chances."""
    example = Sample(TINY).example(rows=1, batch=1, cached=450)
    q, latents, keys = example.operands[:3]
    q[...], keys[...] = 1, 0
    latents[...] = -50 * np.ones(14)
    latents[0, 0, 440] = np.linspace(40, 60, 14)
    (found,) = run(TINY, space.space(TINY, B3).defaults, B3, example)
    wanted = latents[0, 0, 440].astype(np.float32)
    np.testing.assert_array_equal(found[0, 0].astype(np.float32), np.tile(wanted, (4, 1)))


@needs_toolchain
@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize(
    ("one", "options", "groups"),
    [
        (decode(32, 128, 32), {"rows": 1, "batch": 2, "cached": 450}, 2),
        (decode(20, 48, 16), {"rows": 5, "batch": 2, "cached": 77}, 1),
        (decode(32, 128, 32), {"rows": 1, "batch": 1, "cached": 1100}, 1),  # of three cores
    ],
    ids=str,
)
def test_pipes_and_cores_are_ordered(one: Kernel, options: dict[str, int], groups: int) -> None:
    """What the vendor's compiler made overlap, interpreted at real capacities."""
    example = Sample(one).example(**options)
    steps, sizes = launched(one, example, together=1 if groups > 1 else 1 << 20)
    names = ["score", "weigh", "mix", "add"] * groups + ["copy"]
    assert [step.function for step in steps] == [f"latent_apart:{name}" for name in names]
    results = [unwritten(like.astype(dtype)) for like, dtype in zip(example.results, example.dtypes)]
    found, outcomes = interpret.run(steps, B3, example.operands, results, sizes, dict(one.reals))
    assert [each.wrong for each in outcomes if each.wrong] == []
    assert example.wrong(found) is None


def test_it_is_apart_where_that_pays_and_scratch_holds_it() -> None:
    def pays(**sizes: int) -> int:
        return latent_apart.pays(V3, B3).at({"batch": 1, "tokens": 1, "room": 0, "m": 1, **sizes})

    assert pays(m=64, seen=4096) == 1
    assert pays(m=1, seen=128) == 0
    assert pays(m=2048, seen=2048) == 1
    assert pays(m=2048, seen=2049) == 0


def test_scratch_is_a_number_for_each_key_and_head_and_nothing_where_it_is_not_apart() -> None:
    steps = space.steps(V3, space.space(V3, B3).default, B3)
    score = next(step for step in steps if step.function == "latent_apart:score")

    def chances(m: int, seen: int) -> int:
        sizes = {"m": m, "batch": m, "tokens": 1, "seen": seen, "room": seen}
        return score.scratch["s4"].at(sizes)

    assert chances(64, 4096) == 64 * 4096 * 128 * 2
    assert chances(1, 64) == 0


@pytest.mark.parametrize("one", [V3, TINY, decode(8, 512, 64), decode(16, 512, 64)], ids=str)
def test_the_default_is_the_largest_block_that_fits(one: Kernel) -> None:
    found = space.space(one, B3)
    assert found.objection_to(found.defaults) is None
    blocks: Any = found.choices["block"]
    larger = [block for block in blocks if block > int(found.default["block"])]
    for block in larger:
        assert "L1 has 524288" in str(found.objection({**found.default, "block": block}))


@needs_toolchain
def test_the_vendor_s_compiler_takes_what_the_rule_admits_and_changes_what_it_refuses() -> None:
    found = space.space(V3, B3)
    for block, changed in ((found.default["block"], False), (128, True)):
        step = next(iter(space.steps(V3, {**found.default, "block": block}, B3)))
        assert bool(vendor.planned(lowering.lowering()(step, B3), B3, step.compiler).notes) is changed


@needs_toolchain
def test_simulated_decoding_keeps_cubes_and_memory_busy_while_l2_helps() -> None:
    """Scores take what reading the cache takes; half of it is still in L2 for the sums. As V3 decodes,
    without the products around. Simulated, not measured.
    """
    found = timeline.sampled(LAYER, space.space(LAYER, B3).default, B3, Asked(1, 64, 4095))
    known = timeline.PUBLISHED
    timed = timeline.timed(found, B3, [known, replace(known, l2_bytes=0.0)])
    with_l2, without = (
        timeline.Simulated([step for step in each.steps if step.name.startswith("latent_apart:")])
        for each in timed
    )
    names = [step.name.removeprefix("latent_apart:") for step in with_l2.steps]
    assert names == ["score", "weigh", "mix", "add"]
    score, _, mix, _ = with_l2.steps
    assert score.bandwidth > 0.95
    assert with_l2.bandwidth > 0.85
    assert mix.bandwidth * mix.us < 0.65 * without.steps[2].bandwidth * without.steps[2].us
    assert with_l2.cube > 0.71
