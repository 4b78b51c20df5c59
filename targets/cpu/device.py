"""This machine as a device: kernels built, checked and timed one at a time, inside onnxruntime as when deployed."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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
from .isa import named
from .lower import layout_of
from .table import op_name

COLD_BYTES = 96 << 20  # more than a last-level cache keeps from one run to the next
MOST_BYTES = 256 << 20  # of one weight: fewer experts are tried than a model has, where all would be more
MOST_COPIES = 12
PAGE = 4096
FEW_ROWS = 32  # beyond, arithmetic hides whether weights were in cache
ROWS_TO_CHECK = (1, 2, 3, 7, 33)

Call = Sequence[Array]
CASES = {**cases.CASES, **cases_attention.CASES}


@dataclass(frozen=True, slots=True)
class Device:
    """onnxruntime on this CPU with that many threads, running kernels compiled for isa (its name)."""

    isa: str
    threads: int = 1

    def bench(self, kernel: Kernel, schedule: Schedule) -> Bench:
        """The kernel built and loaded, with fewer experts where those would take too much memory. Raises CannotBuild."""
        return Bench(affordable(kernel), schedule, self)


class Bench:
    """A library of one kernel that can be run, compared and timed."""

    def __init__(self, kernel: Kernel, schedule: Schedule, device: Device) -> None:
        from .emit import emit  # TVM takes seconds to import

        self.kernel, self.schedule, self.device = kernel, schedule, device
        self.case = CASES[kernel.kind]
        self.points = [f"m={rows}" for rows in self.case.points]
        self._folder = tempfile.TemporaryDirectory(prefix="moec-")
        isa = named(device.isa)
        self.library = link([emit(kernel, schedule, isa)], Path(self._folder.name) / "kernel.so", isa)
        self._timed: dict[str, tuple[Any, Any, int]] = {}
        self._copies: list[Mapping[int, Call]] = []

    @cached_property
    def weights(self) -> Mapping[int, Array]:
        """Random weights by operand, not packed."""
        return self.case.weights(self.kernel, np.random.default_rng(0))

    @cached_property
    def packed(self) -> Mapping[int, Call]:
        """The same as the library reads them; one may have become several."""
        return pack(self.kernel, self.schedule, self.weights)

    def feeds(self, rows: int, seed: int = 0) -> list[Array]:
        """Random operands that are no weights, for that many rows of tokens."""
        return self.case.feeds(self.kernel, rows, np.random.default_rng((seed, rows)))

    def check(self) -> str | None:
        """Why the outputs for some counts of rows are not the reference's, or None."""
        for rows in ROWS_TO_CHECK:
            if wrong := self.check_feeds(self.feeds(rows)):
                return f"with {rows} rows, {wrong}"
        return None

    def check_feeds(self, feeds: Feeds) -> str | None:
        """The same for these operands."""
        wanted = self.case.reference(self.kernel, operands(feeds, self.weights))
        for index, (mine, its) in enumerate(zip(self.run(feeds, wanted), wanted)):
            error = deviation(mine, its)
            if not error <= self.case.tolerance:
                return f"output {index} is off by {error:.2g} of its largest value, {self.case.tolerance:.0e} is allowed"
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
        """Seconds a call takes, weights cold: the mean over a graph of calls, each with weights of its own."""
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
        """Weights for each call of a timed run: copies, or the same where calls choose other experts."""
        size = sum(part.nbytes for parts in self.packed.values() for part in parts)
        dims = dict(self.kernel.dims)
        touched = size * min(1.0, rows * dims.get("share", 1) / dims.get("experts", 1))
        if rows > FEW_ROWS or not touched:
            return [self.packed]
        calls = min(MOST_COPIES, 1 + int(COLD_BYTES / touched))
        if size >= COLD_BYTES:
            return [self.packed] * calls
        while len(self._copies) < calls:
            self._copies.append({i: [aligned(part) for part in parts] for i, parts in self.packed.items()})
        return self._copies[:calls]

    def session(self, calls: Sequence[Call]) -> tuple[Any, Any]:
        """A session on a graph that calls the kernel with each of these operands, and a binding with inputs bound."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.device.threads
        options.register_custom_ops_library(str(self.library))
        outputs = self.case.reference(self.kernel, operands(self.feeds(1), self.weights))
        names = {id(array): f"x{index}" for index, array in enumerate(array for call in calls for array in call)}
        arrays = {names[id(array)]: array for call in calls for array in call}
        nodes = [
            helper.make_node(
                op_name(self.kernel, self.schedule),
                [names[id(array)] for array in call],
                [f"y{number}.{index}" for index in range(len(outputs))],
                domain="moec",
            )
            for number, call in enumerate(calls)
        ]
        results = {f"y{number}.{i}": array for number in range(len(calls)) for i, array in enumerate(outputs)}
        model = helper.make_model(
            helper.make_graph(nodes, "bench", declared(arrays), declared(results)),
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
    """A copy that starts at a page, as weights do in a mapped file; numpy's own start anywhere in a cache line."""
    memory = np.empty(array.nbytes + PAGE, np.uint8)
    start = -memory.ctypes.data % PAGE
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def spread(feeds: Feeds, packed: Mapping[int, Call]) -> Call:
    """All operands of the packed kernel. Places count operands before packing."""
    merged: list[Sequence[Array]] = operands([[feed] for feed in feeds], packed)
    return [array for parts in merged for array in parts]


def declared(arrays: Mapping[str, Array]) -> list[Any]:
    """Inputs or outputs of a graph, of any shape."""
    kinds = {"f": TensorProto.FLOAT, "i": TensorProto.INT64}
    return [helper.make_tensor_value_info(name, kinds[array.dtype.kind], None) for name, array in arrays.items()]


def unwritten(like: Array) -> Array:
    """An array of that shape in which every element that nobody writes will be noticed."""
    floats = like.dtype.kind == "f"
    return np.full(like.shape, np.nan if floats else np.iinfo(np.int64).min, np.float32 if floats else np.int64)


def deviation(mine: Array, its: Array) -> float:
    """The largest difference over the largest value; NaN if there is a NaN, infinite if integers differ."""
    if its.dtype.kind != "f":
        return 0.0 if np.array_equal(mine, its) else math.inf
    return float(np.max(np.abs(mine - its), initial=0.0) / max(np.max(np.abs(its), initial=0.0), 1e-30))
