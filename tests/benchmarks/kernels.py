"""Kernels alone, beside the same work in onnxruntime's own operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from moec.targets.base import Kernel
from moec.targets.cpu import isa, space
from moec.targets.cpu.device import Bench, Device, spread

from .timing import Row, interleave, rows

CACHED = 4096
CALLS = 8  # of a run, so that waking threads up for it weighs little
NOPE, ROPE, LATENT, VALUE = 128, 64, 512, 128
SCALE = (NOPE + ROPE) ** -0.5


def opened(kernel: Kernel, threads: int) -> Bench:
    """A kernel with its default schedule."""
    host = isa.host()
    return Device(str(host), threads).bench(kernel, space.space(kernel, host).default)


def alone(threads: int) -> ort.SessionOptions:
    """Options of a session whose threads rest between calls, as a Bench's do: spinning, they slow others."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def called(bench: Bench, queries: list[Any], others: list[Any]) -> Callable[[], object]:
    """A run that calls the kernel once for each query, all with the same other operands."""
    session, binding = bench.session([spread([query, *others], bench.packed) for query in queries])
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")
    return lambda: session.run_with_iobinding(binding)


def floats(*shape: int, seed: int = 0) -> Any:
    """Normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def attention(threads: int, budget: str) -> Iterator[Row]:
    """Decode of one token over a latent cache: attention itself, then with absorption and projection."""
    for heads in (16, 128):
        bar = {"ONNX Attention-24": 5.0} if heads == 16 else {}
        name = f"{heads} heads, {CACHED} cached"
        calls = {
            "moec": core(heads, threads),
            "ONNX Attention-24": attention_24(heads, threads, projected=False),
        }
        yield from rows(f"absorbed attention, {name}", per_call(calls), bar)
        calls = {
            "moec": latent(heads, threads),
            "ONNX Attention-24": attention_24(heads, threads, projected=True),
        }
        yield from rows(f"with projections, {name}", per_call(calls), {})


def per_call(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of one of the CALLS of a run."""
    return {name: seconds / CALLS for name, seconds in interleave(calls, 15).items()}


def core(heads: int, threads: int) -> Callable[[], object]:
    """Our attention on queries that are already absorbed, all heads over one key and value."""
    dims = {"heads": heads, "groups": 1, "dk": LATENT + ROPE, "dv": LATENT}
    bench = opened(Kernel("attention", tuple(dims.items()), (("scale", SCALE),)), threads)
    caches = [floats(1, 1, CACHED, LATENT + ROPE), floats(1, 1, CACHED, LATENT)]
    queries = [floats(1, heads, 1, LATENT + ROPE, seed=call) for call in range(CALLS)]
    return called(bench, queries, [*caches, np.ones((1, CACHED), np.int64)])


def latent(heads: int, threads: int) -> Callable[[], object]:
    """Our latent attention: rotation, absorption, attention and value projection."""
    dims = {
        "heads": heads,
        "nope": NOPE,
        "rope": ROPE,
        "latent": LATENT,
        "value": VALUE,
        "pairs_in": 0,
        "pairs_out": 1,
    }
    bench = opened(Kernel("latent_attention", tuple(dims.items()), (("scale", SCALE),)), threads)
    queries = [floats(1, 1, heads * (NOPE + ROPE), seed=call) for call in range(CALLS)]
    angle = floats(1, 1, ROPE // 2)
    caches = [floats(1, 1, CACHED, LATENT), floats(1, 1, CACHED, ROPE)]
    return called(bench, queries, [angle, angle, *caches, np.ones((1, CACHED), np.int64)])


def attention_24(heads: int, threads: int, projected: bool) -> Callable[[], object]:
    """onnxruntime's Attention over one shared key and value; `projected`, MatMuls absorb and project."""
    feeds = {"k": floats(1, 1, CACHED, LATENT + ROPE), "v": floats(1, 1, CACHED, LATENT)}
    weights = {"w_uk": floats(heads, NOPE, LATENT), "w_uv": floats(heads, LATENT, VALUE)} if projected else {}
    nodes: list[Any] = []
    for call in range(CALLS):
        nodes.append(helper.make_node("Attention", [f"q{call}", "k", "v"], [f"y{call}"], scale=SCALE))
        if not projected:
            feeds[f"q{call}"] = floats(1, heads, 1, LATENT + ROPE, seed=call)
            continue
        feeds[f"n{call}"] = floats(1, heads, 1, NOPE, seed=call)
        feeds[f"r{call}"] = floats(1, heads, 1, ROPE, seed=call)
        nodes.insert(-1, helper.make_node("MatMul", [f"n{call}", "w_uk"], [f"a{call}"]))
        nodes.insert(-1, helper.make_node("Concat", [f"a{call}", f"r{call}"], [f"q{call}"], axis=-1))
        nodes.append(helper.make_node("MatMul", [f"y{call}", "w_uv"], [f"z{call}"]))
    results = [f"{'z' if projected else 'y'}{call}" for call in range(CALLS)]
    session = opened_onnx(nodes, feeds, weights, results, threads)
    return lambda: session.run(None, feeds)


def opened_onnx(
    nodes: list[Any], feeds: Mapping[str, Any], weights: Mapping[str, Any], results: list[str], threads: int
) -> ort.InferenceSession:
    """A session on standard operators; feeds and weights by name."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, a.shape) for name, a in feeds.items()]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results]
    stored = [
        helper.make_tensor(n, TensorProto.FLOAT, a.shape, a.tobytes(), raw=True) for n, a in weights.items()
    ]
    graph = helper.make_graph(nodes, "peer", inputs, outputs, stored)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    return ort.InferenceSession(proto.SerializeToString(), alone(threads), providers=["CPUExecutionProvider"])


def matmul(threads: int, budget: str) -> Iterator[Row]:
    """One dense product beside MLAS, onnxruntime's MatMul; each call of a run has weights of its own."""
    kernel = Kernel("linear", (("k", 2048), ("n", 1408)))
    bench = opened(kernel, threads)
    for count in (1, 8, 64, 512):
        copies = len(bench.cold(count))
        calls = {"moec": timed(bench, count), "MLAS": mlas(kernel, count, threads, copies)}
        each = {name: seconds / copies for name, seconds in interleave(calls, 20).items()}
        yield from rows(f"linear 2048x1408, {count} rows", each, {"MLAS": 1.15 if count <= 8 else 1.0})


def timed(bench: Bench, count: int) -> Callable[[], object]:
    """A run of the kernel's timing graph for that many rows."""
    return lambda: bench.time(f"m={count}")


def mlas(kernel: Kernel, count: int, threads: int, copies: int) -> Callable[[], object]:
    """MatMul by constant weights, `copies` times with weights of their own."""
    weights = {f"w{i}": floats(kernel["k"], kernel["n"], seed=i) for i in range(copies)}
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in range(copies)]
    feeds = {"x": floats(count, kernel["k"])}
    session = opened_onnx(nodes, feeds, weights, [f"y{i}" for i in range(copies)], threads)
    return lambda: session.run(None, feeds)
