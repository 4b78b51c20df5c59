"""Huawei's compiler as a judge: it takes every default schedule for every SoC, and refuses what is too large.

That it takes a kernel says that its memory is planned within the SoC's; nothing here says how fast it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from moec.targets.ascend import emit, lowering, soc, space, vendor
from moec.targets.ascend.bundle import from_bytes
from moec.targets.ascend.device import Device
from moec.targets.ascend.program import Step
from moec.targets.base import Kernel

from .ascend_models import MODELS, TINY, built_as, kernel, kernels

pytestmark = pytest.mark.usefixtures("ascend_toolchain", "home")

B3 = soc.SOCS[0]
WHOLLY = (B3, soc.named("910_9392"))  # a 910B and a 910C: memories are alike on all
CAPACITY = {"UB": soc.UB, "L1": soc.L1, "L0C": soc.L0C}
RMS = kernel("rms_norm n=24 width=46 start=0 f32")
STEP = space.steps(RMS, space.space(RMS, B3).default, B3)[0]
LINEAR = kernel("linear k=512 n=512 wide=0 bf16")
MLA = kernel("mla_decode heads=64 latent=512 rope=64 f32+bf16")
TIGHT = {"bm": 128, "bn": 256, "bk": 512}  # two tiles of both sides are more than L1, one is not


def scheduled(one: Kernel, **knobs: int) -> Mapping[str, int | str]:
    """Its default schedule with these knobs, which its space need not have."""
    return {**space.space(one, B3).default, **knobs}


def compiled(one: Kernel, schedule: Mapping[str, int | str], **options: int) -> vendor.Plan:
    """What the vendor's compiler makes of a schedule's first step. Raises Rejected."""
    step = space.steps(one, schedule, B3)[0]
    asked = {name.replace("_", "-"): value for name, value in options.items()}
    return vendor.planned(lowering.lowering()(step, B3), B3, asked)


def default_steps(one: Kernel, chip: soc.Soc) -> Iterator[Step]:
    """The different functions of a kernel's default schedules; on chips like others only of the first."""
    seen = []
    schedules = list(space.space(one, chip).defaults.values())
    for schedule in schedules if chip in WHOLLY else schedules[:1]:
        for step in space.steps(one, schedule, chip):
            if (shape := (step.function, step.constants, step.compiler)) not in seen:
                seen.append(shape)
                yield step


def plans(one: Kernel, chip: soc.Soc) -> Iterator[vendor.Plan]:
    """What the vendor's compiler makes of a kernel's default schedules."""
    for step in default_steps(one, chip):
        try:
            yield vendor.planned(lowering.lowering()(step, chip), chip, step.compiler)
        except vendor.Rejected as why:
            pytest.fail(f"{one} on {chip.name}, {step.function} with {dict(step.constants)}: {why}")


def expect_taken(every: Sequence[Kernel], chip: soc.Soc, report: pytest.FixtureRequest) -> None:
    """All are taken as they are, within the chip's memories. Writes down how full these are."""
    most: dict[str, tuple[int, str]] = {}
    for one in every:
        found = list(plans(one, chip))
        assert found
        for plan in found:
            assert plan.task in ("aiv", "aic", "mix")
            assert plan.used
            for memory, used in plan.used.items():
                assert 0 < used <= CAPACITY[memory], f"{one} on {chip.name}: {used} bytes of {memory}"
                most[memory] = max(most.get(memory, (0, "")), (used, str(one)))
            assert not plan.notes, f"{one} on {chip.name} became another schedule: {plan.notes}"
    for memory, (used, name) in sorted(most.items()):
        report.node.user_properties.append((f"{memory}_bytes", f"{used} of {CAPACITY[memory]} by {name}"))


def test_every_kind_is_tried() -> None:
    tried = {built_as(one) for lines in MODELS.values() for one in kernels(lines)}
    assert tried == set(space.BUILDERS)
    assert set(space.SPACES) == set(space.BUILDERS)


def test_a_kernel_without_a_builder_is_not_left_out() -> None:
    with pytest.raises(ValueError, match="the ascend target has no 'convolution' kernel"):
        kernels("linear k=32 n=102 wide=0 bf16\nconvolution k=3 bf16")


@pytest.mark.parametrize("chip", soc.SOCS, ids=lambda chip: chip.name)
def test_tiny_kernels_are_taken(chip: soc.Soc, request: pytest.FixtureRequest) -> None:
    """All on two chips; the others, whose memories are as large, share them among themselves."""
    others = [each for each in soc.SOCS if each not in WHOLLY]
    every = kernels(TINY)
    expect_taken(every if chip in WHOLLY else every[others.index(chip) :: len(others)], chip, request)


REAL = [(name, B3) for name in MODELS if name != "tiny"] + [(name, WHOLLY[1]) for name in ("v2_lite", "v3")]


@pytest.mark.parametrize(("model", "chip"), REAL, ids=lambda each: getattr(each, "name", each))
def test_kernels_of_real_sizes_are_taken(model: str, chip: soc.Soc, request: pytest.FixtureRequest) -> None:
    expect_taken(kernels(MODELS[model]), chip, request)


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
