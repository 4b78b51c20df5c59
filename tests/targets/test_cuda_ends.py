"""What a model ends with on a GPU: compiled within the limits, and tried on what rounding does not decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layers import decoder

from moec.compiler import library
from moec.compiler.driver import whole
from moec.compiler.ops.region import REGION
from moec.compiler.pipeline import run
from moec.passes.caches import NarrowCaches
from moec.passes.head import choosing
from moec.passes.precision import Precision
from moec.targets.base import CannotBuild, Kernel
from moec.targets.cases_bf16 import Sample
from moec.targets.cases_ends import ROUNDING, clear
from moec.targets.cuda import sm
from moec.targets.cuda.bundle import Bundle, from_bytes
from moec.targets.cuda.target import Target

TARGET = Target(sm.named("sm_90a"))
CHOOSE = Kernel("choose_token", (("v", 9002),))
LAST = Kernel("last_norm", (("n", 64), ("width", 64), ("start", 0)), (("eps", 1e-6),))
ONE = 1 << 39  # as the kernel has it


def test_every_node_is_a_kernel() -> None:
    policy = TARGET.policies["none"]
    assert policy
    passes = (NarrowCaches(), *TARGET.passes, Precision(policy, TARGET.formats, TARGET.widest))
    graph, _ = run(choosing(decoder(2)), passes)
    assert whole(graph)
    kinds = [TARGET.kernel_of(node).kind for node in graph if node.op is REGION]
    assert kinds[-3:] == ["last_norm", "linear", "choose_token"]


@pytest.fixture(scope="module")
def bundles(home: Path) -> list[Bundle]:
    try:
        jobs = [(kernel, TARGET.space(kernel).defaults) for kernel in (CHOOSE, LAST)]
        return [from_bytes(each.object_code) for each in library.emit_all(TARGET, jobs)]
    except CannotBuild as cannot:
        if "nvcc is neither" in str(cannot):
            pytest.skip(str(cannot))
        raise


def test_it_compiles_within_the_limits(bundles: list[Bundle]) -> None:
    for bundle in bundles:
        for launch in bundle.launches[1]:
            needs, threads = bundle.resources[launch.image], int(launch.block[0])
            assert needs.spilled == 0
            assert needs.registers * threads <= TARGET.sm.registers
            assert launch.overlap


def test_levels_are_one_function(bundles: list[Bundle]) -> None:
    launches = bundles[0].launches[1]
    assert [launch.image for launch in launches] == [0, 1, 1, 1, 1, 1, 1, 2, 3]
    assert len(bundles[0].images) == 4


@pytest.mark.parametrize("rows", [1, 7, 33])
def test_what_is_drawn_is_far_from_limits(rows: int) -> None:
    logits, heat, *wishes = Sample(CHOOSE).feeds(rows)
    for row in zip(logits, heat, *wishes):
        assert row[1] <= 0 or clear(*row) > ROUNDING


def test_weights_of_f32_and_39_bits_choose_the_same() -> None:
    """The kernel's arithmetic: exponentials in f32, sums of whole numbers."""
    example = Sample(CHOOSE).example(60)
    tokens = [rounded(*row) for row in zip(*example.operands)]
    np.testing.assert_array_equal(tokens, example.results[0])


def rounded(logits: Any, heat: Any, top_k: int, top_p: float, uniform: float) -> int:
    """The token by such weights."""
    if heat <= 0:
        return int(np.argmax(logits))
    weights = (np.exp((logits - logits.max()) / heat) * np.float32(ONE)).astype(np.int64)
    if 0 < top_k < len(logits):
        weights[logits < np.sort(logits)[-top_k]] = 0
    if top_p < 1:
        order = np.argsort(-logits, kind="stable")
        sums = np.cumsum(weights[order])
        limit = max(1, int(np.ceil(np.float64(top_p) * sums[-1])))
        weights[logits < logits[order[int((sums - weights[order] < limit).sum()) - 1]]] = 0
    return int((np.cumsum(weights) <= int(np.float64(uniform) * weights.sum())).sum())
