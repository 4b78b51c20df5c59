"""This machine as a device: kernels built, checked and timed one at a time, in onnxruntime as deployed."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from ...compiler.interpret import interpret
from ...compiler.ir import Array, Graph
from ...compiler.ops.sources import INPUT
from ..base import Kernel, Schedule
from . import cases, cases_attention
from .build import link
from .cases import Feeds, operands
from .emit import emit
from .isa import named
from .lower import layout_of
from .table import op_name

COLD_BYTES = 96 << 20  # more than a last-level cache keeps from one run to the next
MOST_BYTES = 256 << 20  # of one weight: fewer experts are tried than a model has, where all would be more
MOST_COPIES = 12
PAGE = 4096
FEW_ROWS = 32  # beyond, arithmetic hides whether weights were in cache
MANY_ROWS = 128  # beyond, it also hides that threads had to wake up
ROWS_TO_CHECK = (1, 2, 3, 7, 33)

Call = Sequence[Array]
CASES = {**cases.CASES, **cases_attention.CASES}


@dataclass(frozen=True, slots=True)
class Device:
    """onnxruntime on this CPU with that many threads, running kernels compiled for isa (its name)."""

    isa: str
    threads: int = 1

    def bench(self, kernel: Kernel, schedule: Schedule) -> Bench:
        """The kernel, built and loaded; fewer experts if they take too much memory. Raises CannotBuild."""
        return Bench(sample(affordable(kernel)), schedule, self)


class Sample:
    """What a kernel is tried on: operands and what must come out, the same for each of its schedules."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.case = kernel, CASES[kernel.kind]
        self._examples: dict[int, tuple[Feeds, Feeds]] = {}

    @cached_property
    def weights(self) -> Mapping[int, Array]:
        """Random weights by operand, not packed."""
        return self.case.weights(self.kernel, np.random.default_rng(0))

    def feeds(self, rows: int, seed: int = 0) -> list[Array]:
        """Random operands that are no weights, for that many rows of tokens."""
        return self.case.feeds(self.kernel, rows, np.random.default_rng((seed, rows)))

    def wanted(self, feeds: Feeds) -> Feeds:
        """What must come out."""
        return self.case.reference(self.kernel, operands(feeds, self.weights))

    def example(self, rows: int) -> tuple[Feeds, Feeds]:
        """Feeds for that many rows, and what must come out; computed once."""
        if rows not in self._examples:
            feeds = self.feeds(rows)
            self._examples[rows] = feeds, self.wanted(feeds)
        return self._examples[rows]


@lru_cache(maxsize=1)  # a search goes kernel by kernel, and weights are big
def sample(kernel: Kernel) -> Sample:
    """The sample of the kernel that is being tried."""
    return Sample(kernel)


class Bench:
    """A library of one kernel that can be run, compared and timed."""

    def __init__(self, sample: Sample, schedule: Schedule, device: Device) -> None:
        self.sample, self.schedule, self.device = sample, schedule, device
        self.kernel, self.case, self.feeds = sample.kernel, sample.case, sample.feeds
        self.points = [f"m={rows}" for rows in self.case.points]
        self._folder = tempfile.TemporaryDirectory(prefix="moec-")
        isa = named(device.isa)
        self.library = link([emit(self.kernel, schedule, isa)], Path(self._folder.name) / "kernel.so", isa)
        self._timed: dict[str, tuple[Any, Any, int]] = {}
        self._copies: list[Mapping[int, Call]] = []

    @property
    def weights(self) -> Mapping[int, Array]:
        """Random weights by operand, not packed."""
        return self.sample.weights

    @cached_property
    def packed(self) -> Mapping[int, Call]:
        """The same as the library reads them; one may have become several."""
        return pack(self.kernel, self.schedule, self.weights)

    def check(self) -> str | None:
        """Why the outputs for some counts of rows are not the reference's, or None."""
        for rows in ROWS_TO_CHECK:
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
            binding.bind_ortvalue_output(f"y0.{index}", onnxruntime.OrtValue.ortvalue_from_numpy(array))
        session.run_with_iobinding(binding)
        return outputs

    def time(self, point: str) -> float:
        """Seconds a call takes, weights cold: the mean over a graph of calls that each have their own."""
        if point not in self._timed:
            self._timed[point] = self.prepare(int(point.removeprefix("m=")))
        session, binding, calls = self._timed[point]
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        return (time.perf_counter() - start) / calls

    def prepare(self, rows: int) -> tuple[Any, Any, int]:
        """A session ready to run as many calls as it takes to find weights cold, and how many those are."""
        calls = [spread(self.feeds(rows, seed), weights) for seed, weights in enumerate(self.cold(rows))]
        session, binding = self.session(calls)
        for output in session.get_outputs():
            binding.bind_output(output.name, "cpu")
        return session, binding, len(calls)

    def cold(self, rows: int) -> list[Mapping[int, Call]]:
        """Weights for each call of a timed run: copies by turns, few where calls choose experts."""
        size = sum(part.nbytes for parts in self.packed.values() for part in parts)
        dims = dict(self.kernel.dims)
        touched = size * min(1.0, rows * dims.get("share", 1) / dims.get("experts", 1))
        if rows > FEW_ROWS or not touched:
            return [self.packed] * (1 if rows > MANY_ROWS else 2)  # the first call of a run wakes the threads
        calls = min(MOST_COPIES, 1 + int(COLD_BYTES / touched))
        copies = min(calls, math.ceil(COLD_BYTES / size))
        while len(self._copies) < copies - 1:
            self._copies.append({i: [aligned(part) for part in parts] for i, parts in self.packed.items()})
        each = [self.packed, *self._copies][:copies]
        return [each[call % copies] for call in range(calls)]

    @cached_property
    def output_kinds(self) -> Sequence[str]:
        """The numpy kinds of the outputs: f, i."""
        return [output.dtype.kind for output in self.sample.example(1)[1]]

    def session(self, calls: Sequence[Call]) -> tuple[Any, Any]:
        """A session on a graph of calls with these operands, and a binding that has them."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.device.threads
        # Else its threads would spin on after a run, on the cores of the next kernel that is timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.register_custom_ops_library(str(self.library))
        names: dict[int, str] = {}
        arrays: dict[str, Array] = {}
        for array in (array for call in calls for array in call):
            arrays[names.setdefault(id(array), f"x{len(names)}")] = array
        op = op_name(self.kernel, self.schedule)
        results = {
            f"y{call}.{i}": kind for call in range(len(calls)) for i, kind in enumerate(self.output_kinds)
        }
        nodes = [
            helper.make_node(
                op,
                [names[id(array)] for array in call],
                [name for name in results if name.startswith(f"y{number}.")],
                domain="moec",
            )
            for number, call in enumerate(calls)
        ]
        model = helper.make_model(
            helper.make_graph(
                nodes,
                "bench",
                declared({name: array.dtype.kind for name, array in arrays.items()}),
                declared(results),
            ),
            opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("moec", 1)],
            ir_version=10,
        )
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        binding = session.io_binding()
        for name, array in arrays.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        return session, binding


def affordable(kernel: Kernel) -> Kernel:
    """The kernel with as many experts as fit MOST_BYTES: their number shapes no code."""
    dims = dict(kernel.dims)
    if "experts" not in dims or "n" not in dims:
        return kernel
    fit = MOST_BYTES // (4 * dims["k"] * dims["n"])
    dims["experts"] = min(dims["experts"], max(fit, dims["share"]))
    return replace(kernel, dims=tuple(dims.items()))


def pack(kernel: Kernel, schedule: Schedule, weights: Mapping[int, Array]) -> Mapping[int, Call]:
    """Weights in the layout of the schedule, by the same expressions that pack a model's."""
    layouts = layout_of(kernel, schedule)
    return {i: laid_out(layouts[i], w) if i in layouts else [w] for i, w in weights.items()}


def laid_out(layout: Any, w: Array) -> Call:
    """One weight packed."""
    value = INPUT(name="w", dtype="f32", shape=w.shape)
    parts = interpret(Graph((value,), layout.pack(value)), {"w": w}, {})
    return [aligned(part) for part in parts.values()]


def aligned(array: Array) -> Array:
    """A copy that starts at a page, as weights do in a mapped file; numpy starts anywhere in a cache line."""
    memory = np.empty(array.nbytes + PAGE, np.uint8)
    start = -memory.ctypes.data % PAGE
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def spread(feeds: Feeds, packed: Mapping[int, Call]) -> Call:
    """All operands of the packed kernel. Places count operands before packing."""
    single: list[Call] = [[feed] for feed in feeds]
    return [array for parts in operands(single, packed) for array in parts]


def declared(kinds: Mapping[str, str]) -> list[Any]:
    """Inputs or outputs of a graph, of any shape, by name and numpy kind."""
    types = {"f": TensorProto.FLOAT, "i": TensorProto.INT64}
    return [helper.make_tensor_value_info(name, types[kind], None) for name, kind in kinds.items()]


def unwritten(like: Array) -> Array:
    """An array of that shape in which every element that nobody writes will be noticed."""
    if like.dtype.kind == "f":
        return np.full(like.shape, np.nan, np.float32)
    return np.full(like.shape, np.iinfo(np.int64).min, np.int64)


def deviation(mine: Array, its: Array) -> float:
    """The largest difference over the largest value; NaN if there is a NaN, infinite if integers differ."""
    if its.dtype.kind != "f":
        return 0.0 if np.array_equal(mine, its) else math.inf
    return float(np.max(np.abs(mine - its), initial=0.0) / max(np.max(np.abs(its), initial=0.0), 1e-30))
