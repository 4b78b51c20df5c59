"""Huawei's compiler as a judge: it takes every default schedule for every SoC, and refuses what is too large.

That it takes a kernel says that its memory is planned within the SoC's; nothing here says how fast it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from moec.targets.ascend import lowering, soc, space, vendor
from moec.targets.ascend.program import Step
from moec.targets.base import Kernel

from .ascend_models import MODELS, TINY, V2_LITE, V3, built_as, kernel, kernels

pytestmark = pytest.mark.usefixtures("ascend_toolchain", "home")

B3 = soc.SOCS[0]
WHOLLY = (B3, soc.named("910_9392"))  # a 910B and a 910C: memories are alike on all
CAPACITY = {"UB": soc.UB, "L1": soc.L1, "L0C": soc.L0C}
RMS = kernel("rms_norm n=24 width=46 start=0 f32")
STEP = space.steps(RMS, space.space(RMS, B3).default, B3)[0]


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
    tried = {built_as(one) for lines in (TINY, V2_LITE, V3) for one in kernels(lines)}
    assert tried == set(space.BUILDERS)
    assert set(space.SPACES) == set(space.BUILDERS)


@pytest.mark.parametrize("chip", soc.SOCS, ids=lambda chip: chip.name)
def test_tiny_kernels_are_taken(chip: soc.Soc, request: pytest.FixtureRequest) -> None:
    expect_taken(kernels(TINY), chip, request)


@pytest.mark.parametrize("model", [name for name in MODELS if name != "tiny"])
def test_kernels_of_real_sizes_are_taken(model: str, request: pytest.FixtureRequest) -> None:
    expect_taken(kernels(MODELS[model]), B3, request)
