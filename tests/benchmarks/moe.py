"""A MoE layer of DeepSeek-V2-Lite in 4 bits, beside onnxruntime's QMoE on the same codes, and PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from moec.compiler import compile_model
from moec.compiler.interpret import interpret
from moec.compiler.ir import Graph, make
from moec.compiler.ops.quantize import QUANTIZE
from moec.compiler.ops.sources import INPUT
from moec.targets.base import Kernel

from . import layers, nbits, peers
from .absent import present
from .ceilings import INT8
from .kernels import floats, opened, placed, timed
from .onnx_session import alone
from .quantized import GROUP_BYTES, apart, floated
from .setting import Setting, told
from .timing import Batch, Errors, Row, interleave, rows

HIDDEN, WIDTH, EXPERTS, CHOSEN = 2048, 1408, 64, 6
EXPERT = 3 * HIDDEN * WIDTH  # weights of one
TURNS = 16  # different inputs, so that the experts change
BARS = {
    1: {"QMoE accuracy 4": 1.3, "QMoE accuracy 0": 4.0},
    16: {"QMoE accuracy 4": 2.0, "QMoE accuracy 0": 8.0},
    256: {"QMoE accuracy 4": 1.4, "QMoE accuracy 0": 2.0},
}

Weights = Callable[[int], tuple[Any, Any]]  # of an expert: gate and up [2I, H], down [H, I]


def moe(setting: Setting) -> Iterator[Row | Errors]:
    """Gate and six of 64 experts, without shared experts; then the grouped products alone."""
    torch.set_num_threads(setting.threads)
    torch.set_grad_enabled(False)
    module, _ = layers.routed_experts()
    gate, first, second = (part.numpy() for part in module.state_dict().values())
    stored = quantized(first), quantized(second)
    contenders = {"moec": compiled(setting)} | {
        f"QMoE accuracy {accuracy}": qmoe(nbits.experts(gate, *stored, CHOSEN, accuracy, setting.threads))
        for accuracy in (4, 0)
    }
    x = floats(TURNS, HIDDEN)
    found = {name: call(x) for name, call in contenders.items()}
    found["QMoE accuracy 0 as onnxruntime rounds weights"] = as_rounded_by_onnxruntime(gate, first, second)(x)
    yield Errors(
        "MoE layer int4, against the weights before rounding",
        apart(found, exact(x, gate, lambda expert: (first[expert], second[expert]))),
    )
    yield Errors(
        "MoE layer int4, against its stored weights",
        apart(found, exact(x, gate, lambda e: (floated4(stored[0], e), floated4(stored[1], e)))),
    )
    contenders |= present({"PyTorch eager": lambda: eager(module), "torch.compile": lambda: fused(module)})
    for count in BARS:
        yield from compared(setting, contenders, gate, count)
    yield from grouped(setting)


def compared(
    setting: Setting, contenders: dict[str, Callable[[Any], Any]], gate: Any, count: int
) -> Iterator[Row]:
    """Rows for one count of tokens."""
    xs = [floats(count, HIDDEN, seed=turn) for turn in range(TURNS)]
    calls = {name: placed(by_turns(call, xs), setting.threads) for name, call in contenders.items()}
    touched = float(np.mean([len(np.unique(routed(x, gate)[0])) for x in xs]))
    read = touched * EXPERT / nbits.GROUP * GROUP_BYTES[4]
    floors = setting.floors(read=read, int8=2 * count * CHOSEN * EXPERT)
    yield from rows(f"MoE layer int4, {count} tokens", interleave(calls | floors, 8), BARS[count])


def by_turns(call: Callable[[Any], Any], xs: Sequence[Any]) -> Callable[[], object]:
    """Calls with one input after another."""
    turn = iter(range(1 << 60))
    return lambda: call(xs[next(turn) % len(xs)])


def compiled(setting: Setting) -> Callable[[Any], Any]:
    """The layer as an artifact: x f32 [m, H] to y."""
    model, out = "tests.benchmarks.layers:routed_experts", setting.build / "routed-int4"
    compile_model(model, out=out, quant="int4", force=True, prove=False, budget=setting.budget, progress=told)
    options = alone(setting.threads)
    options.register_custom_ops_library(str(out / "libmoec_cpu.so"))
    session = ort.InferenceSession(str(out / "model.onnx"), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x[:, None]})[0][:, 0]


def qmoe(session: Any) -> Callable[[Any], Any]:
    """The same on a session of nbits.experts."""
    return lambda x: session.run(None, {"x": x})[0]


def as_rounded_by_onnxruntime(gate: Any, first: Any, second: Any) -> Callable[[Any], Any]:
    """QMoE as its users get it, with codes of onnxruntime's quantizer."""

    def rounded(w: Any) -> tuple[Any, Any]:
        codes, scales = zip(*map(nbits.codes_of_onnxruntime, w))
        return np.stack(codes), np.stack(scales)

    return qmoe(nbits.experts(gate, rounded(first), rounded(second), CHOSEN, 0, 1))


def eager(module: Any) -> Callable[[Any], Any]:
    """The same in PyTorch, float32."""
    return lambda x: module(torch.from_numpy(x)[:, None]).numpy()[:, 0]


def fused(module: Any) -> Callable[[Any], Any]:
    """The same by torch.compile."""
    return eager(peers.compiled(module, torch.zeros(2, 1, HIDDEN)))


def quantized(w: Any) -> tuple[Any, Any]:
    """Codes i8 and scales f16 of 4 bits, as the compiler makes them."""
    value = INPUT(name="w", dtype="f32", shape=w.shape)
    codes, scales = interpret(Graph((value,), make(QUANTIZE, value, bits=4).values), {"w": w}, {}).values()
    return codes, scales


def floated4(stored: tuple[Any, Any], expert: int) -> Any:
    """The weights of one expert, float64."""
    codes, scales = stored
    return floated(codes[expert], scales[expert], bits=4)


def routed(x: Any, gate: Any) -> tuple[Any, Any]:
    """The experts [m, 6] that each row chooses, and their weights: of a softmax over all, not normalised."""
    logits = x.astype(np.float64) @ gate.astype(np.float64).T
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    chosen = np.argsort(-chances, axis=1)[:, :CHOSEN]
    return chosen, np.take_along_axis(chances, chosen, axis=1)


def exact(x: Any, gate: Any, weights: Weights) -> Any:
    """The layer in float64."""
    chosen, share = routed(x, gate)
    out = np.zeros(x.shape)
    for expert in np.unique(chosen):
        first, second = (w.astype(np.float64) for w in weights(expert))
        row, place = np.nonzero(chosen == expert)
        gated, up = np.split(x[row] @ first.T, 2, axis=1)
        y = (gated / (1 + np.exp(-gated)) * up) @ second.T
        np.add.at(out, row, share[row, place][:, None] * y)
    return out


def grouped(setting: Setting) -> Iterator[Row]:
    """The grouped products of a prompt of 512 tokens alone, beside the int8 peak."""
    sizes = {"grouped_swiglu": (HIDDEN, 2 * WIDTH), "grouped_combine": (WIDTH, HIDDEN)}
    for kind, (k, n) in sizes.items():
        dims = {"k": k, "n": n, "experts": EXPERTS, "share": CHOSEN}
        dims |= {"base": 0} if kind == "grouped_combine" else {}
        bench = opened(Kernel(kind, tuple(dims.items()), (), "int4"), setting.threads)
        ours = {"moec": Batch(timed(bench, 512), bench.calls(512))}
        seconds = interleave(ours | setting.floors(int8=2 * 512 * CHOSEN * k * n), 8)
        yield from rows(f"{kind} int4, 512 tokens", seconds, {INT8: 0.7})
