"""Passes run in order, and one that moves the numbers is caught and named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from moec.compiler.ir import B, Graph, Miss, S, T
from moec.compiler.ops.elementwise import ADD, EXP, MUL, NEG
from moec.compiler.ops.shape import RESHAPE
from moec.compiler.ops.sources import CONSTANT, INPUT, scalar
from moec.compiler.pipeline import Check, PassMovedNumbers, PassReport, random_feeds, run
from moec.compiler.text import read
from moec.passes.fold import fold

X = INPUT(name="x", dtype="f32", shape=(B, 4))
W = CONSTANT(name="w", dtype="f32", shape=(4,))
GRAPH = Graph((X,), (MUL(RESHAPE(EXP(X), shape=(B, 4)), W),), ("y",))
WEIGHTS = {"w": np.arange(4, dtype=np.float32)}
MAKES = (NEG,)


def negate_twice(graph: Graph, misses: list[Miss]) -> Graph:
    misses.append(Miss("here", "not thrice"))
    return Graph(graph.inputs, (NEG(NEG(graph.outputs[0])),), graph.names)


@dataclass(frozen=True)
class Shift:
    by: float

    def __call__(self, graph: Graph, misses: list[Miss]) -> Graph:
        (y,) = graph.outputs
        return Graph(graph.inputs, (ADD(y, scalar(self.by, "f32")),), graph.names)


def check() -> Check:
    return Check(WEIGHTS, random_feeds(GRAPH, {B: 3}))


def test_a_report_for_each_pass() -> None:
    misses: list[Miss] = []
    seen: list[PassReport] = []
    graph, reports = run(GRAPH, (fold, negate_twice), misses=misses, check=check(), progress=seen.append)
    assert [(report.name, report.fired) for report in reports] == [("fold", 1), ("negate_twice", 2)]
    assert [(report.nodes_before, report.nodes_after) for report in reports] == [(5, 4), (4, 6)]
    assert list(reports) == seen
    assert [miss.reason for miss in misses] == ["not thrice"]
    assert len(graph) == 6


def test_a_pass_that_moves_numbers_is_named() -> None:
    with pytest.raises(PassMovedNumbers, match=r"pass shift moved y by .* of its largest value"):
        run(GRAPH, (fold, Shift(1e-3), fold), check=check())
    run(GRAPH, (Shift(1e-3),))
    run(GRAPH, (Shift(0.0),), check=check())


def test_a_result_that_is_no_number_is_caught() -> None:
    with pytest.raises(PassMovedNumbers, match="pass shift moved y"):
        run(GRAPH, (Shift(float("nan")),), check=check())


def test_the_graph_is_written_after_each_pass(tmp_path: Path) -> None:
    graph, _ = run(GRAPH, (fold, Shift(1.0)), watch=tmp_path / "watch")
    files = sorted((tmp_path / "watch").iterdir())
    assert [file.name for file in files] == ["00-traced.txt", "01-fold.txt", "02-shift.txt"]
    assert read(files[0].read_text()) == GRAPH
    assert read(files[2].read_text()) == graph


def test_random_feeds_are_good_as_ids_and_masks() -> None:
    mask = INPUT(name="mask", dtype="i64", shape=(B, S + T))
    feeds = random_feeds(Graph((X, mask), ()), {B: 3, S: 4, T: 2})
    assert feeds["x"].shape == (3, 4)
    assert feeds["x"].dtype == np.float32
    assert feeds["mask"].shape == (3, 6)
    assert set(feeds["mask"].flat) <= {0, 1}
    assert (feeds["mask"][:, -1] == 1).all()
    assert (np.diff(feeds["mask"], axis=1) >= 0).all()
