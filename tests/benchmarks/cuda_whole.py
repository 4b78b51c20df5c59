"""DeepSeek-V2-Lite as a whole on this machine's GPU, its weights random, beside PyTorch:

    .venv/bin/python -m tests.benchmarks.cuda_whole make build/whole [--log tuning.jsonl] [--config FOLDER]
    PYTHONPATH=tests/.links python3 -m tests.benchmarks.cuda_whole run build/whole [--at FOLDER]
        [--context 2048] [--prompt 512] [--new 64] [--parts] [--peers eager graph compiled] [--only-peers]

The first compiles, on any machine, everything but large weights; the second fills these and times a prompt of
512 tokens, and tokens one by one after 2048 others, as recorded graphs: medians, by the clock and on the GPU.
The share is of the bandwidth measured in the same run, by the bytes of weights and cache that a token needs.
--parts: also where the GPU's time goes, by the profiler. --peers: the same shape in transformers.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moec.compiler import load
from moec.compiler.ir import DTYPES
from moec.compiler.session import copy, memory, run_options
from moec.compiler.texts import Recorded, bind

from . import hollow, shapes

MOST_PARTS = 30  # lines of a table of kernels
CHUNK = 512  # tokens of a context that go in at once
WARM = 6  # steps that are not timed: kernels are loaded in some, one is recorded
PROFILED = 5  # replays


@dataclass(frozen=True)
class Timed:
    """Median seconds of some tokens at once, by the clock and on the GPU (0 where not known)."""

    name: str
    tokens: int
    clock: float
    gpu: float = 0.0

    def __str__(self) -> str:
        best = self.gpu or self.clock
        gpu = f"{1e3 * self.gpu:8.3f} ms on the GPU, " if self.gpu else ""
        return (
            f"{self.name:44} {gpu}{1e3 * self.clock:8.3f} ms by the clock, {self.tokens / best:9.1f} tokens/s"
        )


class Ours:
    """An artifact in onnxruntime, all that it reads and writes in the GPU's memory."""

    def __init__(self, folder: Path) -> None:
        self.artifact = load(folder, verify="size")
        library = ctypes.CDLL(str(folder / self.artifact.manifest.target["library"]))
        self._elapsed = library.moec_elapsed_us
        self._elapsed.restype = ctypes.c_float

    def prompt(self, tokens: int, recorded: bool) -> Callable[[], None]:
        """A step of so many tokens, none before them; logits of all of them stay where they are."""
        artifact, number = self.artifact, next(Recorded.count) if recorded else None
        facts = artifact.manifest.target
        ids, mask = (memory(facts, (1, tokens), DTYPES["i64"]) for _ in range(2))
        logits = memory(facts, (1, tokens, artifact.vocabulary), DTYPES["f32"])
        copy(random_ids(artifact.vocabulary, tokens), ids)
        copy(np.ones((1, tokens), np.int64), mask)
        binding = artifact.session.io_binding()
        binding.bind_ortvalue_input("input_ids", ids)
        binding.bind_ortvalue_input("attention_mask", mask)
        bind(binding, artifact.cache(1, tokens))
        binding.bind_ortvalue_output("logits", logits)
        options = run_options(number)
        return lambda: artifact.session.run_with_iobinding(binding, options)

    def decode(self, context: int, new: int) -> Callable[[], None]:
        """A step of one token, at most `new` times, after so many random ones."""
        texts = self.artifact.texts(1, context + new)
        ids, mask = random_ids(self.artifact.vocabulary, context), np.ones((1, context + new), np.int64)
        for start in range(0, context, CHUNK):
            end = min(start + CHUNK, context)
            logits = texts.step(ids[:, start:end], mask[:, :end])
        expect_numbers(logits)
        token, ends = np.argmax(logits[:, -1:], -1), iter(range(context + 1, context + new + 1))

        def step() -> None:
            nonlocal token
            token = np.argmax(texts.step(token, mask[:, : next(ends)])[:, -1:], -1)

        return step

    def timed(self, name: str, tokens: int, step: Callable[[], None], times: int) -> Timed:
        """The step, so many times after some to warm up."""
        found = []
        for _ in range(WARM + times):
            start = time.perf_counter()
            step()
            found.append((time.perf_counter() - start, self._elapsed() / 1e6))
        clock, gpu = (statistics.median(each) for each in zip(*found[WARM:]))
        return Timed(name, tokens, clock, gpu)


def random_ids(vocabulary: int, tokens: int) -> Any:
    """Token ids i64 [1, tokens]."""
    return np.random.default_rng(0).integers(0, vocabulary, (1, tokens))


def expect_numbers(logits: Any) -> None:
    """Says so where logits are no numbers, or all the same."""
    off, deviation = 1 - np.isfinite(logits).mean(), float(logits.std())
    good = not off and deviation > 1e-3
    print(f"logits: deviation {deviation:.3g}, {off:.0%} no numbers{'' if good else ': WRONG'}", flush=True)


def ours(options: argparse.Namespace, bandwidth: float) -> list[Timed]:
    """Fills the artifact, opens it and times it."""
    start = time.perf_counter()
    out = options.at or hollow.roomy(options.folder) / "whole"
    size = hollow.fill(options.folder, out)
    print(f"{size / 1e9:.1f} GB of weights in {time.perf_counter() - start:.0f} s, {out}", flush=True)
    start = time.perf_counter()
    model = Ours(out)
    print(f"opened in {time.perf_counter() - start:.0f} s", flush=True)
    found = model.artifact.manifest
    read = found.active_bytes_per_token + options.context * found.cache["bytes_per_token"]
    floor = read / bandwidth
    print(
        f"a token reads {read / 1e9:.3f} GB, {1e3 * floor:.3f} ms at {bandwidth / 1e12:.2f} TB/s", flush=True
    )
    results = []
    for name, tokens, step, times in steps(model, options):
        each = model.timed(name, tokens, step, times)
        share = f", {floor / each.gpu:.0%} of the bandwidth" if tokens == 1 else ""
        print(f"{each}{share}", flush=True)
        results.append(each)
        if options.parts and "recorded" in name:
            print(Parts.table(step, each.gpu), flush=True)
    return results


def steps(model: Ours, options: argparse.Namespace) -> Iterator[tuple[str, int, Callable[[], None], int]]:
    """What is timed: a name, tokens, the step and how often it is run."""
    for recorded in (False, True):
        name = f"moec, {options.prompt} tokens, {'recorded' if recorded else 'as they are'}"
        yield name, options.prompt, model.prompt(options.prompt, recorded), 10
    step = model.decode(options.context, options.new + WARM + PROFILED + 2)
    yield f"moec, a token after {options.context}, recorded", 1, step, options.new


class Parts:
    """Where the GPU's time goes in a step, by PyTorch's profiler, which sees all kernels of the process."""

    @classmethod
    def table(cls, step: Callable[[], None], seconds: float) -> str:
        """Lines for the kernels that take most of it; a line that says why where there are none."""
        try:
            return cls.of(cls.traced(step), seconds)
        except Exception as error:
            return f"    no parts: {str(error).splitlines()[0][:300]}"

    @staticmethod
    def traced(step: Callable[[], None]) -> list[Mapping[str, Any]]:
        """The kernels of PROFILED steps, as the profiler writes them, by when they began."""
        import torch

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace.json"
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
                for _ in range(PROFILED):
                    step()
                torch.cuda.synchronize()
            seen.export_chrome_trace(str(file))
            events = json.loads(file.read_text())["traceEvents"]
        kernels = [each for each in events if each.get("cat") == "kernel"]
        return sorted(kernels, key=lambda each: float(each["ts"]))

    @staticmethod
    def of(kernels: list[Mapping[str, Any]], seconds: float) -> str:
        """By name and grid: calls in a step, what each takes alone, and what it adds to those before it."""
        alone, added = dict[str, list[float]](), dict[str, float]()
        end = float(kernels[0]["ts"])
        for each in kernels:
            name = f"{each['name'][:60]} {each['args'].get('grid')}"
            start, stop = float(each["ts"]), float(each["ts"]) + float(each["dur"])
            alone.setdefault(name, []).append(float(each["dur"]))
            added[name] = added.get(name, 0.0) + max(0.0, stop - max(end, start))
            end = max(end, stop)
        busy = sum(added.values()) / PROFILED
        lines = [f"    {1e6 * seconds:.0f} us, kernels run in {busy:.0f}: calls, us each, us added in all"]
        for name, whole in sorted(added.items(), key=lambda pair: -pair[1])[:MOST_PARTS]:
            calls, mean = len(alone[name]) / PROFILED, statistics.fmean(alone[name])
            lines.append(f"    {calls:5.0f} {mean:8.2f} {whole / PROFILED:9.1f}  {name}")
        return "\n".join(lines)


def main() -> None:
    """Compiles, or runs."""
    options = parsed()
    if options.do == "make":
        make(options)
        return
    from .cuda_timing import bandwidth

    if not options.only_peers:
        ours(options, bandwidth())
    if options.peers:
        from . import cuda_whole_peers

        cuda_whole_peers.run(options)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("do", choices=("make", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", type=Path, help="a folder with another config.json")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--isa", default="sm_90a")
    parser.add_argument("--at", type=Path, help="where its files go, else where there is room")
    for name, value in (("context", 2048), ("prompt", 512), ("new", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--peers", nargs="*", choices=("eager", "graph", "compiled"), default=[])
    parser.add_argument("--only-peers", action="store_true")
    return parser.parse_args()


def make(options: argparse.Namespace) -> None:
    """The hollow artifact."""
    from moec.targets.cuda.nvcc import find_nvcc

    from ..device import nvcc, prepare
    from . import hollow_make

    nvcc.through(find_nvcc(), prepare.KEPT)
    with tempfile.TemporaryDirectory() as folder:
        config = options.config or shapes.write_config(Path(folder), shapes.V2_LITE)
        hollow_make.make(config, options.folder, "cuda", options.isa, options.log, told)


def told(step: str, done: int, total: int) -> None:
    """A line for each change."""
    print(f"  {step} {done}/{total}" if total else f"  {step}", flush=True)


if __name__ == "__main__":
    main()
