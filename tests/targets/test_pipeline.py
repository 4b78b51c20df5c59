"""The CPU target's passes on traced models of every family: same numbers, nothing but kernels in a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from layers import running

from moec.compiler.interpret import interpret
from moec.compiler.ir import B, Graph, L, Miss, S, T
from moec.compiler.pipeline import Check, random_feeds, run
from moec.compiler.source import resolve
from moec.compiler.trace import Traced, trace
from moec.targets.cpu.pipeline import PASSES

LATENT = ("deepseek_v2_lite", "deepseek_v2", "deepseek_v3")
# Once for a model: embedding and angles. Beside weights, nothing else may stand between the regions.
ONCE = {"take": 1, "positions": 1, "cast": 1, "mul": 1, "cos": 1, "sin": 1}


@pytest.fixture(scope="module", params=models.FAMILIES)
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Traced, Graph]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    models.save(folder, request.param)
    traced = trace(resolve(str(folder)))
    misses: list[Miss] = []
    feeds = random_feeds(traced.graph, {B: 2, T: 3, S: 2, L: 6})
    graph, _ = run(traced.graph, PASSES, misses=misses, check=Check(traced.weights, feeds))
    assert not misses
    return request.param, traced, graph


@pytest.mark.parametrize("sizes", [(1, 1, 0, 1), (2, 1, 4, 9), (2, 5, 0, 5)], ids=str)
def test_the_numbers_stay(compiled: tuple[str, Traced, Graph], sizes: tuple[int, ...]) -> None:
    _, traced, graph = compiled
    feeds = random_feeds(traced.graph, dict(zip((B, T, S, L), sizes)))
    feeds["input_ids"] = models.tokens(*sizes[:2]).numpy()
    expected, found = (interpret(g, feeds, traced.weights, double=True) for g in (traced.graph, graph))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-10, atol=1e-11, err_msg=name)


def test_layers_are_regions(compiled: tuple[str, Traced, Graph]) -> None:
    family, _, graph = compiled
    found = running(graph)
    moved = {name: found.pop(name) for name in ("reshape", "transpose") if name in found}
    assert {name: found.pop(name) for name in ONCE} == ONCE
    assert found == KERNELS[family]
    assert moved == MOVED[family]


# Two layers, the first of the DeepSeeks' dense.
_DEEPSEEK = {
    "latent_attention": 2, "latent_write": 2, "linear": 5, "linear_add": 3, "linear_swiglu": 1, "rms_norm": 7,
    "route": 1, "grouped_swiglu": 1, "grouped_combine": 1,
}  # fmt: skip
KERNELS: dict[str, dict[str, Any]] = {
    "deepseek_v2_lite": _DEEPSEEK | {"rms_norm": 5, "linear": 3},
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "qwen3_moe": {
        "append": 4,
        "attention": 2,
        "linear": 7,
        "linear_add": 2,
        "rms_norm": 9,
        "rotary": 4,
        "route": 2,
        "grouped_swiglu": 2,
        "grouped_combine": 2,
    },
}
# One reshape for the positions; grouped-query attention goes to heads three times, and back.
MOVED = {family: {"reshape": 1} for family in LATENT} | {"qwen3_moe": {"reshape": 9, "transpose": 8}}
