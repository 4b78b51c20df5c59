"""This machine's GPU as a device: kernels checked and timed one at a time, without onnxruntime.

Libraries are built here where TileLang and nvcc are, or were built on another machine before (`ahead`): one
library for each schedule of a kernel then, so that any of them can serve calls side by side.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...compiler.ir import Array
from .. import sample
from ..base import BUCKETS, Kernel, Schedule, Schedules, serving
from ..cases import Draw, Random
from ..routing import zipf
from ..sample import ROWS_TO_CHECK, draws, unwritten
from . import cases
from .buffers import MARGIN, Buffer, library, placed
from .calls import Call, Calls, calls_of, settings
from .cases import Example
from .driver import Driver, driver
from .sm import named
from .table import op_name

LIBRARY = "kernel.so"
MOST_BYTES = 4 << 30  # of one weight: fewer experts are tried than a model has, where all would be more
TILED = (130, 300)  # rows to check besides: some tiles and a part of one
IDLE_S, SPIN_S = 0.05, 0.02  # after a pause the clocks are low: that much work before the next timing


@dataclass(frozen=True, slots=True)
class Device:
    """The first GPU, running kernels compiled for sm (its name).

    cold: whether weights are in no cache when a call begins, as in a large model. trace: a file of a recorded
    routing (see routing.py), for the kernels that it suits. ahead: a folder of libraries built elsewhere;
    then nothing is built here. margin: bytes around arrays that nobody may touch, 0 where a memory checker
    watches.
    """

    sm: str
    cold: bool = True
    trace: str = ""
    ahead: str = ""
    margin: int = MARGIN

    def build(self, kernel: Kernel, schedules: Schedules, folder: Path) -> None:
        """Makes the library of one kernel there. Raises CannotBuild, or LookupError: not built ahead."""
        kernel = affordable(kernel)
        if self.ahead:
            for first, schedule in schedules.items():
                made = Path(self.ahead).absolute() / file_name(kernel, schedule)
                if not made.exists():
                    raise LookupError(f"{made.name} was not built ahead for {dict(schedule)}")
                (folder / f"{first}.so").symlink_to(made)
            return
        from .build import link
        from .emit import emit  # TileLang takes seconds to import, and only building needs it

        sm = named(self.sm)
        link([emit(kernel, schedules, sm)], folder / LIBRARY, sm)

    def bench(self, kernel: Kernel, schedules: Schedules, built: Path | None = None) -> Bench:
        """The kernel loaded; fewer experts if they take too much memory. built: where it was built before.

        Raises CannotBuild, and CudaError where there is no GPU.
        """
        kernel, scratch = affordable(kernel), None
        if built is None:
            scratch = tempfile.TemporaryDirectory(prefix="moec-")
            built = Path(scratch.name)
            self.build(kernel, schedules, built)
        whole = built / LIBRARY
        libraries = {first: whole if whole.exists() else built / f"{first}.so" for first in schedules}
        bench = Bench(self, driver(), kernel, schedules, libraries)
        bench.scratch = scratch
        return bench


Checked = tuple[str, str | None, float]  # a call's name, what is wrong or None, the largest error


class Bench:
    """Libraries of one kernel, by the tokens from which each serves: to be run, compared and timed."""

    def __init__(
        self,
        device: Device,
        gpu: Driver,
        kernel: Kernel,
        schedules: Schedules,
        libraries: Mapping[int, Path],
    ) -> None:
        self.device, self.gpu, self.kernel, self.schedules = device, gpu, kernel, schedules
        self.calls: Calls = calls_of(gpu, kernel, named(device.sm).l2_bytes, device.margin)
        self.sample = self.calls.sample
        self.draws: Mapping[str, Draw] = draws(kernel, self.sample.case, device.trace)
        self.settings = settings(kernel, self.draws)
        self.points = list(self.settings)
        self.libraries = {first: library(path.resolve()) for first, path in libraries.items()}
        self.stream, self.events = gpu.stream(), (gpu.event(), gpu.event())
        self.scratch: Any = None  # a temporary folder that goes with the bench
        self._graphs: dict[str, tuple[int, int]] = {}
        self._timed = 0.0

    def __del__(self) -> None:
        for graph, _ in getattr(self, "_graphs", {}).values():
            self.gpu.drop(graph)

    def check(self) -> str | None:
        """Why the outputs of some calls are not the reference's, or None."""
        return next((f"with {name}, {why}" for name, why, _ in self.checks() if why), None)

    def checks(self, told: Callable[[str], None] = lambda name: None) -> Iterator[Checked]:
        """What came of each call that is checked; told: called with its name before it is."""
        for name, options in checked(self.kernel, self.schedules).items():
            told(name)
            if name not in self.calls.examples:
                self.calls.examples[name] = self.sample.example(**options)
            example = self.calls.examples[name]
            results, spoiled = self.run(example)
            wrong = example.wrong(results)
            why = f"{wrong}; {where(example, results)}" if wrong else spoiled
            yield name, why, max(example.errors(results), default=0.0)

    def run(self, example: Example) -> tuple[list[Array], str | None]:
        """Results of a call, NaN or the lowest integer if unwritten, and where else it wrote, or None."""
        weights = {id(self.sample.weights[i]): self.calls.weights[i] for i in self.calls.weights}
        margin = self.device.margin
        operands = [weights.get(id(x)) or placed(self.gpu, x, margin) for x in example.operands]
        results = [
            operands[example.in_place[i]]
            if i in example.in_place
            else placed(self.gpu, unwritten(like.astype(dtype)), margin)
            for i, (like, dtype) in enumerate(zip(example.results, example.dtypes))
        ]
        self.gpu.wait(0)  # for what was copied and filled
        self.launch(Call(operands, results))
        self.gpu.wait(self.stream)
        return [each.read() for each in results], touched(example, operands, results)

    def launch(self, call: Call) -> None:
        """Begins a call, with the library that serves so many tokens."""
        first = serving(self.libraries, tokens(self.kernel, call.operands))
        self.libraries[first].launch(call.operands, call.results, self.stream)

    def time(self, point: str) -> float:
        """Seconds a call takes, weights cold or warm as the device says: the mean over a graph of calls."""
        if point not in self._graphs:
            self._graphs[point] = self.graph(point)
        graph, count = self._graphs[point]
        if time.monotonic() - self._timed > IDLE_S:
            self.spin(graph, SPIN_S if self._timed else 10 * SPIN_S)
        seconds = self.replay(graph)
        self._timed = time.monotonic()
        return seconds / count

    def graph(self, point: str) -> tuple[int, int]:
        """A graph of calls, and how many they are."""
        calls = self.calls.at(point, self.settings[point], self.device.cold, self.once)
        self.once(calls[0])  # functions are loaded and scratch memory is taken before a graph is made of it

        def run() -> None:
            for call in calls:
                self.launch(call)

        return self.gpu.captured(self.stream, run), len(calls)

    def once(self, call: Call) -> float:
        """Seconds of a single call, about; it is called twice."""
        self.gpu.wait(0)  # for what was copied and filled
        self.launch(call)
        self.gpu.record(self.events[0], self.stream)
        self.launch(call)
        self.gpu.record(self.events[1], self.stream)
        return self.gpu.seconds(*self.events)

    def replay(self, graph: int) -> float:
        """Seconds of a graph."""
        self.gpu.record(self.events[0], self.stream)
        self.gpu.launch(graph, self.stream)
        self.gpu.record(self.events[1], self.stream)
        return self.gpu.seconds(*self.events)

    def spin(self, graph: int, seconds: float) -> None:
        """Has the GPU busy for that long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.replay(graph)


def tokens(kernel: Kernel, operands: Sequence[Buffer]) -> int:
    """How many tokens a call is of: of rows of operand 0, a share of them each, or heads before tokens."""
    shape = operands[0].shape
    match kernel.kind:
        case "grouped_combine":
            return shape[0] // kernel["share"]
        case "rotary" | "attention":
            return shape[0] * shape[2]
        case "mla_decode":
            return shape[0] * shape[1]
        case "append":
            return operands[1].shape[0] * operands[1].shape[2]
        case "angles":
            return int(np.prod(operands[1].shape))
        case "embedding" | "permute" | "top_k_gate":
            return shape[0]
    return int(np.prod(shape[:-1]))


def checked(kernel: Kernel, schedules: Schedules) -> dict[str, dict[str, Any]]:
    """What is compared with the reference, by its name: arguments of Sample.example."""
    counts = sorted({*ROWS_TO_CHECK, *TILED, *schedules})
    if kernel.kind in cases.CACHED:
        return {setting_name(**setting): setting for setting in with_caches(counts)}
    found: dict[str, dict[str, Any]] = {f"{rows} rows": {"rows": rows} for rows in counts}
    if cases.CASES[kernel.kind].routed:
        found |= {f"{rows} rows on few experts": {"rows": rows, "draw": crowded} for rows in (7, 130)}
        found |= {f"{rows} rows by Zipf": {"rows": rows, "draw": zipf} for rows in (33, 300)}
    return found


def with_caches(counts: Sequence[int]) -> Iterator[dict[str, int]]:
    """New tokens of one or more sequences, after none or many, padded or with a mask that is wider."""
    for rows in counts:
        yield {"rows": rows, "batch": 1, "cached": 0, "padding": 0, "wider": 0}
        yield {"rows": rows, "batch": 1, "cached": 61, "padding": 0, "wider": 0}
    for rows, batch, cached in ((1, 3, 1000), (1, 20, 130), (5, 2, 77), (33, 3, 40), (70, 2, 0)):
        yield {"rows": rows, "batch": batch, "cached": cached, "padding": min(9, cached), "wider": 0}
        yield {"rows": rows, "batch": batch, "cached": cached, "padding": 0, "wider": 100}


def setting_name(rows: int, batch: int, cached: int, padding: int, wider: int) -> str:
    """Says it in words."""
    return (
        f"{rows} new tokens of {batch} sequences after {cached}, {padding} of them padding, "
        f"mask {wider} wider"
    )


def crowded(random: Random, tokens: int, experts: int, share: int) -> Array:
    """The same experts for all tokens, the last ones: the others have no rows."""
    return np.tile(np.arange(experts - share, experts), (tokens, 1))


def where(example: Example, results: Sequence[Array]) -> str:
    """The first place of a result that is off by more than is right, and how many are."""
    for mine, wanted, dtype in zip(results, example.results, example.dtypes):
        got, exact = mine.astype(np.float64), wanted.astype(np.float64)
        most = example.tolerance * max(float(np.abs(exact).max(initial=0.0)), 1e-30)
        off = ~(np.abs(got - exact) <= (0.0 if wanted.dtype.kind == "i" else most))
        if off.any():
            first = tuple(int(i) for i in np.argwhere(off)[0])
            nans = int(np.isnan(got).sum()) if np.dtype(dtype).kind != "i" else 0
            return (
                f"{int(off.sum())} of {off.size} are, {nans} of them NaN; the first at {list(first)} of "
                f"{list(off.shape)}: {got[first]:.6g} instead of {exact[first]:.6g}"
            )
    return "all else is right"


def touched(example: Example, operands: Sequence[Buffer], results: Sequence[Buffer]) -> str | None:
    """Which memory was written that is nobody's result, or None."""
    buffers = {f"x{i}": each for i, each in enumerate(operands)}
    buffers |= {f"y{i}": each for i, each in enumerate(results)}
    for name, each in buffers.items():
        if each.margin and (why := each.spoiled()):
            return f"around {name}, {why}"
    kept = [i for i in range(len(operands)) if i not in example.in_place.values()]
    for i in kept:
        before = example.operands[i]
        if before.size < 1 << 22 and operands[i].read().tobytes() != before.tobytes():
            return f"operand x{i} was changed"
    return None


def affordable(kernel: Kernel) -> Kernel:
    """The kernel with as many experts as fit MOST_BYTES."""
    return sample.affordable(kernel, MOST_BYTES)


def file_name(kernel: Kernel, schedule: Schedule) -> str:
    """The file of a library of one schedule, among those that were built ahead."""
    return f"{op_name(kernel, {BUCKETS[0]: schedule})}.so"
