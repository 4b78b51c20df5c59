"""The gated feed-forward of dense layers and shared experts."""

from __future__ import annotations

from typing import Any

import pytest

from moec.compiler.ir import B, Graph, Miss, T, Value
from moec.compiler.ops import dense, elementwise, shape
from moec.compiler.ops.routing import SWIGLU
from moec.compiler.ops.sources import CONSTANT, INPUT
from moec.compiler.text import show
from moec.passes.experts import fuse_swiglu

H, I = 6, 5  # noqa: E741


def entry(name: str, *sizes: Any) -> Value:
    return INPUT(name=name, dtype="f32", shape=sizes)


def linear(x: Value, name: str, width: int = I, bias: bool = False) -> Value:
    w = CONSTANT(name=name, dtype="f32", shape=(width, x.shape[-1]))
    return dense.LINEAR(x, w, *([CONSTANT(name=f"{name}.bias", dtype="f32", shape=(width,))] if bias else []))


def activated(gate: Value, spelled_out: bool = False) -> Value:
    return elementwise.MUL(gate, elementwise.SIGMOID(gate)) if spelled_out else elementwise.SILU(gate)


def mlp(x: Value, bias: bool = False, spelled_out: bool = False, swapped: bool = False) -> Value:
    factors = (activated(linear(x, "gate", bias=bias), spelled_out), linear(x, "up", bias=bias))
    return linear(elementwise.MUL(*(factors[::-1] if swapped else factors)), "down", H)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("spelled_out", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_two_projections(bias: bool, spelled_out: bool, swapped: bool, unchanged: Any) -> None:
    x = entry("x", B, T, H)
    graph, misses = Graph((x,), (mlp(x, bias, spelled_out, swapped),)), list[Miss]()
    fused = fuse_swiglu(graph, misses)
    assert [node.op for node in fused if node.op in (dense.LINEAR, SWIGLU, elementwise.MUL)] == [
        dense.LINEAR,
        SWIGLU,
        dense.LINEAR,
    ]
    assert misses == []
    for tokens in (0, 1, 3):
        unchanged(graph, fused, {B: 2, T: tokens})


def halves(h: Value, first: int = 0) -> Value:
    gate, up = (shape.SLICE(h, axis=h.type.rank - 1, start=s, stop=s + I) for s in (first, I - first))
    return elementwise.MUL(activated(gate), up)


def test_one_projection(unchanged: Any) -> None:
    x = entry("x", B, T, H)
    graph = Graph((x,), (halves(linear(x, "both", 2 * I)),))
    fused = fuse_swiglu(graph, [])
    assert fused.outputs[0].op is SWIGLU
    unchanged(graph, fused, {B: 2, T: 3})


def test_fuse_swiglu_golden(golden: Any) -> None:
    x = entry("x", B, T, H)
    golden(show(fuse_swiglu(Graph((x,), (mlp(x), halves(linear(x, "both", 2 * I)))), [])))


def near(graph: Graph) -> list[str]:
    misses: list[Miss] = []
    assert fuse_swiglu(graph, misses) is graph
    return [miss.reason for miss in misses]


def test_near_misses() -> None:
    x, y = entry("x", B, T, H), entry("y", B, T, H)
    gate = linear(x, "gate")
    product = elementwise.MUL(activated(gate), linear(x, "up"))
    other = elementwise.MUL(activated(gate), linear(y, "up"))
    assert near(Graph((x,), (product, elementwise.NEG(gate)))) == ["the gate projection is used twice"]
    assert near(Graph((x, y), (other,))) == ["the gate and up projections read different tensors"]
    uneven = elementwise.MUL(activated(gate), linear(x, "up", bias=True))
    assert "are not alike" in near(Graph((x,), (uneven,)))[0]
    assert near(Graph((x,), (halves(linear(x, "both", 2 * I), first=I),))) == [
        "the second half is the gate, not the first"
    ]


def test_left_alone() -> None:
    x, y = entry("x", B, T, H), entry("y", B, T, H)
    gelu = elementwise.MUL(elementwise.GELU(linear(x, "gate")), linear(x, "up"))
    assert near(Graph((x, y), (gelu, elementwise.MUL(elementwise.SILU(x), y), elementwise.SILU(x)))) == []
