"""How fast artifacts are beside what a user has today, and what the machine can do at most. One command:

    .venv/bin/python -m tests.benchmarks.run [model] [attention] [sparsity] [matmul] [quantized] [moe] [lite]

Contenders are timed interleaved, with the same threads; read the ratios, not the milliseconds. The ratio to a
ceiling, measured round by round as the contenders are, is the share of it that we reach.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from moec.compiler import compile_model, load

from . import peers, shapes
from .absent import Absent, present
from .attention import attention
from .ceilings import UNITS, ceilings
from .kernels import matmul
from .layers import HIDDEN
from .lite import lite, lite8
from .moe import moe
from .quantized import quantized
from .setting import Setting, told
from .timing import Errors, Row, interleave, rows

BUILD = Path("build/benchmarks")
TOKENS = (1, 16, 64)


def model(setting: Setting) -> Iterator[Row]:
    """A DeepSeek-V3 of 460 M parameters in float32: new tokens on an empty cache, all logits."""
    import torch

    torch.set_num_threads(setting.threads)
    torch.set_grad_enabled(False)
    folder, build = shapes.write_config(setting.build / "v3-460m", shapes.V3_460M), setting.build
    options: dict[str, Any] = {"budget": setting.budget, "threads": setting.threads, "progress": told}
    out = build / "v3-460m-artifact"
    compile_model(config=folder, random_weights=0, out=out, force=True, **options)
    module = peers.eager(folder, seed=0)
    makers = {
        "OnnxExporter in onnxruntime": lambda: exported(module, build, setting.threads),
        "PyTorch eager": lambda: lambda ids: module(torch.from_numpy(ids)),
        "torch.compile": lambda: fused(module),
    }
    calls = {"moec": forward(load(out, threads=setting.threads)), **present(makers)}
    bars = {"OnnxExporter in onnxruntime": 1.3, "PyTorch eager": 2.0}
    for count in TOKENS:
        ids = np.random.default_rng(0).integers(0, 8192, (1, count))
        each = {name: partial(call, ids) for name, call in calls.items()}
        yield from rows(f"model, {count} new", interleave(each, 15), bars)


def forward(ours: Any) -> Callable[[Any], object]:
    """A pass of the artifact over new tokens."""
    return lambda ids: ours.step(ids, np.ones_like(ids), ours.cache(*ids.shape))


def exported(module: Any, build: Path, threads: int) -> Callable[[Any], object]:
    """A pass of transformers' own export."""
    graph = peers.exported(module, build / "v3-460m-exported" / "model.onnx", threads)
    return lambda ids: graph.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})


def fused(module: Any) -> Callable[[Any], object]:
    """A pass of the model by torch.compile."""
    import torch

    made = peers.compiled(module, torch.ones((1, TOKENS[-1]), dtype=torch.int64))
    return lambda ids: made(torch.from_numpy(ids))


def sparsity(setting: Setting) -> Iterator[Row]:
    """One MoE layer, one token: 64 experts to choose from should cost what 8 cost (a ratio of 1)."""
    calls: dict[str, Callable[[], object]] = {}
    for name, label in (("moe_8", "moec"), ("moe_64", "64 experts instead of 8")):
        out = setting.build / name
        compile_model(f"tests.benchmarks.layers:{name}", out=out, budget="0", force=True, prove=False)
        session = load(out, threads=setting.threads).session
        tokens = np.random.default_rng(0).standard_normal((64, 1, 1, HIDDEN), np.float32)
        calls[label] = cycled(session, tokens)
    yield from rows("MoE layer, 1 token", interleave(calls, rounds=60), {})


def cycled(session: ort.InferenceSession, tokens: Any) -> Callable[[], object]:
    """Calls with one token after another, so that the experts change as they do when decoding."""
    name, turn = session.get_inputs()[0].name, iter(range(1 << 60))
    return lambda: session.run(None, {name: tokens[next(turn) % len(tokens)]})


SECTIONS = {
    "model": model,
    "attention": attention,
    "sparsity": sparsity,
    "matmul": matmul,
    "quantized": quantized,
    "moe": moe,
    "lite": lite,
    "lite8": lite8,
}
USUAL = [name for name in SECTIONS if name != "lite8"]  # which takes 34 GB of disk


def main() -> None:
    """Run the chosen sections, print a table and, with --json, write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sections", nargs="*", choices=[[], *SECTIONS], help=f"unless named: {' '.join(USUAL)}"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--budget", default="60s", help="for tuning the kernels of a model")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    print(f"{'':45}{'peer':30}{'moec ms':>10}{'peer ms':>10}{'ratio':>8}{'bar':>7}")
    for name in options.sections or USUAL:
        found += section(name, options.threads, options.budget)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))


def section(name: str, threads: int, budget: str) -> list[dict[str, Any]]:
    """Run one and print what it yields; gives the same for machines."""
    found: list[dict[str, Any]] = []
    try:
        limits = ceilings(threads, BUILD)
        rates = {each: limit.rate() for each, limit in limits.items()}
        said = ", ".join(
            f"{each} {rate / 1e9:.1f} {UNITS.get(each, 'GOP/s')}" for each, rate in rates.items()
        )
        print(f"{name}: {threads} threads, {said}", flush=True)
        found.append({"section": name, "threads": threads, "per_second": rates})
        for line in SECTIONS[name](Setting(threads, budget, BUILD, limits)):
            found.append(shown(line))
    except Absent as reason:
        print(f"  skipped: {name}: {reason}", file=sys.stderr)
    return found


def shown(line: Row | Errors) -> dict[str, Any]:
    """Print a line of the table; gives it for machines."""
    if isinstance(line, Errors):
        print(line, flush=True)
        return asdict(line)
    bar = f"{line.required:.2f}" if line.required else ""
    times = f"{line.ours_s * 1e3:10.2f}{line.peer_s * 1e3:10.2f}{line.ratio:8.2f}"
    print(f"{line.what:45}{line.peer:30}{times}{bar:>7}", flush=True)
    return asdict(line) | {"ratio": line.ratio}


if __name__ == "__main__":
    main()
