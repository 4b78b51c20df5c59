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
from onnx import helper

from ...compiler.interpret import interpret
from ...compiler.ir import DTYPES, Array, Graph
from ...compiler.ops.sources import INPUT
from ..base import BUCKETS, Kernel, Schedule, Schedules
from . import cases, cases_attention, cases_quantized
from .build import link
from .cases import Feeds, operands
from .emit import emit
from .isa import named
from .lower import BITS, layout_of
from .table import op_name

COLD_BYTES = 96 << 20  # more than a last-level cache keeps from one run to the next
MOST_BYTES = 256 << 20  # of one weight: fewer experts are tried than a model has, where all would be more
MOST_COPIES = 12
BYTES = {
    "f32": 4.0,
    "bf16": 2.0,
    "int8": 34 / 32,
    "int4": 18 / 32,
}  # of a number of a weight, scales included
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

    def bench(self, kernel: Kernel, schedules: Schedules) -> Bench:
        """The kernel, built and loaded; fewer experts if they take too much memory. Raises CannotBuild."""
        return Bench(sample(affordable(kernel)), schedules, self)


class Sample:
    """What a kernel is tried on: operands and what must come out, the same for each of its schedules."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.case = kernel, case_of(kernel)
        self._examples: dict[int, tuple[Feeds, Feeds]] = {}
        self._packed: dict[str, list[Mapping[int, Call]]] = {}

    @cached_property
    def weights(self) -> Mapping[int, Array]:
        """Random weights by operand, not packed; those that a layout is for have the kernel's dtype."""
        weights = self.case.weights(self.kernel, np.random.default_rng(0))
        if self.kernel.weights != "bf16":
            return weights
        stored = {i: weights[i].astype(DTYPES["bf16"]) for i in layout_of(self.kernel, {})}
        return {**weights, **stored}

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

    def packed(self, schedule: Schedule, copies: int = 1) -> Sequence[Mapping[int, Call]]:
        """The weights in the layout of a schedule, as often; what was packed before for an equal layout."""
        layout = repr(layout_of(self.kernel, schedule))
        if layout not in self._packed:
            self._packed[layout] = [pack(self.kernel, schedule, self.weights)]
        made = self._packed[layout]
        while len(made) < copies:
            made.append({i: [aligned(part) for part in parts] for i, parts in made[0].items()})
        return made[:copies]


def case_of(kernel: Kernel) -> cases.Case:
    """How to try a kernel of its kind."""
    case = CASES[kernel.kind]
    return replace(case, tolerance=cases_quantized.TOLERANCE) if kernel.weights in BITS else case


@lru_cache(maxsize=1)  # a search goes kernel by kernel, and weights are big
def sample(kernel: Kernel) -> Sample:
    """The sample of the kernel that is being tried."""
    return Sample(kernel)


class Bench:
    """A library of one kernel that can be run, compared and timed."""

    def __init__(self, sample: Sample, schedules: Schedules, device: Device) -> None:
        self.sample, self.schedules, self.device = sample, schedules, device
        self.schedule = schedules[BUCKETS[0]]  # the weights lie as it says, and so do all others
        self.kernel, self.case, self.feeds = sample.kernel, sample.case, sample.feeds
        self.points = [f"m={rows}" for rows in self.case.points]
        self._folder = tempfile.TemporaryDirectory(prefix="moec-")
        isa = named(device.isa)
        self.library = link([emit(self.kernel, schedules, isa)], Path(self._folder.name) / "kernel.so", isa)
        self._timed: dict[str, tuple[Any, Any, int]] = {}

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
        each = self.sample.packed(self.schedule, copies)
        return [each[call % copies] for call in range(calls)]

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
        options.register_custom_ops_library(str(self.library))
        names: dict[int, str] = {}
        arrays: dict[str, Array] = {}
        for array in (array for call in calls for array in call):
            arrays[names.setdefault(id(array), f"x{len(names)}")] = array
        op = op_name(self.kernel, self.schedules)
        results = {
            f"y{call}.{i}": kind for call in range(len(calls)) for i, kind in enumerate(self.output_types)
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
                declared({name: array.dtype for name, array in arrays.items()}),
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
            binding.bind_ortvalue_input(name, ort_value(array))
        return session, binding


def affordable(kernel: Kernel) -> Kernel:
    """The kernel with as many experts as fit MOST_BYTES: their number shapes no code."""
    dims = dict(kernel.dims)
    if "experts" not in dims or "n" not in dims:
        return kernel
    fit = int(MOST_BYTES / (BYTES[kernel.weights] * dims["k"] * dims["n"]))
    dims["experts"] = min(dims["experts"], max(fit, dims["share"]))
    return replace(kernel, dims=tuple(dims.items()))


def pack(kernel: Kernel, schedule: Schedule, weights: Mapping[int, Array]) -> Mapping[int, Call]:
    """Weights in the layout of the schedule, by the same expressions that pack a model's."""
    layouts = layout_of(kernel, schedule)
    return {i: laid_out(layouts[i], w) if i in layouts else [w] for i, w in weights.items()}


def laid_out(layout: Any, w: Array) -> Call:
    """One weight packed."""
    value = INPUT(name="w", dtype=next(name for name in DTYPES if DTYPES[name] == w.dtype), shape=w.shape)
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


def unwritten(like: Array) -> Array:
    """An array of that shape in which every element that nobody writes will be noticed.

    float64, in which references compute, stands for the float32 of kernels.
    """
    if like.dtype.kind == "i":
        return np.full(like.shape, np.iinfo(like.dtype).min, like.dtype)
    return np.full(like.shape, np.nan, np.float32 if like.dtype == np.float64 else like.dtype)


def deviation(mine: Array, its: Array) -> float:
    """The largest difference over the largest value; NaN if there is a NaN, infinite if integers differ."""
    if its.dtype.kind == "i":
        return 0.0 if np.array_equal(mine, its) else math.inf
    mine, its = mine.astype(np.float64), its.astype(np.float64)
    return float(np.max(np.abs(mine - its), initial=0.0) / max(np.max(np.abs(its), initial=0.0), 1e-30))
