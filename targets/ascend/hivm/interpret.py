"""A kernel's steps on memory of the device: each step's function compiled by the vendor, then run here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np

from ....compiler.ir import Array
from .. import vendor
from ..lowering import Linalg, lowering
from ..program import Number, Step, scratch_bytes
from ..simulate import value_of
from ..soc import Soc
from . import blocks
from .blocks import Outcome, Program
from .memory import Hollow, Memory
from .view import View

TYPES: Mapping[str, str] = {"fp32": "f32", "fp16": "f16"}  # Triton's words for them are MLIR's but for these
REAL_BYTES = 1 << 24  # scratch up to this has contents even where only times are asked for
Ports = Mapping[str, Memory]


def run(
    steps: Sequence[Step],
    soc: Soc,
    operands: Sequence[Array],
    results: Sequence[Array],
    sizes: Mapping[str, int],
    reals: Mapping[str, float],
    in_place: Mapping[int, int] = {},
) -> tuple[list[Array], list[Outcome]]:
    """The results of a kernel's steps and what came of each. Arguments are those of simulate.run.

    Raises Rejected, CannotBuild, or Unreadable with the op that is not known.
    """
    ports = placed(steps, operands, results, sizes, in_place)
    outcomes = [launch(step, soc, ports, sizes, reals) for step in taken(steps, sizes)]
    return made(ports, results), outcomes


def made(ports: Ports, results: Sequence[Array]) -> list[Array]:
    """What results hold, in the shapes and types of these."""
    found = (contents(ports[f"y{i}"]) for i in range(len(results)))
    return [each.view(like.dtype).reshape(like.shape) for each, like in zip(found, results)]


def taken(steps: Sequence[Step], sizes: Mapping[str, int]) -> Iterator[Step]:
    """The steps that are launched."""
    for step in steps:
        if (step.when is None or step.when.at(sizes)) and all(axis.at(sizes) for axis in step.grid):
            yield step


def placed(
    steps: Sequence[Step],
    operands: Sequence[Array | Hollow],
    results: Sequence[Array | Hollow],
    sizes: Mapping[str, int],
    in_place: Mapping[int, int],
    whole: bool = True,
) -> dict[str, Memory]:
    """Memory of every port, copied. whole: whether scratch has contents however large it is."""
    ports = {f"x{i}": memory(f"x{i}", each) for i, each in enumerate(operands)}
    for i, each in enumerate(results):
        ports[f"y{i}"] = ports[f"x{in_place[i]}"] if i in in_place else memory(f"y{i}", each)
    for port, size in scratch_bytes(steps, sizes).items():
        kept = whole or size <= REAL_BYTES
        data = np.full(size, 0xFF if whole else 0, np.uint8) if kept else None
        ports[port] = Memory(port, "gm", data, size)
    return ports


def memory(name: str, value: Array | Hollow) -> Memory:
    """Memory of the device with an array's contents, or with none; whole numbers always have some."""
    if isinstance(value, Hollow) and not value.type.startswith("i64"):
        return Memory(name, "gm", None, value.nbytes)
    if isinstance(value, Hollow):
        return Memory(name, "gm", np.zeros(value.nbytes, np.uint8))
    return Memory(name, "gm", np.ascontiguousarray(value).reshape(-1).view(np.uint8).copy())


def contents(found: Memory) -> Array:
    """Raises ValueError where it has none."""
    if found.data is None:
        raise ValueError(f"{found.name} has a size and no contents")
    return found.data


def launch(
    step: Step,
    soc: Soc,
    ports: Ports,
    sizes: Mapping[str, int],
    reals: Mapping[str, float],
    instead: str | None = None,
) -> Outcome:
    """All blocks of one step. instead: HIVM to run instead of its own, for trying faults."""
    ready = blocks.program(instead, lowering()(step, soc).name) if instead else program(step, soc)
    grid = [axis.at(sizes) for axis in step.grid]
    return blocks.run(ready, grid, arguments(step, ports, sizes, reals))


def arguments(
    step: Step, ports: Ports, sizes: Mapping[str, int], reals: Mapping[str, float]
) -> list[blocks.Argument]:
    """What a step's function gets."""
    return [
        value_of(each, sizes, reals)
        if isinstance(each, Number)
        else View.whole(ports[each.port], TYPES.get(each.type, each.type))
        for each in step.arguments.values()
    ]


@lru_cache(maxsize=64)
def _program(linalg: Linalg, soc: Soc, options: tuple[tuple[str, int], ...]) -> Program:
    return blocks.program(vendor.synchronised(linalg, soc, dict(options)), linalg.name)


def program(step: Step, soc: Soc) -> Program:
    """A step's function, ready to run; kept for the next time."""
    return _program(lowering()(step, soc), soc, tuple(sorted(step.compiler.items())))
