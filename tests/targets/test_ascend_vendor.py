"""Huawei's compiler as a judge: it takes every default schedule for every SoC, and refuses what is too large.

That it takes a kernel says that its memory is planned within the SoC's; nothing here says how fast it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from moec.targets.ascend import emit, lowering, soc, space, vendor
from moec.targets.ascend.bundle import from_bytes
from moec.targets.ascend.device import Device
from moec.targets.base import Kernel

from .ascend_models import MODELS, TINY, built_as, kernel, kernels
from .ascend_socs import CAPACITY, defaults, in_f16, wrong

pytestmark = pytest.mark.usefixtures("ascend_toolchain", "home")

B3 = soc.SOCS[0]
RMS = kernel("rms_norm n=24 width=46 start=0 f32")
LINEAR = kernel("linear k=512 n=512 wide=0 bf16")
ATTENTION = kernel("attention heads=4 groups=2 dk=10 dv=10 f32+bf16")
MLA = kernel("mla_decode heads=64 latent=512 rope=64 f32+bf16")
TIGHT = {"bm": 128, "bn": 256, "bk": 512}  # two tiles of both sides are more than L1, one is not


def scheduled(one: Kernel, **knobs: int) -> Mapping[str, int | str]:
    """Its default schedule with these knobs, which its space need not have."""
    return {**space.space(one, B3).default, **knobs}


def compiled(one: Kernel, schedule: Mapping[str, int | str], **options: int) -> vendor.Plan:
    """What the vendor's compiler makes of a schedule's first step. Raises Rejected."""
    step = space.steps(one, schedule, B3)[0]
    asked = {name.replace("_", "-"): value for name, value in options.items()}
    return vendor.planned(lowering.lowering()(step, B3), B3, {**step.compiler, **asked})


def expect_taken(every: Sequence[Kernel], report: pytest.FixtureRequest) -> None:
    """All are taken as they are, within the chip's memories, for whichever chip it is a default. Writes down
    how full these are.
    """
    most: dict[str, tuple[int, str]] = {}
    assert [why for each in defaults(every, soc.SOCS) if (why := wrong(each, most))] == []
    assert set(most) == set(CAPACITY)
    for memory, (used, name) in sorted(most.items()):
        report.node.user_properties.append((f"{memory}_bytes", f"{used} of {CAPACITY[memory]} by {name}"))


def test_every_kind_is_tried() -> None:
    tried = {built_as(one) for lines in MODELS.values() for one in kernels(lines)}
    assert tried == set(space.BUILDERS)
    assert set(space.SPACES) == set(space.BUILDERS)


def test_a_kernel_without_a_builder_is_not_left_out() -> None:
    with pytest.raises(ValueError, match="the ascend target has no 'convolution' kernel"):
        kernels("linear k=32 n=102 wide=0 bf16\nconvolution k=3 bf16")


@pytest.mark.parametrize("model", MODELS)
def test_every_default_for_every_chip_is_taken(model: str, request: pytest.FixtureRequest) -> None:
    expect_taken(kernels(MODELS[model]), request)


def test_every_default_in_f16_is_taken(request: pytest.FixtureRequest) -> None:
    expect_taken(in_f16(kernels(TINY)), request)


@pytest.mark.parametrize("one", [RMS, LINEAR, ATTENTION], ids=lambda one: one.kind)
def test_plans_are_alike_for_all_chips(one: Kernel) -> None:
    """So a function that is taken for one is taken for all."""
    linalg = lowering.lowering()(space.steps(one, space.space(one, B3).default, B3)[0], B3)
    plans = [vendor.planned(linalg, chip) for chip in soc.SOCS]
    assert len({plan.command for plan in plans}) == len(soc.SOCS)
    assert all(replace(plan, hivm="", command=()) == replace(plans[0], hivm="", command=()) for plan in plans)
    # Code says how many cores there are. With a workspace, two calls may also number what is alike otherwise.
    if not plans[0].workspace:
        texts = {chip.cubes: plan.hivm for chip, plan in zip(soc.SOCS, plans)}
        assert {plan.hivm for plan in plans} == set(texts.values())
        few, many = (text.splitlines() for text in texts.values())
        changed = [line for both in zip(few, many, strict=True) for line in both if both[0] != both[1]]
        assert len(changed) == 2
        assert all("AI_CORE_COUNT" in line for line in changed)


def test_what_is_too_large_is_refused_in_the_vendors_words(tmp_path: Path) -> None:
    schedule = scheduled(LINEAR, bm=256, bn=256, bk=64)
    words = "cc overflow, requires 2097152 bits while 1048576 bits"
    with pytest.raises(vendor.Rejected, match=words):
        compiled(LINEAR, schedule)
    with pytest.raises(vendor.Rejected, match=words):
        emit.emit(LINEAR, {1: schedule}, B3)
    with pytest.raises(ValueError, match=words):
        Device(B3.name).build(LINEAR, {1: schedule}, tmp_path)


def test_64_heads_at_once_are_more_than_the_vector_cores_hold() -> None:
    every = space.steps(MLA, space.space(MLA, B3).default, B3)
    (step,) = {each.function: each for each in every if each.function == "latent:attend"}.values()
    large = replace(step, constants={**step.constants, "ROWS": 64})
    words = r"ub overflow, requires \d+ bits while 1572864 bits available"
    with pytest.raises(vendor.Rejected, match=words):
        vendor.planned(lowering.lowering()(large, B3), B3, {})


def test_double_buffers_that_were_dropped_make_another_schedule(tmp_path: Path) -> None:
    plan, fits = (compiled(LINEAR, scheduled(LINEAR, **{**TIGHT, "bk": bk})) for bk in (512, 64))
    assert (fits.notes, fits.became) == ((), {})
    assert "automatically set enable-auto-multi-buffer to false" in " ".join(plan.notes)
    assert plan.became == {"enable-code-motion": 0, "enable-auto-multi-buffer": 0}
    asked = compiled(LINEAR, scheduled(LINEAR, **TIGHT), enable_code_motion=0, enable_auto_multi_buffer=0)
    assert not asked.notes
    assert asked.hivm == plan.hivm
    chosen = compiled(LINEAR, scheduled(LINEAR, **TIGHT, buffers=1))
    assert not chosen.notes
    assert chosen.used["L1"] == plan.used["L1"]
    with pytest.raises(ValueError, match=r"but with .*enable-auto-multi-buffer=false: \[NOTE\] "):
        Device(B3.name).build(LINEAR, {1: scheduled(LINEAR, **TIGHT)}, tmp_path)


def test_code_of_dropped_double_buffers_is_named_and_told_as_what_it_is() -> None:
    schedule = scheduled(LINEAR, **TIGHT)
    (image,) = from_bytes(emit.emit(LINEAR, {1: schedule}, B3).object_code).images
    (step,) = space.steps(LINEAR, schedule, B3)
    assert image.entry != lowering.lowering()(step, B3).name
    assert f"@{image.entry}(" in image.linalg.decode()
    assert "--enable-auto-multi-buffer=false" in image.options
    assert "--enable-auto-multi-buffer=true" not in image.options
    assert image.notes == ()
