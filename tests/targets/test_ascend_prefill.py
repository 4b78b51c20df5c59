"""Latent attention for Ascend, materialised: results, order, scratch, and which calls take it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from moec.targets.ascend import lowering, soc, space, timeline, vendor
from moec.targets.ascend.hivm import interpret
from moec.targets.ascend.hivm.calls import Asked
from moec.targets.ascend.program import Step, scratch_bytes
from moec.targets.ascend.programs import latent_prefill
from moec.targets.ascend.trial import run, sizes_of
from moec.targets.base import Kernel, Schedule
from moec.targets.cases_bf16 import Example, Sample
from moec.targets.sample import unwritten

from . import ascend
from .ascend_models import kernel

B3 = soc.SOCS[0]
needs_toolchain = pytest.mark.usefixtures("ascend_toolchain", "home")


def latent(heads: int, nope: int, rope: int, latent: int, value: int, pairs: int = 0) -> Kernel:
    """Queries are columns of something wider."""
    width = heads * (nope + rope)
    return kernel(
        f"latent_attention heads={heads} nope={nope} rope={rope} latent={latent} value={value} "
        f"pairs_in={pairs} pairs_out=1 width={width + 10} start=4 bf16+bf16"
    )


TINY, LITE, V3 = latent(4, 12, 8, 14, 10), latent(16, 128, 64, 512, 128), latent(128, 128, 64, 512, 128)
SMALL: Mapping[str, int] = {"p_rows": 64, "p_keys": 64, "p_blocks": 3, "p_edges": 1}


def always(one: Kernel, **knobs: int) -> Schedule:
    """Its default schedule, materialised however few tokens there are."""
    return {**space.space(one, B3).default, "most": 0, **knobs}


def launched(one: Kernel, schedule: Schedule, **sizes: int) -> list[str]:
    """The functions of a call."""
    given = {"batch": 1, "tokens": 1, "seen": 1, "room": 1, **sizes}
    steps = interpret.taken(space.steps(one, schedule, B3), {"m": given["batch"] * given["tokens"], **given})
    return [step.function for step in steps]


def interpreted(one: Kernel, schedule: Schedule, example: Example) -> tuple[Any, list[Step], Any]:
    """Results of a call as HIVM has them, its launches, and what came of each."""
    sizes, steps = sizes_of(one, example.operands), space.steps(one, schedule, B3)
    results = [unwritten(like.astype(dtype)) for like, dtype in zip(example.results, example.dtypes)]
    found, outcomes = interpret.run(steps, B3, example.operands, results, sizes, dict(one.reals))
    return found, list(interpret.taken(steps, sizes)), outcomes


@needs_toolchain
@pytest.mark.parametrize(
    ("one", "knobs"),
    [
        (TINY, {}),
        (latent(3, 32, 16, 40, 32, pairs=1), SMALL),
        (latent(2, 12, 6, 20, 16, pairs=2), {"p_rows": 256, "p_keys": 96, "p_edges": 1}),
    ],
    ids=str,
)
def test_every_call_is_right(one: Kernel, knobs: dict[str, int]) -> None:
    """Cached or not, padded, with a mask that is wider; of all but one kernel only the smaller calls."""
    few = 1000 if one is TINY else 140
    schedule = {1: always(one, **knobs)}
    assert ascend.wrong(one, schedule, only=lambda call: call["rows"] * call["batch"] <= few) == []


@needs_toolchain
def test_sizes_of_real_models_are_right() -> None:
    one = latent(2, 128, 64, 512, 128)
    schedule = {1: always(one, p_rows=256, p_keys=96, p_edges=1)}
    assert ascend.wrong(one, schedule, only=lambda call: call["rows"] in (5, 130)) == []


@needs_toolchain
@pytest.mark.parametrize("cached", [0, 62, 63, 64, 127, 128])
def test_blocks_that_are_full_and_one_key_more_or_less(cached: int) -> None:
    for rows in (1, 64, 65):
        example = Sample(TINY).example(rows=rows, batch=2, cached=cached)
        assert example.wrong(run(TINY, {1: always(TINY, **SMALL)}, B3, example)) is None


@needs_toolchain
def test_tiles_of_several_rounds_come_once_each() -> None:
    """48 tiles on 20 cores: to, fro, and eight that are left over."""
    example = Sample(TINY).example(rows=330, batch=2, cached=5)
    assert example.wrong(run(TINY, {1: always(TINY, **SMALL)}, B3, example)) is None


@needs_toolchain
def test_heads_come_in_rounds_where_scratch_holds_not_all(monkeypatch: pytest.MonkeyPatch) -> None:
    example = Sample(TINY).example(rows=70, batch=2, cached=77, padding=9)
    sizes, schedule = sizes_of(TINY, example.operands), always(TINY, **SMALL)
    whole = latent_prefill.of_a_head(schedule).at(sizes)
    for heads, rounds in ((1, 4), (3, 2), (4, 1)):
        monkeypatch.setattr(latent_prefill, "MOST", heads * whole)
        steps = list(interpret.taken(space.steps(TINY, schedule, B3), sizes))
        assert [step.function for step in steps].count("latent_prefill:mix") == rounds
        (expand,) = (step for step in steps if step.function == "latent_prefill:expand")
        assert expand.scratch["s2"].at(sizes) == 2 * heads * whole
        assert example.wrong(run(TINY, {1: schedule}, B3, example)) is None


def test_it_is_for_many_new_tokens_of_a_sequence_as_the_schedule_says() -> None:
    schedule = {**space.space(V3, B3).default, "most": 64}
    few = launched(V3, schedule, tokens=64, seen=64)
    many = launched(V3, schedule, tokens=65, seen=65)
    assert not any(name.startswith("latent_prefill") for name in few)
    assert {name.partition(":")[0] for name in many} == {"latent_prefill"}
    assert launched(V3, schedule, batch=128, seen=4096)[:2] == [
        "latent_project:absorb",
        "latent_project:turn",
    ]


def test_both_ways_share_the_eight_pieces_of_scratch_that_a_call_may_have() -> None:
    steps = space.steps(LITE, {**space.space(LITE, B3).default, "most": 64}, B3)
    for tokens, width in ((64, 512 + 64), (65, 128 + 64)):
        sizes = {"m": tokens, "batch": 1, "tokens": tokens, "seen": tokens, "room": tokens}
        found = scratch_bytes(steps, sizes)
        assert found["s0"] == tokens * 16 * width * 2
        assert set(found) <= {f"s{i}" for i in range(8)}


def test_without_scratch_it_is_absorbed(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = always(V3)
    assert "latent_prefill:mix" in launched(V3, schedule, tokens=4096, seen=4096)
    assert "latent_project:absorb" in launched(V3, schedule, tokens=8192, seen=8192)
    monkeypatch.setattr(latent_prefill, "MOST", 1)
    assert "latent_project:absorb" in launched(LITE, always(LITE), tokens=64, seen=64)


@needs_toolchain
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_shows_in_its_head_only(bad: float) -> None:
    example = Sample(TINY).example(rows=70, batch=2, cached=70)
    (clean,) = run(TINY, {1: always(TINY)}, B3, example)
    example.operands[0][1, 5, 4 + 2 * 20] = bad  # the third head of a token
    with np.errstate(invalid="ignore"):
        (found,) = run(TINY, {1: always(TINY)}, B3, example)
    assert not np.isfinite(found[1, 5, 20:30].astype(np.float32)).any()
    found[1, 5, 20:30] = clean[1, 5, 20:30]
    np.testing.assert_array_equal(found, clean)


@needs_toolchain
@pytest.mark.parametrize("edges", [0, 1])
def test_pipes_and_cores_are_ordered(edges: int) -> None:
    """What the vendor's compiler made overlap, interpreted at real capacities."""
    one = latent(2, 16, 16, 32, 16)
    example = Sample(one).example(rows=70, batch=1, cached=200)
    found, steps, outcomes = interpreted(one, always(one, **{**SMALL, "p_edges": edges}), example)
    scores = ["latent_prefill:score"] * (1 + edges)
    around = [f"latent_prefill:{name}" for name in ("prepare", "expand", "weigh", "mix")]
    assert [step.function for step in steps] == [*around[:2], *scores, *around[2:]]
    assert [each.wrong for each in outcomes if each.wrong] == []
    assert example.wrong(found) is None


@needs_toolchain
def test_what_the_rule_refuses_the_vendor_s_compiler_does() -> None:
    found = space.space(LITE, B3)
    schedule = {**found.default, "p_rows": 256, "p_keys": 128}
    assert "scores of 128 tokens and 128 keys" in str(latent_prefill.held(LITE)(schedule))
    step = next(s for s in space.steps(LITE, schedule, B3) if s.function == "latent_prefill:score")
    with pytest.raises(vendor.Rejected, match="ub overflow"):
        vendor.planned(lowering.lowering()(step, B3), B3, step.compiler)


@needs_toolchain
def test_a_long_prompt_keeps_the_cube_busy() -> None:
    """Simulated, not measured: 43 % of the time; absorbed it is 14 % of eight times as much."""
    found = timeline.seconds(LITE, space.space(LITE, B3).defaults[257], B3, Asked(4096))
    assert found.cube > 0.42
    assert found.us < 930
