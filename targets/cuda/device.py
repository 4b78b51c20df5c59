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

from ...compiler.ir import Array
from .. import sample
from ..base import BUCKETS, Kernel, Schedule, Schedules, serving
from ..buffers import MARGIN, Buffer, placed
from ..cases import Draw
from ..cases_bf16 import Example
from ..checks import checked, tokens, where
from ..listing import op_name
from ..sample import draws, unwritten
from .buffers import library
from .calls import Call, Calls, calls_of, settings
from .driver import Driver, driver
from .sm import named

LIBRARY = "kernel.so"
MOST_BYTES = 4 << 30  # of one weight: fewer experts are tried than a model has, where all would be more
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

    @property
    def processor(self) -> str:
        """The GPU's name. Raises CudaError where there is none."""
        return driver().name

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
