"""Kernels run block by block on this machine's CPU, from what the vendor's compiler is given.

Arrays of the device lie against pages that nobody may touch, so that reading or writing past one is a fault:
run what is not trusted in a process of its own.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...compiler.ir import Array
from .. import native
from .cache import kept
from .host import CPU, PASSES, object_code
from .lowering import Linalg, lowering
from .program import Number, Pointer, Step, scratch_bytes
from .soc import Soc

ON_CHIP = Path(__file__).parent / "runtime" / "on_chip.cc"
PAGE = mmap.PAGESIZE
C_TYPES: Mapping[str, Any] = {"i32": ctypes.c_int32, "fp32": ctypes.c_float}


class Guarded:
    """An array's bytes with a page behind them (or before, where asked) that nobody may touch."""

    def __init__(self, array: Array, before: bool = False) -> None:
        pages = -(-max(array.nbytes, 1) // PAGE)
        self._map = mmap.mmap(-1, (pages + 2) * PAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (base, base + (pages + 1) * PAGE):
            if libc.mprotect(ctypes.c_void_p(guard), PAGE, 0):
                raise OSError(ctypes.get_errno(), "a page cannot be guarded")
        offset = PAGE if before else (pages + 1) * PAGE - array.nbytes
        flat = np.frombuffer(self._map, np.uint8, array.nbytes, offset)
        self.array: Array = flat.view(array.dtype).reshape(array.shape)
        self.array[...] = array
        self.address = base + offset


def run(
    steps: Sequence[Step],
    soc: Soc,
    operands: Sequence[Array],
    results: Sequence[Array],
    sizes: Mapping[str, int],
    reals: Mapping[str, float],
    in_place: Mapping[int, int] = {},
    before: bool = False,
) -> list[Array]:
    """The results of a kernel's steps. results: what they hold before; in_place: by result, the operand
    whose memory it is; before: guard what lies in front of arrays, not what is behind them.
    """
    ports = {f"x{i}": Guarded(each, before) for i, each in enumerate(operands)}
    for i, each in enumerate(results):
        ports[f"y{i}"] = ports[f"x{in_place[i]}"] if i in in_place else Guarded(each, before)
    needed = scratch_bytes(steps, sizes)
    ports |= {port: Guarded(np.full(bytes_, 0xFF, np.uint8), before) for port, bytes_ in needed.items()}
    for step in steps:
        if step.when is None or step.when.at(sizes):
            launch(step, soc, ports, sizes, reals)
    return [ports[f"y{i}"].array.copy() for i in range(len(results))]


def launch(
    step: Step, soc: Soc, ports: Mapping[str, Guarded], sizes: Mapping[str, int], reals: Mapping[str, float]
) -> None:
    """All blocks of one step, in order."""
    linalg = lowering()(step, soc)
    library = built(linalg)
    given: list[Any] = memref(0, 0) + memref(0, 0)
    for argument in step.arguments.values():
        if isinstance(argument, Pointer):
            port = ports[argument.port]
            given += memref(port.address, port.array.size)
        else:
            given.append(C_TYPES[argument.type](value_of(argument, sizes, reals)))
    grid = [axis.at(sizes) for axis in step.grid]
    block: Callable[..., None] = library[linalg.name]
    block.restype = None  # type: ignore[attr-defined]
    for z, y, x in itertools.product(*(range(axis) for axis in reversed(grid))):
        block(*given, *map(ctypes.c_int32, (*grid, x, y, z)))
        library.moec_block_done()


def value_of(number: Number, sizes: Mapping[str, int], reals: Mapping[str, float]) -> float:
    """What a number is in this call."""
    return reals[number.value] if isinstance(number.value, str) else number.value.at(sizes)


def memref(address: int, elements: int) -> list[Any]:
    """Memory of one axis as MLIR's functions take it."""
    pointer, count = ctypes.c_void_p(address), ctypes.c_int64(elements)
    return [pointer, pointer, ctypes.c_int64(0), count, ctypes.c_int64(1)]


_LIBRARIES: dict[str, ctypes.CDLL] = {}


def built(linalg: Linalg) -> ctypes.CDLL:
    """The function for this CPU, loaded; once for a process."""
    if linalg.name not in _LIBRARIES:
        compiler = native.find_compiler()
        (on_chip,) = native.runtime_objects(compiler, [ON_CHIP])
        shared = kept("library", (linalg.text, PASSES, CPU, on_chip.name), lambda: linked(linalg, on_chip))
        with tempfile.NamedTemporaryFile(prefix="moec-", suffix=".so") as file:
            file.write(shared)
            file.flush()
            _LIBRARIES[linalg.name] = ctypes.CDLL(file.name)
    return _LIBRARIES[linalg.name]


def linked(linalg: Linalg, on_chip: Path) -> bytes:
    """A shared library of the function and what it calls."""
    with tempfile.TemporaryDirectory(prefix="moec-") as name:
        folder = Path(name)
        (folder / "kernel.o").write_bytes(object_code(linalg))
        options = ("-shared", "kernel.o", on_chip, "-lm", "-o", "kernel.so")
        native.run(native.find_compiler(), *options, folder=folder)
        return (folder / "kernel.so").read_bytes()
