"""This machine as a device: kernels built, checked and timed one at a time, in onnxruntime as deployed."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import onnxruntime
from onnx import helper

from ...compiler.ir import Array
from .. import sample
from ..base import BUCKETS, Kernel, Schedules
from ..cases import Draw, Feeds
from ..sample import ROWS_TO_CHECK, Turned, deviation, draws, points, unwritten
from .build import link
from .isa import named
from .sample import Call, Round, Sample, affordable, aligned, case_of, sample_of, spread
from .table import op_name

LIBRARY = "kernel.so"


@dataclass(frozen=True, slots=True)
class Device:
    """onnxruntime on this CPU with that many threads, running kernels compiled for isa (its name).

    cold: whether weights are in no cache when a call begins, as in a large model. trace: a file of a recorded
    routing (see routing.py), for the kernels that it suits; the others are timed with made-up ones.
    """

    isa: str
    threads: int = 1
    cold: bool = True
    trace: str = ""

    def build(self, kernel: Kernel, schedules: Schedules, folder: Path) -> None:
        """Makes the library of one kernel there. Raises CannotBuild."""
        from .emit import emit  # TVM takes seconds to import, and only building needs it

        isa = named(self.isa)
        link([emit(affordable(kernel), schedules, isa)], folder / LIBRARY, isa)

    def bench(self, kernel: Kernel, schedules: Schedules, built: Path | None = None) -> Bench:
        """The kernel loaded; fewer experts if they take too much memory. built: where it was built before.

        Raises CannotBuild.
        """
        scratch = None if built else tempfile.TemporaryDirectory(prefix="moec-")
        if scratch:
            self.build(kernel, schedules, Path(scratch.name))
        library = (Path(scratch.name) if scratch else built or Path()) / LIBRARY
        bench = Bench(sample_of(affordable(kernel)), schedules, self, library, self.draws(kernel))
        bench.scratch = scratch
        return bench

    def draws(self, kernel: Kernel) -> Mapping[str, Draw]:
        """How tokens choose experts at the points of a kernel, by the word that names it there."""
        return draws(kernel, case_of(kernel), self.trace)


class Bench:
    """A library of one kernel that can be run, compared and timed."""

    def __init__(
        self,
        sample: Sample,
        schedules: Schedules,
        device: Device,
        library: Path,
        draws: Mapping[str, Draw],
    ) -> None:
        self.sample, self.schedules, self.device, self.draws = sample, schedules, device, draws
        self.schedule = schedules[BUCKETS[0]]  # the weights lie as it says, and so do all others
        self.kernel, self.case, self.feeds = sample.kernel, sample.case, sample.feeds
        self.library = library
        self.scratch: Any = None  # a temporary folder that goes with the bench
        self.points = points(self.case, draws)
        self._timed: dict[str, tuple[Any, Sequence[Any], int]] = {}

    @property
    def weights(self) -> Mapping[int, Array]:
        """Random weights by operand, not packed."""
        return self.sample.weights

    @cached_property
    def packed(self) -> Mapping[int, Call]:
        """The same as the library reads them; one may have become several."""
        return self.sample.packed(self.schedule)[0]

    def check(self) -> str | None:
        """Why the outputs for some counts of rows are not the reference's, or None."""
        for rows in sorted({*ROWS_TO_CHECK, *self.schedules}):
            if wrong := self.differs(*self.sample.example(rows)):
                return f"with {rows} rows, {wrong}"
        return None

    def check_feeds(self, feeds: Feeds) -> str | None:
        """The same for these operands."""
        return self.differs(feeds, self.sample.wanted(feeds))

    def differs(self, feeds: Feeds, wanted: Feeds) -> str | None:
        """Why the outputs are not what is wanted, or None."""
        for index, (mine, its) in enumerate(zip(self.run(feeds, wanted), wanted)):
            error, most = deviation(mine, its), self.case.tolerance
            if not error <= most:
                return f"output {index} is off by {error:.2g} of its largest value, {most:.0e} is allowed"
        return None

    def run(self, feeds: Feeds, like: Feeds) -> list[Array]:
        """Outputs, shaped as `like`. What the kernel leaves unwritten is NaN, or the lowest integer."""
        outputs = [unwritten(wanted) for wanted in like]
        session, binding = self.session([spread(feeds, self.packed)])
        for index, array in enumerate(outputs):
            binding.bind_ortvalue_output(f"y0.{index}", ort_value(array))
        session.run_with_iobinding(binding)
        return outputs

    def time(self, point: str) -> float:
        """Seconds a call takes, weights cold or warm as the device says: the mean over a graph of calls.

        Runs take turns with copies of the weights, those of other benches too.
        """
        if point not in self._timed:
            self._timed[point] = self.prepare(point)
        session, bindings, calls = self._timed[point]
        binding = bindings[next(self.sample.turn) % len(bindings)]
        with apart(self.device.threads):
            start = time.perf_counter()
            session.run_with_iobinding(binding)
            return (time.perf_counter() - start) / calls

    def prepare(self, point: str) -> tuple[Any, Sequence[Any], int]:
        """A session on a run of calls, its operands for each turn, and how many calls those are."""
        rows, word = sample.point(point)
        rounds = self.rounds(rows)
        calls = [self.operands(rows, self.draws[word], each) for each in rounds]
        session, binding = self.session(calls[0])
        bindings = [binding, *(self.bound(session, each) for each in calls[1:])]
        for each, output in itertools.product(bindings, session.get_outputs()):
            each.bind_output(output.name, "cpu")
        return session, bindings, len(rounds[0].weights)

    def rounds(self, rows: int) -> list[Round]:
        """The weights of each turn of calls with that many rows."""
        return self.sample.rounds(self.schedule, rows, self.device.cold, self.device.threads)

    def calls(self, rows: int) -> int:
        """How many calls a run is."""
        return len(self.rounds(rows)[0].weights)

    def copies(self, rows: int) -> int:
        """How many copies of the weights runs take turns with."""
        return len({id(each) for round in self.rounds(rows) for each in round.weights})

    def operands(self, rows: int, draw: Draw, round: Round) -> list[Call]:
        """Of each call of a run: the same rows in every round, but of other weights, or other experts.

        They start at a page, as caches of an artifact do.
        """
        turned = Turned(draw, round.turned)
        feeds = ([aligned(each) for each in self.feeds(rows, seed, turned)] for seed in itertools.count())
        return [spread(own, each) for own, each in zip(feeds, round.weights)]

    @cached_property
    def output_types(self) -> Sequence[Any]:
        """The numpy types of the outputs."""
        return [unwritten(output).dtype for output in self.sample.example(1)[1]]

    def session(self, calls: Sequence[Call]) -> tuple[Any, Any]:
        """A session on a graph of calls with these operands, and a binding that has them."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.device.threads
        # Else its threads would spin on after a run, on the cores of the next kernel that is timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if others := places(self.device.threads):
            options.add_session_config_entry("session.intra_op_thread_affinities", others)
        options.register_custom_ops_library(str(self.library))
        names = named_operands(calls)
        arrays = {name: array for call, row in zip(calls, names) for array, name in zip(call, row)}
        op = op_name(self.kernel, self.schedules)
        results = {
            f"y{call}.{i}": kind for call in range(len(calls)) for i, kind in enumerate(self.output_types)
        }
        nodes = [
            helper.make_node(
                op,
                names[number],
                [name for name in results if name.startswith(f"y{number}.")],
                domain="moec",
            )
            for number in range(len(calls))
        ]
        model = helper.make_model(
            helper.make_graph(
                nodes,
                "bench",
                declared({name: array.dtype for name, array in arrays.items()}),
                declared(results),
            ),
            opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("moec", 1)],
            ir_version=10,
        )
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session, self.bound(session, calls)

    def bound(self, session: Any, calls: Sequence[Call]) -> Any:
        """A binding that has these operands, shared among calls as those that the session was made for."""
        binding = session.io_binding()
        for call, row in zip(calls, named_operands(calls)):
            for array, name in zip(call, row):
                binding.bind_ortvalue_input(name, ort_value(array))
        return binding


@cache
def processors() -> list[int]:
    """Those that this process may use."""
    return sorted(os.sched_getaffinity(0))


def places(threads: int) -> str:
    """Where a session's threads run, but for the one that calls it: on each other processor one, as
    onnxruntime spells it; nothing where it does not have them all.
    """
    return ";".join(str(each + 1) for each in processors()[1:]) if threads == len(processors()) else ""


@contextmanager
def apart(threads: int) -> Iterator[None]:
    """Keeps this thread on the first processor if the others have a thread each.

    A thread that is woken may stay on the processor of the one that woke it: until it is moved, a session is
    as slow as with one thread less, and of two that are compared each has its own luck.
    """
    pinned = bool(places(threads))
    if pinned:
        os.sched_setaffinity(0, processors()[:1])
    try:
        yield
    finally:
        if pinned:
            os.sched_setaffinity(0, processors())


def named_operands(calls: Sequence[Call]) -> list[list[str]]:
    """Names of each call's operands: one for each array."""
    names: dict[int, str] = {}
    return [[names.setdefault(id(array), f"x{len(names)}") for array in call] for call in calls]


def declared(types: Mapping[str, Any]) -> list[Any]:
    """Inputs or outputs of a graph, of any shape, by name and numpy type."""
    return [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), None)
        for name, dtype in types.items()
    ]


def ort_value(array: Array) -> Any:
    """The array as onnxruntime takes it, without a copy; of types of ours it knows the bits."""
    if array.dtype.kind in "fiub":
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    bits, element = array.view(f"u{array.itemsize}"), helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, element)
