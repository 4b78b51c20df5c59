"""How fast artifacts are beside what a user has today. One command, from the repository's root:

    .venv/bin/python -m tests.benchmarks.run [model] [attention] [sparsity] [matmul]

Contenders are timed interleaved, in float32, with the same threads; read the ratios, not the milliseconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from moec.compiler import compile_model, load

from . import peers, shapes
from .kernels import attention, matmul
from .layers import HIDDEN
from .timing import Row, interleave, rows

BUILD = Path("build/benchmarks")
TOKENS = (1, 16, 64)


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
    print(f"{'':45}{'peer':30}{'moec ms':>10}{'peer ms':>10}{'ratio':>8}{'bar':>7}")
    for name in options.sections or SECTIONS:
        for row in SECTIONS[name](options.threads, options.budget):
            found.append(row)
            bar = f"{row.required:.2f}" if row.required else ""
            times = f"{row.ours_s * 1e3:10.2f}{row.peer_s * 1e3:10.2f}{row.ratio:8.2f}"
            print(f"{row.what:45}{row.peer:30}{times}{bar:>7}", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) | {"ratio": row.ratio} for row in found], indent=1))


if __name__ == "__main__":
    main()
