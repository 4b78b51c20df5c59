"""Experts that all tokens share become experts that all tokens choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from layers import CHOSEN, EDGES, EXPERTS, HIDDEN, WIDTH, assert_same, decoder, experts, gated, routed, weight

from moec.compiler.costs import active_bytes
from moec.compiler.interpret import interpret
from moec.compiler.ir import B, Graph, Miss, T, Value
from moec.compiler.ops.elementwise import ADD, MUL
from moec.compiler.ops.routing import COMBINE, GROUPED_MATMUL, SWIGLU
from moec.compiler.ops.sources import INPUT
from moec.compiler.pipeline import run
from moec.compiler.slices import evaluate_rows
from moec.compiler.text import show
from moec.passes.fold import fold
from moec.passes.residual import gather_residuals
from moec.passes.rows import drop_flattening
from moec.passes.shared import join_shared

X = INPUT(name="x", dtype="f32", shape=(B, T, HIDDEN))
R = INPUT(name="r", dtype="f32", shape=(B, T, HIDDEN))


def joined(before: Graph) -> tuple[Graph, list[str]]:
    misses: list[Miss] = []
    after, _ = run(before, (gather_residuals, drop_flattening, join_shared, fold), misses=misses)
    return after, [miss.reason for miss in misses]


def counts(graph: Graph) -> list[tuple[int, int]]:
    """Experts and slots of a token, of each gathering product."""
    return [
        (node.inputs[3].shape[0], node.attrs["share"])
        for node in graph
        if node.op is GROUPED_MATMUL and node.attrs["share"]
    ]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_they_join(count: int, residual: bool) -> None:
    total = experts(X, 0, shared=count * WIDTH)
    before = Graph((X, R), (ADD(R, total) if residual else total,))
    after, misses = joined(before)
    assert counts(after) == [(EXPERTS + count, CHOSEN + count)]
    assert sum(node.op is SWIGLU for node in after) == 1
    assert sum(node.op is ADD for node in after) == residual
    assert not misses
    for sizes in EDGES:
        assert_same(before, after, **sizes)


def test_whatever_order_the_terms_are_added_in() -> None:
    chosen, shared = routed(X, 0)[0], gated(X, 0)
    for total in (ADD(ADD(R, chosen), shared), ADD(ADD(R, shared), chosen), ADD(shared, ADD(chosen, R))):
        before = Graph((X, R), (total,))
        after, misses = joined(before)
        assert counts(after) == [(EXPERTS + 1, CHOSEN + 1)]
        assert not misses
        assert_same(before, after)


def test_a_model_keeps_its_numbers() -> None:
    before = decoder(2)
    after, misses = joined(before)
    assert counts(after) == [(EXPERTS + 1, CHOSEN + 1)] * 2
    assert not misses
    for sizes in EDGES:
        assert_same(before, after, **sizes)


@pytest.mark.parametrize("best", range(EXPERTS))
def test_all_tokens_on_the_same_experts(best: int, unchanged: Callable[..., None]) -> None:
    """The others have no row, and the shared ones as many as ever."""
    before = Graph((X,), (experts(X, 0, shared=2 * WIDTH),))
    after, _ = joined(before)
    bias = np.where(np.arange(EXPERTS) == best, 9.0, np.arange(EXPERTS) / 100)
    for tokens in (0, 1, 5):
        unchanged(before, after, {B: 1, T: tokens}, **{"0.bias": bias})


def test_the_weights_that_a_token_reads_are_as_many() -> None:
    for count in (1, 2, 3):
        before = Graph((X,), (experts(X, 0, shared=count * WIDTH),))
        after, _ = joined(before)
        assert active_bytes(after) == active_bytes(before)


def test_the_weights_are_read_a_slice_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few rows a slice has: never all experts at once."""
    monkeypatch.setattr("moec.compiler.slices.CHUNK_BYTES", 1)
    after, _ = joined(Graph((X,), (experts(X, 0, shared=2 * WIDTH),)))
    weights = {
        name: np.random.default_rng(i).standard_normal(shape).astype(np.float32)
        for i, (name, shape) in enumerate(
            {
                "0.up": (EXPERTS, 2 * WIDTH, HIDDEN),
                "0.down": (EXPERTS, HIDDEN, WIDTH),
                "0.wide": (4 * WIDTH, HIDDEN),
                "0.narrow": (HIDDEN, 2 * WIDTH),
            }.items()
        )
    }

    class Watched:
        def read(self, name: str, start: int = 0, stop: int | None = None) -> Any:
            assert name in ("0.wide", "0.narrow") or stop == start + 1
            return weights[name][start:stop]

    for node in after:
        if node.op is GROUPED_MATMUL:
            w = node.inputs[3]
            slices = list(evaluate_rows(w, Watched()))
            assert len(slices) == EXPERTS + 2
            wanted = interpret(Graph((), (w,)), {}, weights)["out.0"]
            np.testing.assert_array_equal(np.concatenate(slices), wanted)


def test_what_it_becomes(golden: Callable[[str], None]) -> None:
    golden(show(joined(Graph((X, R), (ADD(R, experts(X, 0, shared=2 * WIDTH)),)))[0]))


@pytest.mark.parametrize(
    ("total", "reason"),
    [
        (experts(X, 0, shared=WIDTH + 1), "shared experts of width 4 are no multiple of routed ones of 3"),
        (ADD(routed(X, 0)[0], gated(R, 0)), "shared and routed experts read different tensors"),
    ],
    ids=["width", "input"],
)
def test_near_misses(total: Value, reason: str) -> None:
    before = Graph((X, R), (total,))
    after, misses = joined(before)
    assert counts(after) == [(EXPERTS, CHOSEN)]
    assert len(misses) == 1
    assert reason in misses[0]


def test_experts_that_no_gate_chose_are_a_near_miss() -> None:
    order, ends = (
        INPUT(name=n, dtype="i64", shape=s) for n, s in (("order", (CHOSEN * T,)), ("ends", (EXPERTS,)))
    )
    weights = INPUT(name="weights", dtype="f32", shape=(T, CHOSEN))
    x = INPUT(name="x", dtype="f32", shape=(T, HIDDEN))
    h = GROUPED_MATMUL(x, order, ends, weight("up", EXPERTS, 2 * WIDTH, HIDDEN), share=CHOSEN)
    y = GROUPED_MATMUL(SWIGLU(h), order, ends, weight("down", EXPERTS, HIDDEN, WIDTH), share=0)
    before = Graph((x, order, ends, weights), (ADD(COMBINE(y, order, weights), gated(x, 0)),))
    after, misses = joined(before)
    assert after == before
    assert misses == [
        "the routed experts are not what a gate chose, so the shared ones can not be chosen with them"
    ]


def test_what_is_no_shared_expert_stays() -> None:
    chosen, shared = routed(X, 0)[0], gated(X, 0)
    for total in (ADD(chosen, R), ADD(MUL(chosen, R), shared), MUL(chosen, shared)):
        before = Graph((X, R), (total,))
        after, misses = joined(before)
        assert counts(after) == [(EXPERTS, CHOSEN)]
        assert not misses
    read_twice = Graph((X, R), (ADD(chosen, shared), MUL(shared, R)))
    after, misses = joined(read_twice)
    assert counts(after) == [(EXPERTS, CHOSEN)]
    assert not misses
