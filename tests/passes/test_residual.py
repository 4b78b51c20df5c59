"""What is added to routed experts ends in their last kernel, whatever shape and order it was added in."""

from __future__ import annotations

import pytest
from layers import EDGES, HIDDEN, IDS, MASK, assert_same, decoder, experts

from moec.compiler.ir import B, Graph, Miss, T, Value
from moec.compiler.ops.elementwise import ADD, MUL
from moec.compiler.ops.routing import COMBINE
from moec.compiler.ops.shape import RESHAPE
from moec.compiler.ops.sources import INPUT
from moec.passes.residual import gather_residuals

X = INPUT(name="x", dtype="f32", shape=(B, T, HIDDEN))
R = INPUT(name="r", dtype="f32", shape=(B, T, HIDDEN))
ROUTED = experts(X, 0).node.inputs[0]
SHARED = experts(X, 0).node.inputs[1]


def base(value: Value) -> Value | None:
    """What is added to the routed experts right where they are combined."""
    inner = value.node.inputs[0] if value.op is RESHAPE else value
    return inner.node.inputs[1] if inner.op is ADD and inner.node.inputs[0].op is COMBINE else None


@pytest.mark.parametrize(
    "total",
    [ADD(R, ROUTED), ADD(ROUTED, R), ADD(R, ADD(ROUTED, SHARED)), ADD(ADD(SHARED, ROUTED), R)],
    ids=["routed last", "routed first", "shared inside", "shared before"],
)
def test_all_additions_become_the_base(total: Value) -> None:
    before = Graph((X, R, IDS, MASK), (total,))
    after = gather_residuals(before, [])
    assert base(after.outputs[0]) is not None
    assert sum(node.op is ADD for node in after) == sum(node.op is ADD for node in before)
    for sizes in EDGES:
        assert_same(before, after, **sizes)


def test_a_model_keeps_its_numbers() -> None:
    before = decoder(2)
    after = gather_residuals(before, [])
    assert after != before
    for sizes in EDGES:
        assert_same(before, after, **sizes)


def test_a_sum_that_is_read_twice_stays() -> None:
    inner = ADD(ROUTED, SHARED)
    after = gather_residuals(Graph((X, R), (ADD(R, inner), MUL(inner, inner))), [])
    total = after.outputs[0]
    assert base(total) is None
    assert total.node.inputs[0] == R


def test_what_broadcasts_stays() -> None:
    row = INPUT(name="row", dtype="f32", shape=(HIDDEN,))
    before = Graph((X, row), (ADD(ROUTED, row),))
    misses: list[Miss] = []
    assert gather_residuals(before, misses) == before
    assert not misses


def test_other_sums_stay() -> None:
    before = Graph((X, R), (ADD(X, ADD(R, SHARED)),))
    assert gather_residuals(before, []) == before
