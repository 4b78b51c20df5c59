"""What kernel tests share: which instruction sets run here, and kernels built once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from moec.targets.base import Kernel
from moec.targets.cpu import isa
from moec.targets.cpu.device import Bench, Device
from moec.targets.cpu.space import space

HERE = [level for level in isa.ISAS if isa.supports(level)]
# One of each width: kernels that multiply floats are the same whatever sums products of bytes.
WIDTHS = [*{level.lanes: level for level in HERE}.values()]
Build = Callable[..., Bench]


@pytest.fixture(params=WIDTHS, ids=str)
def level(request: pytest.FixtureRequest) -> isa.Isa:
    """Each width of instruction sets that this machine runs."""
    level: isa.Isa = request.param
    return level


@cache
def built(kernel: Kernel, level: isa.Isa, threads: int = 2, **knobs: int) -> Bench:
    """The kernel with its default schedules but for these knobs."""
    defaults = space(kernel, level).defaults
    return Device(level.name, threads).bench(
        kernel, {first: {**schedule, **knobs} for first, schedule in defaults.items()}
    )


@pytest.fixture
def build() -> Build:
    """From a kernel, an instruction set, threads and knobs unlike the default: the kernel, loaded."""
    return built
