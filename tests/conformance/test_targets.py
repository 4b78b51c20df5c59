"""What every target must hold, whichever it is; a new target adds itself to TARGETS."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from layers import apart, decoder

from moec.compiler.ops.region import REGION
from moec.compiler.pipeline import run
from moec.targets.base import BUCKETS, Kernel, Schedule, Schedules
from moec.targets.cpu import isa
from moec.targets.cpu.device import Device
from moec.targets.cpu.target import Target

TARGETS = [Target(level) for level in isa.ISAS]
RUNNABLE = [target for target in TARGETS if isa.supports(target.isa)]
SAMPLED = 2


def kernels(target: Any) -> list[Kernel]:
    """One kernel of each kind that layers ask for."""
    layers = (decoder(latent=True), decoder(latent=False), apart())
    graphs = [run(graph, target.passes)[0] for graph in layers]
    found = {target.kernel_of(node) for graph in graphs for node in graph if node.op is REGION}
    by_kind = {kernel.kind: kernel for kernel in sorted(found, key=str)}
    return [by_kind[kind] for kind in sorted(by_kind)]


KERNELS = kernels(TARGETS[0])


def admitted(target: Any, kernel: Kernel) -> Iterator[Schedule]:
    """Schedules drawn from the space, as far as its rules let them pass; the same at every run."""
    space = target.space(kernel)
    source = random.Random(str(kernel))
    for _ in range(1000):
        schedule = {knob: source.choice(list(values)) for knob, values in space.choices.items()}
        if space.objection(schedule) is None:
            yield schedule


def sample(target: Any, kernel: Kernel) -> list[Schedules]:
    """The default and a few others, alone and, where they lay out weights alike, side by side."""
    space = target.space(kernel)
    if not space.choices:
        return [space.defaults]
    some = [{1: schedule} for schedule, _ in zip(admitted(target, kernel), range(SAMPLED))]
    return [space.defaults, *some, mixed(target, kernel)]


def mixed(target: Any, kernel: Kernel) -> Schedules:
    """A schedule for each bucket of tokens."""
    space = target.space(kernel)
    alike = (
        one for one in admitted(target, kernel) if space.layout_of(one) == space.layout_of(space.default)
    )
    return dict(zip(BUCKETS, alike))


@pytest.fixture(params=TARGETS, ids=lambda target: str(target.isa))
def target(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.kind)
def test_defaults_and_known_points_may_run(target: Any, kernel: Kernel) -> None:
    space = target.space(kernel)
    assert space.objection_to(space.defaults) is None
    for schedule in (*space.defaults.values(), *space.known):
        assert {knob: schedule[knob] for knob in space.choices}.keys() == space.choices.keys()
        assert space.objection(schedule) is None


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.kind)
def test_what_is_outside_the_space_is_named(target: Any, kernel: Kernel) -> None:
    space = target.space(kernel)
    for knob in space.choices:
        assert knob in (space.objection({**space.default, knob: -1}) or "")


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.kind)
def test_a_schedule_is_always_the_same_code(target: Any, kernel: Kernel) -> None:
    first, second = (target.emit(kernel, target.space(kernel).defaults) for _ in range(2))
    assert first.kernel == kernel
    assert first.object_code == second.object_code
    assert all(len(set(symbols)) == len(symbols) for symbols in first.symbols)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.kind)
@pytest.mark.parametrize("target", RUNNABLE, ids=lambda target: str(target.isa))
def test_admitted_schedules_equal_the_reference(target: Target, kernel: Kernel) -> None:
    device = Device(str(target.isa), 2)
    for schedules in sample(target, kernel):
        assert device.bench(kernel, schedules).check() is None


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.kind)
def test_only_knobs_that_are_named_lay_out_weights(target: Any, kernel: Kernel) -> None:
    first, *others = (target.layout_of(kernel, each) for each in mixed(target, kernel).values())
    assert all(layout == first for layout in others)


def test_the_source_of_a_tile(golden: Callable[[str], None]) -> None:
    from moec.targets.cpu.kernels import matmul

    golden(str(matmul.tile("tile", 2, 8, 8, unroll=2, lanes=8)))
