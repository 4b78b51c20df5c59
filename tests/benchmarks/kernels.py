"""One kernel alone: how it is opened and timed, and the dense product beside onnxruntime's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from onnx import helper

from moec.targets.base import Kernel
from moec.targets.cpu import isa, space
from moec.targets.cpu.device import Bench, Device, apart
from moec.targets.cpu.sample import spread

from .onnx_session import session
from .setting import Setting
from .timing import Batch, Row, interleave, rows

COPIES, FEW_COPIES = 32, 4  # of the weights, 11.5 MB each


def opened(kernel: Kernel, threads: int) -> Bench:
    """A kernel with its default schedules."""
    host = isa.host()
    return Device(str(host), threads).bench(kernel, space.space(kernel, host).defaults)


def placed(run: Callable[[], object], threads: int) -> Callable[[], object]:
    """The same with the calling thread on a processor that the session's others leave it."""

    def call() -> object:
        with apart(threads):
            return run()

    return call


def floats(*shape: int, seed: int = 0) -> Any:
    """Normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def matmul(setting: Setting) -> Iterator[Row]:
    """One dense product beside MLAS, onnxruntime's MatMul: runs of so many calls, each by its own weights."""
    kernel = Kernel("linear", (("k", 2048), ("n", 1408)))
    bench, work = opened(kernel, setting.threads), kernel["k"] * kernel["n"]
    weights = bench.sample.packed(bench.schedule, COPIES)
    for count in (1, 2, 4, 8, 64, 512):
        copies = COPIES if count <= 8 else FEW_COPIES
        ours = called(bench, [spread(bench.feeds(count), each) for each in weights[:copies]])
        peer = mlas(kernel, count, setting.threads, copies)
        calls = {"moec": Batch(ours, copies), "MLAS": Batch(peer, copies)}
        calls |= setting.floors(read=4 * work) if count <= 8 else setting.floors(floats=2 * work * count)
        bars = {"MLAS": 1.15 if count <= 8 else 1.0}
        yield from rows(f"linear 2048x1408, {count} rows", interleave(calls, 20), bars)


def called(bench: Bench, calls: Sequence[Sequence[Any]]) -> Callable[[], object]:
    """A run that calls the kernel once with each of these operands."""
    ours, binding = bench.session(calls)
    for output in ours.get_outputs():
        binding.bind_output(output.name, "cpu")
    return placed(lambda: ours.run_with_iobinding(binding), bench.device.threads)


def timed(bench: Bench, count: int) -> Callable[[], object]:
    """A run of the kernel's timing graph for that many rows."""
    return lambda: bench.time(f"m={count}")


def mlas(kernel: Kernel, count: int, threads: int, copies: int) -> Callable[[], object]:
    """MatMul by constant weights, `copies` times with weights of their own."""
    weights = {f"w{i}": floats(kernel["k"], kernel["n"], seed=i) for i in range(copies)}
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in range(copies)]
    feeds = {"x": floats(count, kernel["k"])}
    results = [f"y{i}" for i in range(copies)]
    peer = session(nodes, weights, feeds, results, threads)
    return placed(lambda: peer.run(None, feeds), threads)
