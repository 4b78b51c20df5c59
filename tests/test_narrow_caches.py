"""Models whose caches are bfloat16 or codes: through stock onnxruntime, with the kernels and without them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moec.compiler import compile_model, load
from moec.compiler.driver import narrowing
from moec.compiler.interpret import interpret
from moec.compiler.ir import DTYPES, Graph
from moec.compiler.pipeline import run
from moec.compiler.runner import Artifact
from moec.compiler.source import resolve
from moec.compiler.trace import trace

from . import models

MODELS = (("deepseek_v2_lite", "bf16"), ("qwen3_moe", "bf16"), ("deepseek_v2_lite", "int8"))
MOVED = {"bf16": 0.005, "int8": 0.02}  # logits, root mean square


@dataclass(frozen=True)
class Narrow:
    """A compiled model, its graph as traced and with narrow caches, weights, and what compiling it gave."""

    cache: str
    out: Path
    traced: Graph
    graph: Graph
    weights: Any
    report: Any

    def logits(self, ids: np.ndarray, graph: Graph | None = None) -> np.ndarray:
        """Of whole sequences, as numpy computes the graph with narrow caches, or another."""
        graph = graph or self.graph
        past = {
            value.node.attrs["name"]: np.zeros(
                (len(ids), value.shape[1], ids.shape[1], value.shape[3]), DTYPES[value.type.dtype]
            )
            for value in graph.inputs[2:]
        }
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), **past}
        return interpret(graph, feeds, self.weights)["logits"]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """A family's folder and what tracing it gives, once for all its caches."""

    @cache
    def trace_once(family: str) -> tuple[Path, Any]:
        folder = tmp_path_factory.mktemp(family)
        models.save(folder, family)
        return folder, trace(resolve(str(folder), None))

    return trace_once


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def narrow(
    request: pytest.FixtureRequest, home: Path, traced: Any, tmp_path_factory: pytest.TempPathFactory
) -> Narrow:
    family, kept = request.param
    (hub, found), out = traced(family), tmp_path_factory.mktemp(kept) / "out"
    report = compile_model(str(hub), out=out, cache=kept, prove=False, threads=2)
    graph, _ = run(found.graph, narrowing(kept))
    return Narrow(kept, out, found.graph, graph, found.weights, report)


@pytest.fixture(params=[True, False], ids=["kernels", "standard ops"])
def artifact(request: pytest.FixtureRequest, narrow: Narrow) -> Artifact:
    return load(narrow.out, threads=2, kernels=request.param)


def test_logits(narrow: Narrow, artifact: Artifact) -> None:
    ids = models.tokens(2, 9, seed=4).numpy()
    wanted = narrow.logits(ids)
    assert np.abs(artifact.logits(ids) - wanted).max() <= 1e-3 * np.abs(wanted).max()


def test_step_by_step_is_as_all_at_once(artifact: Artifact) -> None:
    ids = models.tokens(2, 9, seed=4).numpy()
    cache = artifact.cache(2, 12)
    for rows in cache.values():
        rows[...] = unread(rows)
    steps = [artifact.step(ids[:, t : t + 1], np.ones((2, t + 1), np.int64), cache) for t in range(9)]
    whole = artifact.logits(ids)
    assert np.abs(np.concatenate(steps, axis=1) - whole).max() <= 2e-3 * np.abs(whole).max()
    for rows in cache.values():
        assert np.isfinite(rows[:, :, :9].astype(np.float32)).all()
        np.testing.assert_array_equal(rows[:, :, 9:].astype(np.float32), unread(rows))


def unread(cache: Any) -> float:
    """What nobody should read; codes have scales that say so."""
    return -128 if cache.dtype == np.int8 else np.nan


def test_caches_take_fewer_bytes(narrow: Narrow, artifact: Artifact) -> None:
    cache = artifact.cache(1, 10)
    latents = "int8" if narrow.cache == "int8" else "bfloat16"
    kinds = {"key": latents, "value": "bfloat16", "scale": "float32"}
    assert {name: str(rows.dtype) for name, rows in cache.items()} == {
        name: kinds[name.rpartition(".")[2]] for name in cache
    }
    assert (narrow.cache == "int8") == ("past.1.scale" in cache)
    assert narrow.report.manifest.cache["bytes_per_token"] * 10 == sum(rows.nbytes for rows in cache.values())


def test_every_cache_is_written_and_read_by_a_kernel(narrow: Narrow) -> None:
    every = [kernel.kernel for kernel in narrow.report.manifest.kernels]
    kinds = sorted({each.split()[0] for each in every if each.endswith(f"+{narrow.cache}")})
    assert kinds in (["latent_attention", "latent_write"], ["append", "attention"])


def test_generation(artifact: Artifact) -> None:
    ids = models.tokens(2, 5, seed=1).numpy()
    assert artifact.generate(ids, 6).shape == (2, 11)


def test_logits_move_little(narrow: Narrow) -> None:
    ids = models.tokens(2, 40, seed=5).numpy()
    exact, rounded = (narrow.logits(ids, graph) for graph in (narrow.traced, narrow.graph))
    assert 0 < np.sqrt(np.mean((rounded - exact) ** 2) / np.mean(exact**2)) < MOVED[narrow.cache]
