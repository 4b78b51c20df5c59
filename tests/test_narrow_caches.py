"""Models whose caches are bfloat16: through stock onnxruntime, with the kernels and without them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from moec.compiler import compile_model, load
from moec.compiler.interpret import interpret
from moec.compiler.ir import Graph
from moec.compiler.runner import Artifact
from moec.compiler.source import resolve
from moec.compiler.trace import trace
from moec.passes.caches import NarrowCaches

from . import models

FAMILIES = ("deepseek_v2_lite", "qwen3_moe")


@dataclass(frozen=True)
class Narrow:
    """A compiled model, its graph with narrow caches and weights, and what compiling it gave."""

    out: Path
    graph: Graph
    weights: Any
    report: Any

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Of whole sequences, as numpy computes the graph."""
        past = {
            value.node.attrs["name"]: np.zeros(
                (len(ids), value.shape[1], ids.shape[1], value.shape[3]), ml_dtypes.bfloat16
            )
            for value in self.graph.inputs[2:]
        }
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), **past}
        return interpret(self.graph, feeds, self.weights)["logits"]


@pytest.fixture(scope="module", params=FAMILIES)
def narrow(request: pytest.FixtureRequest, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Narrow:
    folder = tmp_path_factory.mktemp(request.param)
    models.save(folder / "hub", request.param)
    report = compile_model(str(folder / "hub"), out=folder / "out", cache="bf16", prove=False, threads=2)
    traced = trace(resolve(str(folder / "hub"), None))
    return Narrow(folder / "out", NarrowCaches()(traced.graph, []), traced.weights, report)


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
        rows[...] = np.nan
    steps = [artifact.step(ids[:, t : t + 1], np.ones((2, t + 1), np.int64), cache) for t in range(9)]
    whole = artifact.logits(ids)
    assert np.abs(np.concatenate(steps, axis=1) - whole).max() <= 2e-3 * np.abs(whole).max()
    assert all(np.isfinite(rows[:, :, :9].astype(np.float32)).all() for rows in cache.values())
    assert all(np.isnan(rows[:, :, 9:].astype(np.float32)).all() for rows in cache.values())


def test_caches_take_half_the_bytes(narrow: Narrow, artifact: Artifact) -> None:
    cache = artifact.cache(1, 10)
    assert all(rows.dtype == ml_dtypes.bfloat16 for rows in cache.values())
    assert narrow.report.manifest.cache["bytes_per_token"] * 10 == sum(rows.nbytes for rows in cache.values())


def test_every_cache_is_written_and_read_by_a_kernel(narrow: Narrow) -> None:
    stored = [kernel.kernel for kernel in narrow.report.manifest.kernels if kernel.kernel.endswith("+bf16")]
    kinds = sorted({kernel.split()[0] for kernel in stored})
    assert kinds in (["latent_attention", "latent_write"], ["append", "attention"])


def test_generation(artifact: Artifact) -> None:
    ids = models.tokens(2, 5, seed=1).numpy()
    assert artifact.generate(ids, 6).shape == (2, 11)
