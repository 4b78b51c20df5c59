"""How CUDA kernels are checked and timed, on a stand-in for the GPU: what is wrong with one is said."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moec.compiler.ir import Array
from moec.targets import cases_bf16 as cases
from moec.targets.base import Kernel
from moec.targets.buffers import Buffer, placed
from moec.targets.checks import checked, tokens
from moec.targets.cuda import calls, device
from moec.targets.cuda.calls import Calls, results_of
from moec.targets.cuda.device import Bench, Device
from moec.targets.routing import even

GATE = {"groups": 1, "keep": 1, "sigmoid": 0, "top2": 0, "normalise": 1, "bias": 0, "shared": 0}
PAIRS = {"pairs_in": 0, "pairs_out": 1}
SIZES: dict[str, dict[str, int]] = {
    "embedding": {"v": 30, "n": 12},
    "angles": {"f": 4},
    "rms_norm": {"n": 12, "width": 20, "start": 3},
    "linear": {"k": 10, "n": 14, "wide": 0},
    "linear_add": {"k": 10, "n": 14, "wide": 0},
    "linear_swiglu": {"k": 10, "n": 14, "wide": 0},
    "route": {"k": 16, "n": 8, "chosen": 2, **GATE, "shared": 1},
    "top_k_gate": {"experts": 8, "k": 2, **GATE, "shared": 1},
    "permute": {"experts": 8, "k": 3},
    "grouped_swiglu": {"k": 10, "n": 12, "experts": 8, "share": 3},
    "grouped_combine": {"k": 10, "n": 12, "experts": 8, "share": 3, "base": 1},
    "latent_write": {"c": 14, "r": 8, "width": 30, "start": 4, **PAIRS},
    "latent_attention": {
        **{"heads": 4, "nope": 12, "rope": 8, "latent": 14, "value": 10},
        **PAIRS,
        **{"width": 80, "start": 0},
    },
    "mla_decode": {"heads": 4, "latent": 14, "rope": 8},
    "append": {"h": 2, "d": 10},
    "rotary": {"r": 10, **PAIRS},
    "attention": {"heads": 4, "groups": 2, "dk": 10, "dv": 6},
}
REALS = {"eps": 1e-6, "scale": 0.3}
CACHES = ("latent_write", "latent_attention", "mla_decode", "append", "attention")


def kernel(kind: str) -> Kernel:
    """A tiny one."""
    dtype = "bf16+bf16" if kind in CACHES else "bf16"
    return Kernel(kind, tuple(SIZES[kind].items()), tuple(REALS.items()), dtype)


class Gpu:
    """Memory of the host as the GPU's; a stream does what it is asked at once, a graph when launched."""

    def __init__(self) -> None:
        self.kept: dict[int, Any] = {}
        self.graphs: list[Callable[[], None]] = []
        self.clock = 0.0

    def allocate(self, size: int) -> int:
        memory = np.empty(size + 256, np.uint8)
        address = memory.ctypes.data + -memory.ctypes.data % 256
        self.kept[address] = memory
        return address

    def free(self, address: int) -> None:
        del self.kept[address]

    def free_bytes(self) -> int:
        return 1 << 30

    def upload(self, address: int, array: Array) -> None:
        ctypes.memmove(address, np.ascontiguousarray(array).ctypes.data, array.nbytes)

    def download(self, array: Array, address: int) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def copy(self, target: int, source: int, size: int, stream: int = 0) -> None:
        ctypes.memmove(target, source, size)

    def fill(self, address: int, byte: int, size: int, stream: int = 0) -> None:
        ctypes.memset(address, byte, size)

    def stream(self) -> int:
        return 1

    def event(self) -> int:
        return 1

    def wait(self, stream: int) -> None:
        pass

    def record(self, event: int, stream: int) -> None:
        pass

    def seconds(self, first: int, last: int) -> float:
        return 1e-4

    def captured(self, stream: int, body: Callable[[], None]) -> int:
        self.graphs.append(body)
        return len(self.graphs) - 1

    def launch(self, graph: int, stream: int) -> None:
        self.graphs[graph]()

    def drop(self, graph: int) -> None:
        pass


class Right:
    """A library whose kernel computes what it should, and keeps count of what it was called with."""

    def __init__(self, sample: cases.Sample) -> None:
        self.sample, self.called = sample, list[tuple[Sequence[Buffer], Sequence[Buffer]]]()

    def launch(self, operands: Sequence[Buffer], results: Sequence[Buffer], stream: int) -> None:
        self.called.append((operands, results))
        feeds = [each.read() for i, each in enumerate(operands) if i not in self.sample.weights]
        wanted = self.sample.wanted(feeds)
        for result, array in zip(results, wanted):
            result.write(array.reshape(result.shape).astype(result.dtype))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    """A tiny kernel of a kind on the stand-in, computed by what `made` gives."""
    gpu = Gpu()
    monkeypatch.setattr(device, "driver", lambda: gpu)
    monkeypatch.setattr(calls, "POINTS", (1, 3))
    monkeypatch.setattr(calls, "DECODE", (1, 3))
    monkeypatch.setattr(calls, "PREFILL", (4,))
    monkeypatch.setattr(calls, "CACHED", 20)
    monkeypatch.setattr(device, "SPIN_S", 0.0)

    def bench(kind: str, made: Callable[[cases.Sample], Any] = Right) -> Bench:
        fake: list[Any] = []

        def library(path: Path) -> Any:
            fake[:] = fake or [made(cases.Sample(kernel(kind)))]
            return fake[0]

        monkeypatch.setattr(device, "library", library)
        calls.calls_of.cache_clear()
        return Device("sm_90a").bench(kernel(kind), {1: {}}, Path("nowhere"))

    return bench


@pytest.mark.parametrize("kind", SIZES)
def test_shapes_of_results_are_the_references(kind: str) -> None:
    sample = cases.Sample(kernel(kind))
    setting = {"batch": 3, "cached": 5} if kind in cases.CACHED else {}
    example = sample.example(rows=2, **setting)
    found = results_of(kernel(kind), example.operands)
    assert [tuple(shape) for shape, _ in found] == [each.shape for each in example.results]
    assert [np.dtype(dtype) for _, dtype in found] == [np.dtype(dtype) for dtype in example.dtypes]
    buffers = [placed(Gpu(), each) for each in example.operands]  # type: ignore[arg-type]
    several = 3 if kind in cases.CACHED else 6 if kind == "rotary" else 1
    assert tokens(kernel(kind), buffers) == 2 * several if kind != "rotary" else 4


@pytest.mark.parametrize("kind", SIZES)
def test_a_right_kernel_passes(opened: Callable[..., Bench], kind: str) -> None:
    bench = opened(kind)
    assert bench.check() is None
    assert len(checked(kernel(kind), {1: {}})) >= 7


@pytest.mark.parametrize("kind", SIZES)
def test_every_point_is_timed(opened: Callable[..., Bench], kind: str) -> None:
    bench = opened(kind)
    for point in bench.points:
        assert bench.time(point) > 0


class Rounds(Right):
    """Wrong in one number of a result."""

    def launch(self, operands: Sequence[Buffer], results: Sequence[Buffer], stream: int) -> None:
        super().launch(operands, results, stream)
        array = results[0].read()
        array.flat[array.size // 2] = 9 if array.dtype.kind == "i" else np.inf
        results[0].write(array)


class Forgets(Right):
    """Leaves the last number of a result unwritten."""

    def launch(self, operands: Sequence[Buffer], results: Sequence[Buffer], stream: int) -> None:
        before = results[0].read()
        super().launch(operands, results, stream)
        array = results[0].read()
        array.flat[-1] = before.flat[-1]
        results[0].write(array)


class Spills(Right):
    """Writes a number behind its result."""

    def launch(self, operands: Sequence[Buffer], results: Sequence[Buffer], stream: int) -> None:
        super().launch(operands, results, stream)
        results[0].memory.fill(results[0].address + results[0].size + 6, 1, 2)


class Changes(Right):
    """Writes to an operand."""

    def launch(self, operands: Sequence[Buffer], results: Sequence[Buffer], stream: int) -> None:
        super().launch(operands, results, stream)
        operands[0].memory.fill(operands[0].address, 7, 2)


@pytest.mark.parametrize("kind", ["linear", "permute", "grouped_combine"])
@pytest.mark.parametrize("wrong", [Rounds, Forgets])
def test_wrong_numbers_are_seen(opened: Callable[..., Bench], kind: str, wrong: Any) -> None:
    assert "y0 is off by" in (opened(kind, wrong).check() or "")


def test_what_is_written_elsewhere_is_seen(opened: Callable[..., Bench]) -> None:
    spilled = "with 1 rows, around y0, 2 bytes behind it were written, the nearest 6 bytes away"
    assert opened("linear", Spills).check() == spilled
    assert "operand x0 was changed" in (opened("linear", Changes).check() or "")


def test_weights_and_experts_take_turns_where_they_are_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "SMALL", 0)
    size = 8 * 12 * 10 * 2
    made = Calls(Gpu(), kernel("grouped_swiglu"), l2_bytes=2 * size)  # type: ignore[arg-type]
    setting = calls.Setting(1, even)
    found = made.at("m=1", setting, True, lambda call: 1e-4)
    assert len(found) == 14, "one reads 3 of 8 experts, and all is to be read two and a half times, twice"
    assert len({call.operands[3].address for call in found}) == 7, "two in each copy"
    firsts = [call.operands[2].read().tolist() for call in found]
    assert firsts[0] != firsts[1]
    assert firsts[0] == firsts[2]
    warm = made.at("m=1", setting, False, lambda call: 1e-4)
    assert len({call.operands[3].address for call in warm}) == 1
