"""A language model of one layer, small enough to write by hand: no PyTorch needed to test what runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moec.compiler import artifact
from moec.compiler.ir import B, Graph, L, S, T, Value, make
from moec.compiler.manifest import Manifest, PlannedKernel
from moec.compiler.ops import attention, cache, dense, elementwise, index, region, shape
from moec.compiler.ops.sources import CONSTANT, INPUT
from moec.targets.cpu.target import Target

VOCABULARY, WIDTH = 19, 7
NONE: Mapping[str, Any] = {"bytes_per_token": 56, "unfused_bytes_per_token": 56}


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    shapes = {
        "embed": (VOCABULARY, WIDTH),
        "keys": (WIDTH, WIDTH),
        "values": (WIDTH, WIDTH),
        "head": (VOCABULARY, WIDTH),
    }
    return {name: random.standard_normal(size).astype(np.float32) for name, size in shapes.items()}


def model() -> Graph:
    """logits = head(h + attention(h, cached keys, cached values)), h the embedded tokens."""
    ids = INPUT(name="input_ids", dtype="i64", shape=(B, T))
    mask = INPUT(name="attention_mask", dtype="i64", shape=(B, S + T))
    pasts = [INPUT(name=f"past.0.{kind}", dtype="f32", shape=(B, 1, L, WIDTH)) for kind in ("key", "value")]
    named = {name: CONSTANT(name=name, dtype="f32", shape=array.shape) for name, array in weights().items()}
    h = index.TAKE(named["embed"], ids, axis=0)
    rows = [
        shape.RESHAPE(dense.LINEAR(h, named[name]), shape=(B, 1, T, WIDTH)) for name in ("keys", "values")
    ]
    presents = [cache.APPEND(past, new, mask) for past, new in zip(pasts, rows)]
    query = shape.RESHAPE(h, shape=(B, 1, T, WIDTH))
    keys, values = (cache.FILLED(present, mask) for present in presents)
    mixed = attention.SDPA(query, keys, values, cache.CAUSAL_MASK(mask, ids), scale=0.4)
    out = elementwise.ADD(h, shape.RESHAPE(mixed, shape=(B, T, WIDTH)))
    logits = dense.LINEAR(out, named["head"])
    return Graph((ids, mask, *pasts), (logits, *presents), ("logits", "present.0.key", "present.0.value"))


def linear_kernels(graph: Graph) -> Graph:
    """Every product with a weight as a region, as partition would make them."""

    def step(node: Any, inputs: tuple[Value, ...]) -> Any:
        if node.op is not dense.LINEAR:
            return None
        entries = tuple(INPUT(name=f"x{i}", dtype=v.type.dtype, shape=v.shape) for i, v in enumerate(inputs))
        return make(
            region.REGION, *inputs, kind="linear", body=Graph(entries, (dense.LINEAR(*entries),))
        ).values

    return graph.rewrite(step)


def write(folder: Path, target: Target | None = None, force: bool = False) -> Path:
    """The toy as an artifact: its products as kernels where a target is given, else in standard ops only."""
    from moec.compiler.library import emit_all
    from moec.passes.layout import pack, packed
    from moec.tuning.plan import served

    graph, names, kernels = model(), {}, {}
    with artifact.writing(folder, force) as partial:
        if target:
            graph = linear_kernels(graph)
            regions = [node for node in graph if node.op is region.REGION]
            plan = {node: target.kernel_of(node) for node in regions}
            schedules = {kernel: target.space(kernel).defaults for kernel in plan.values()}
            layouts = {node: target.layout_of(kernel, schedules[kernel][1]) for node, kernel in plan.items()}
            kernels = {target.op_name(*job): job for job in schedules.items()}
            names = {
                packed(n, layouts[n]).attrs["body"]: target.op_name(k, schedules[k]) for n, k in plan.items()
            }
            target.link(emit_all(target, list(schedules.items())), partial / target.library)
            graph = pack(graph, layouts)
        naming = lambda node: names.get(node.attrs["body"])  # noqa: E731
        files = artifact.store(partial, graph, weights(), naming, lambda done, total: None)
        Manifest(
            source={"name": "toy", "family": "toy", "hash": ""},
            target={
                "name": "cpu",
                "isa": "any",
                "features": [],
                "library": target.library if target else None,
            },
            onnxruntime=artifact.ONNXRUNTIME,
            files=files,
            kernels=[PlannedKernel(n, str(k), served(s, {}), "default", 1) for n, (k, s) in kernels.items()],
            toolchain={},
            cache=NONE,
            active_bytes_per_token=0,
            passes=[],
        ).write(partial)
    return folder
