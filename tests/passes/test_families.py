"""The norms, rotations, gates and experts of whole models, traced: none is missed, and no number moves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

from moec.compiler.interpret import input_name, interpret
from moec.compiler.ir import B, Graph, L, Miss, S, T
from moec.compiler.source import resolve
from moec.compiler.trace import Traced, trace
from moec.passes.experts import fuse_swiglu
from moec.passes.gate import fuse_gate
from moec.passes.norm import fuse_rms_norm, fuse_rotary
from moec.passes.routing import lower_routing

# per family: changes to its tiny config, then how many norms, gates (each with experts) and dense MLPs it has
FAMILIES: dict[str, tuple[str, dict[str, Any], int, int, int]] = {
    "deepseek v2 lite": ("deepseek_v2_lite", {}, 7, 1, 2),
    "deepseek v2": ("deepseek_v2", {}, 9, 1, 2),
    "deepseek v3": ("deepseek_v3", {}, 9, 1, 2),
    "deepseek v3, one group": ("deepseek_v3", {"n_group": 1, "topk_group": 1}, 9, 1, 2),
    "deepseek v3, halves": ("deepseek_v3", {"rope_interleave": False}, 9, 1, 2),
    "qwen3": ("qwen3_moe", {}, 9, 2, 0),
    "qwen3, not normalised": ("qwen3_moe", {"norm_topk_prob": False}, 9, 2, 0),
}
SPELLED_OUT = ("rsqrt", "sub", "softmax", "sigmoid", "top_k", "sort", "grouped_mm", "silu")


def feeds_of(graph: Graph, sizes: dict[Any, int]) -> dict[str, Any]:
    source = np.random.default_rng(2)
    feeds: dict[str, Any] = {}
    for value in graph.inputs:
        shape = [dim if isinstance(dim, int) else int(dim.subs(sizes)) for dim in value.shape]
        feeds[input_name(value)] = source.standard_normal(shape)
    shape = feeds["input_ids"].shape
    feeds["input_ids"] = source.integers(2, models.VOCAB, shape)
    feeds["attention_mask"] = np.ones(feeds["attention_mask"].shape, np.int64)
    return feeds


def check_numbers(traced: Traced, fused: Graph, sizes: dict[Any, int]) -> None:
    feeds = feeds_of(traced.graph, sizes)
    expected = interpret(traced.graph, feeds, traced.weights, double=True)
    for name, array in interpret(fused, feeds, traced.weights, double=True).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-9, atol=1e-11, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "changes", "norms", "gates", "dense"), FAMILIES.values(), ids=FAMILIES)
def test_all_are_found(
    family: str, changes: dict[str, Any], norms: int, gates: int, dense: int, tmp_path: Path
) -> None:
    models.save(tmp_path, family, **changes)
    traced, misses = trace(resolve(str(tmp_path))), list[Miss]()
    graph = traced.graph
    for step in (fuse_rms_norm, fuse_rotary, fuse_gate, lower_routing, fuse_swiglu):
        graph = step(graph, misses)
    found = Counter(node.op.name for node in graph)
    assert [found[name] for name in ("rms_norm", "rotary", "top_k_gate", "permute", "combine", "swiglu")] == [
        norms,
        2 * models.LAYERS,
        gates,
        gates,
        gates,
        gates + dense,
    ]
    assert found["grouped_matmul"] == 2 * gates
    assert [name for name in SPELLED_OUT if found[name]] == []
    assert misses == []
    check_numbers(traced, graph, {B: 2, T: 3, S: 4, L: 9})
    check_numbers(traced, graph, {B: 1, T: 1, S: 0, L: 2})
