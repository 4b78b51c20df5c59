"""What every target must hold, whichever it is; a new target adds itself to PAIRS."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from layers import apart, decoder

from moec.compiler.ops.region import REGION
from moec.compiler.pipeline import run
from moec.passes.caches import NarrowCaches
from moec.passes.precision import Precision
from moec.targets.ascend import device as ascend
from moec.targets.ascend import soc
from moec.targets.ascend.bundle import from_bytes
from moec.targets.ascend.target import Target as AscendTarget
from moec.targets.base import BUCKETS, Emitted, Kernel, Schedule, Schedules
from moec.targets.cpu import isa
from moec.targets.cpu.device import Device
from moec.targets.cpu.target import Target

from ..targets.ascend import wrong

# One instruction set of each width: these kernels multiply floats, whatever sums products of bytes.
CPUS = [Target(level) for level in {level.lanes: level for level in isa.ISAS}.values()]
RUNNABLE = [target for target in CPUS if isa.supports(target.isa)]
ASCEND = AscendTarget(soc.SOCS[0])
SAMPLED = 1

pytestmark = pytest.mark.usefixtures("home")


def kernels(target: Any) -> list[Kernel]:
    """One kernel of each kind that layers ask for, as a model's are without any wishes."""
    policy = target.policies["none"]
    narrow = [NarrowCaches()] if target.caches[0] == "bf16" else []
    rounding = [Precision(policy, target.formats, target.widest)] if policy else []
    layers = (decoder(latent=True), decoder(latent=False), apart())
    graphs = [run(graph, (*narrow, *target.passes, *rounding))[0] for graph in layers]
    found = {target.kernel_of(node) for graph in graphs for node in graph if node.op is REGION}
    by_kind = {kernel.kind: kernel for kernel in sorted(found, key=str)}
    return [by_kind[kind] for kind in sorted(by_kind)]


KERNELS = kernels(CPUS[0])
ASCEND_KERNELS = kernels(ASCEND)
# Each target with each of its kernels.
PAIRS = [
    pytest.param(target, kernel, id=f"{target.capabilities.name}-{kernel.kind}")
    for target, every in [*((cpu, KERNELS) for cpu in CPUS), (ASCEND, ASCEND_KERNELS)]
    for kernel in every
]


def admitted(target: Any, kernel: Kernel) -> Iterator[Schedule]:
    """Schedules drawn from the space, as far as its rules let them pass; the same at every run."""
    space = target.space(kernel)
    source = random.Random(str(kernel))
    for _ in range(1000):
        schedule = {knob: source.choice(list(values)) for knob, values in space.choices.items()}
        if space.objection(schedule) is None:
            yield schedule


def sample(target: Any, kernel: Kernel) -> list[Schedules]:
    """The default and another, alone and, where they lay out weights alike, others side by side."""
    space = target.space(kernel)
    if not space.choices:
        return [space.defaults]
    some = [{1: schedule} for schedule, _ in zip(admitted(target, kernel), range(SAMPLED))]
    return [space.defaults, *some, mixed(target, kernel)]


def mixed(target: Any, kernel: Kernel) -> Schedules:
    """A schedule for each bucket of tokens, or for each other where a schedule takes long to compile."""
    space = target.space(kernel)
    alike = (
        one for one in admitted(target, kernel) if space.layout_of(one) == space.layout_of(space.default)
    )
    return dict(zip(BUCKETS[:: 2 if target is ASCEND else 1], alike))


def ours(target: Any, emitted: Emitted) -> Any:
    """Of the code, all that is the same each time. Of two views of one memory, Huawei's compiler takes now
    one first, now the other.
    """
    if target is not ASCEND:
        return emitted.object_code
    found = from_bytes(emitted.object_code)
    return found.launches, [replace(image, hivm=b"") for image in found.images]


@pytest.mark.parametrize(("target", "kernel"), PAIRS)
def test_defaults_and_known_points_may_run(target: Any, kernel: Kernel) -> None:
    space = target.space(kernel)
    assert space.objection_to(space.defaults) is None
    for schedule in (*space.defaults.values(), *space.known):
        assert {knob: schedule[knob] for knob in space.choices}.keys() == space.choices.keys()
        assert space.objection(schedule) is None


@pytest.mark.parametrize(("target", "kernel"), PAIRS)
def test_what_is_outside_the_space_is_named(target: Any, kernel: Kernel) -> None:
    space = target.space(kernel)
    for knob in space.choices:
        assert knob in (space.objection({**space.default, knob: -1}) or "")


@pytest.mark.parametrize(("target", "kernel"), PAIRS)
def test_a_schedule_is_always_the_same_code(
    target: Any, kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = target.emit(kernel, target.space(kernel).defaults)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # nothing that was made before is there
    second = target.emit(kernel, target.space(kernel).defaults)
    assert first.kernel == kernel
    assert ours(target, first) == ours(target, second)
    assert all(len(set(symbols)) == len(symbols) for symbols in first.symbols)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.kind)
@pytest.mark.parametrize("target", RUNNABLE, ids=lambda target: str(target.isa))
def test_admitted_schedules_equal_the_reference(target: Target, kernel: Kernel) -> None:
    device = Device(str(target.isa), 2)
    for schedules in sample(target, kernel):
        assert device.bench(kernel, schedules).check() is None


@pytest.mark.parametrize("kernel", ASCEND_KERNELS, ids=lambda kernel: kernel.kind)
def test_admitted_schedules_fit_the_vendors_compiler_and_equal_the_reference(
    kernel: Kernel, tmp_path: Path
) -> None:
    for schedules in sample(ASCEND, kernel):
        ascend.Device(ASCEND.soc.name).build(kernel, schedules, tmp_path)
        assert wrong(kernel, schedules) == []


@pytest.mark.parametrize(("target", "kernel"), PAIRS)
def test_only_knobs_that_are_named_lay_out_weights(target: Any, kernel: Kernel) -> None:
    first, *others = (target.layout_of(kernel, each) for each in mixed(target, kernel).values())
    assert all(layout == first for layout in others)


def test_the_source_of_a_tile(golden: Callable[[str], None]) -> None:
    from moec.targets.cpu.kernels import matmul

    golden(str(matmul.tile("tile", 2, 8, 8, isa.V3, unroll=2, ahead=4)))


@pytest.mark.parametrize(("block", "lines", "streams"), [(1, 1, 1), (5, 4, 4), (44, 4, 2), (7, 3, 3)])
def test_a_tile_asks_for_each_line_once_in_streams(block: int, lines: int, streams: int) -> None:
    from moec.targets.cpu.kernels.matmul import asked

    turns = [[asked(turn, line, block, lines, streams) for line in range(lines)] for turn in range(block)]
    assert sorted(line for turn in turns for line in turn) == list(range(block * lines))
    assert [turns[0][stream] for stream in range(streams)] == [
        stream * block * lines // streams for stream in range(streams)
    ]
