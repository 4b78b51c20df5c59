"""How fast artifacts are beside what a user has today. One command, from the repository's root:

    .venv/bin/python -m tests.benchmarks.run [model] [attention] [sparsity] [matmul]

Contenders are timed interleaved, in float32, with the same threads; read the ratios, not the milliseconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from moec.compiler import compile_model, load
from moec.targets.base import Kernel
from moec.targets.cpu import isa, space
from moec.targets.cpu.device import Bench, Device

from . import peers, shapes
from .layers import HIDDEN
from .timing import interleave

BUILD = Path("build/benchmarks")
TOKENS = (1, 16, 64)
CACHED = 4096
LATENT = {"nope": 128, "rope": 64, "latent": 512, "value": 128, "pairs_in": 0, "pairs_out": 1}


@dataclass(frozen=True)
class Row:
    """One comparison: our median seconds, a peer's, and how much faster we must be; required 0: no bar."""

    what: str
    peer: str
    ours_s: float
    peer_s: float
    required: float

    @property
    def ratio(self) -> float:
        return self.peer_s / self.ours_s


def rows(what: str, seconds: Mapping[str, float], bars: Mapping[str, float]) -> Iterator[Row]:
    """A row for each peer in the timings, where `moec` is ours."""
    for peer, time in seconds.items():
        if peer != "moec":
            yield Row(what, peer, seconds["moec"], time, bars.get(peer, 0.0))


def model(threads: int, budget: str) -> Iterator[Row]:
    """A DeepSeek-V3 of 460 M parameters: new tokens on an empty cache, all logits."""
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    folder = shapes.write_config(BUILD / "v3-460m", shapes.V3_460M)
    out = BUILD / "v3-460m-artifact"
    compile_model(
        config=folder, random_weights=0, out=out, budget=budget, force=True, threads=threads, progress=told
    )
    module = peers.eager(folder, seed=0)
    graph = peers.exported(module, BUILD / "v3-460m-exported" / "model.onnx", threads)
    ours = load(out, threads=threads)
    bars = {"OnnxExporter in onnxruntime": 1.3, "PyTorch eager": 2.0}
    for count in TOKENS:
        yield from rows(f"model, {count} new", interleave(forward(ours, graph, module, count), 15), bars)


def forward(ours: Any, graph: Any, module: Any, count: int) -> dict[str, Callable[[], object]]:
    """One forward pass of each contender over the same new tokens."""
    import torch

    ids = np.random.default_rng(0).integers(0, 8192, (1, count))
    cache, mask, tokens = ours.cache(1, count), np.ones_like(ids), torch.from_numpy(ids)
    return {
        "moec": lambda: ours.step(ids, mask, cache),
        "OnnxExporter in onnxruntime": lambda: graph.run(None, {"input_ids": ids, "attention_mask": mask}),
        "PyTorch eager": lambda: module(tokens),
    }


def attention(threads: int, budget: str) -> Iterator[Row]:
    """Absorbed decode of one token; ours also rotates, absorbs and projects the values, the peer does not."""
    for heads in (16, 128):
        dims = {"heads": heads, **LATENT}
        kernel = Kernel("latent_attention", tuple(dims.items()), (("scale", 192**-0.5),))
        bench = opened(kernel, threads)
        feeds = decode_feeds(bench, heads)
        ours = runner(bench, feeds)
        peer = attention_24(heads, threads)
        seconds = interleave({"moec": ours, "ONNX Attention-24": peer}, rounds=30)
        yield from rows(f"attention, {heads} heads, {CACHED} cached", seconds, {"ONNX Attention-24": 5.0})


def opened(kernel: Kernel, threads: int) -> Bench:
    """A kernel alone, with its default schedule."""
    host = isa.host()
    return Device(str(host), threads).bench(kernel, space.space(kernel, host).default)


def decode_feeds(bench: Bench, heads: int) -> list[Any]:
    """q, cos, sin, both caches and the mask of one new token after CACHED - 1."""
    random = np.random.default_rng(0)

    def floats(*shape: int) -> Any:
        return random.standard_normal(shape, np.float32)

    caches = [floats(1, 1, CACHED, 512), floats(1, 1, CACHED, 64)]
    angles = [floats(1, 1, 32), floats(1, 1, 32)]
    return [floats(1, 1, heads * 192), *angles, *caches, np.ones((1, CACHED), np.int64)]


def runner(bench: Bench, feeds: list[Any]) -> Callable[[], object]:
    """A call of the kernel with these operands, weights packed."""
    from moec.targets.cpu.device import spread

    session, binding = bench.session([spread(feeds, bench.packed)])
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")
    return lambda: session.run_with_iobinding(binding)


def attention_24(heads: int, threads: int) -> Callable[[], object]:
    """onnxruntime's own Attention on absorbed queries: `heads` of width 576 over one shared key and value."""
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], scale=192**-0.5)
    sizes = {"q": (1, heads, 1, 576), "k": (1, 1, CACHED, 576), "v": (1, 1, CACHED, 512)}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in sizes.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], "attention", inputs, outputs)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    feeds = {name: random.standard_normal(size, np.float32) for name, size in sizes.items()}
    return lambda: session.run(None, feeds)


def sparsity(threads: int, budget: str) -> Iterator[Row]:
    """One MoE layer, one token: 64 experts to choose from should cost what 8 cost (a ratio of 1)."""
    calls: dict[str, Callable[[], object]] = {}
    for name, label in (("moe_8", "moec"), ("moe_64", "64 experts instead of 8")):
        out = BUILD / name
        compile_model(f"tests.benchmarks.layers:{name}", out=out, budget="0", force=True, prove=False)
        session = load(out, threads=threads).session
        tokens = np.random.default_rng(0).standard_normal((64, 1, 1, HIDDEN), np.float32)
        calls[label] = cycled(session, tokens)
    yield from rows("MoE layer, 1 token", interleave(calls, rounds=60), {})


def cycled(session: ort.InferenceSession, tokens: Any) -> Callable[[], object]:
    """Calls with one token after another, so that the experts change as they do when decoding."""
    name, turn = session.get_inputs()[0].name, iter(range(1 << 60))
    return lambda: session.run(None, {name: tokens[next(turn) % len(tokens)]})


def matmul(threads: int, budget: str) -> Iterator[Row]:
    """One dense product beside onnxruntime's MatMul (MLAS), weights cold for few rows."""
    kernel = Kernel("linear", (("k", 2048), ("n", 1408)))
    bench = opened(kernel, threads)
    for count in (1, 8, 64, 512):
        copies = 12 if count <= 8 else 1
        seconds = interleave({"moec": timed(bench, count), "MLAS": mlas(kernel, count, threads, copies)}, 20)
        scaled = {"moec": seconds["moec"] / len(bench.cold(count)), "MLAS": seconds["MLAS"] / copies}
        yield from rows(f"linear 2048x1408, {count} rows", scaled, {"MLAS": 1.15 if count <= 8 else 1.0})


def timed(bench: Bench, count: int) -> Callable[[], object]:
    """A run of the kernel's timing graph for that many rows."""
    return lambda: bench.time(f"m={count}")


def mlas(kernel: Kernel, count: int, threads: int, copies: int) -> Callable[[], object]:
    """onnxruntime's MatMul by constant weights, `copies` times with weights of their own."""
    random = np.random.default_rng(0)
    weights = [
        helper.make_tensor(
            f"w{i}", TensorProto.FLOAT, (kernel["k"], kernel["n"]),
            random.random((kernel["k"], kernel["n"]), np.float32).tobytes(), raw=True,
        )
        for i in range(copies)
    ]  # fmt: skip
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in range(copies)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (count, kernel["k"]))]
    outputs = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None) for i in range(copies)]
    graph = helper.make_graph(nodes, "matmul", inputs, outputs, weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"x": random.standard_normal((count, kernel["k"]), np.float32)}
    return lambda: session.run(None, feeds)


def told(step: str, done: int, total: int) -> None:
    """A line for each step of a compile, on stderr."""
    if not done:
        print(f"  {step}", file=sys.stderr)


SECTIONS = {"model": model, "attention": attention, "sparsity": sparsity, "matmul": matmul}


def main() -> None:
    """Run the chosen sections, print a table and, with --json, write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], help="all unless named")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", default="60s", help="for tuning the model's kernels")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    found = []
    print(f"{'':38}{'peer':30}{'moec ms':>10}{'peer ms':>10}{'ratio':>8}{'bar':>7}")
    for name in options.sections or SECTIONS:
        for row in SECTIONS[name](options.threads, options.budget):
            found.append(row)
            bar = f"{row.required:.2f}" if row.required else ""
            times = f"{row.ours_s * 1e3:10.2f}{row.peer_s * 1e3:10.2f}{row.ratio:8.2f}"
            print(f"{row.what:38}{row.peer:30}{times}{bar:>7}", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) | {"ratio": row.ratio} for row in found], indent=1))


if __name__ == "__main__":
    main()
