"""Timing on a GPU beside PyTorch: every contender is a CUDA graph, replayed after the cache was flushed."""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moec.compiler.ir import DTYPES
from moec.targets.base import Schedules, serving
from moec.targets.buffers import NUMBERS, Tensor
from moec.targets.checks import tokens
from moec.targets.cuda.buffers import Library, library
from moec.targets.cuda.device import file_name
from moec.tuning.log import Log

from ..device.index import Entry

RUNS, WARM = 30, 3
FLUSHED = 256 << 20  # bytes written between runs: several times the cache
TYPES = {torch.bfloat16: "bf16", torch.float32: "f32", torch.int64: "i64", torch.uint8: "u8"}


@dataclass(frozen=True)
class Lent:
    """Memory of a PyTorch tensor, which is contiguous, as our kernels take it."""

    of: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.of.shape)

    @property
    def tensor(self) -> Tensor:
        number = NUMBERS[np.dtype(DTYPES[TYPES[self.of.dtype]])]
        return Tensor(self.of.data_ptr(), self.of.dim(), number, (ctypes.c_int64 * 8)(*self.of.shape))


class Ours:
    """A kernel of a prepared folder, with its default schedules or those that a tuning log found."""

    def __init__(self, folder: Path, entry: Entry, log: Log | None = None, place: Any = None) -> None:
        self.kernel, self.schedules = entry.kernel, chosen(entry, log, place)
        self.libraries: Mapping[int, Library] = {
            first: library((folder / file_name(entry.kernel, schedule)).resolve())
            for first, schedule in self.schedules.items()
        }

    def __call__(self, operands: list[torch.Tensor], results: list[torch.Tensor]) -> None:
        """Begins a call on PyTorch's stream."""
        x, y = [Lent(each) for each in operands], [Lent(each) for each in results]
        first = serving(self.libraries, tokens(self.kernel, x))  # type: ignore[arg-type]
        stream = torch.cuda.current_stream().cuda_stream
        self.libraries[first].launch(x, y, stream)  # type: ignore[arg-type]


def chosen(entry: Entry, log: Log | None, place: Any) -> Schedules:
    """The best schedules that a log knows, the default without one."""
    best = log.best(entry.kernel, place) if log else None
    return best.schedules if best else entry.default


def graph_of(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """The call as a graph, after it ran a few times."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="relaxed"):
        call()
    return graph


def timed(contenders: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of a replay of each, in turns, what does not run left out with a line that says why."""
    graphs, found = {}, dict[str, list[float]]()
    for name, call in contenders.items():
        try:
            graphs[name] = graph_of(call)
        except Exception as error:
            print(f"    {name} does not run: {str(error).splitlines()[0][:200]}", flush=True)
            torch.cuda.synchronize()
    waste = torch.empty(FLUSHED, dtype=torch.int8, device="cuda")
    for run in range(WARM + RUNS):
        for name, graph in graphs.items():
            seconds = flushed(graph, waste)
            found.setdefault(name, []).extend([seconds] if run >= WARM else [])
    return {name: statistics.median(each) for name, each in found.items()}


def flushed(graph: torch.cuda.CUDAGraph, waste: torch.Tensor) -> float:
    """Seconds of one replay; what it reads is in no cache."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    waste.fill_(1)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


@dataclass(frozen=True)
class Ceilings:
    """Bytes and bf16 operations per second that this GPU does at most, measured."""

    read: float
    operations: float

    def floor(self, bytes_: float, operations: float) -> float:
        """Seconds that so much takes at least."""
        return max(bytes_ / self.read, operations / self.operations)


def ceilings() -> Ceilings:
    """By a sum of 4 GiB, and by a product of 8192 x 8192 random numbers."""
    return Ceilings(bandwidth(), rate())


def bandwidth() -> float:
    """Bytes per second that a sum reads. (In a CUDA graph a copy goes another, slower way than by itself.)"""
    big = torch.rand(1 << 30, device="cuda")
    return big.nbytes / timed({"sum": lambda: torch.sum(big)})["sum"]


def rate() -> float:
    """Operations per second in bf16."""
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    return 2 * 8192**3 / timed({"product": lambda: a @ b})["product"]
