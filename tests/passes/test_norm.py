"""RMSNorm and rotary embedding as the model families spell them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moec.compiler.ir import B, Graph, Miss, T, Value
from moec.compiler.ops import elementwise, norm, reduce, shape
from moec.compiler.ops.sources import CONSTANT, INPUT, scalar
from moec.compiler.text import show
from moec.passes.norm import fuse_rms_norm, fuse_rotary

mul, add, div, cast = elementwise.MUL, elementwise.ADD, elementwise.DIV, elementwise.CAST
N, R = 3, 8


def entry(name: str, *sizes: Any, dtype: str = "f32") -> Value:
    return INPUT(name=name, dtype=dtype, shape=sizes)


def weight(*sizes: int, dtype: str = "f32") -> Value:
    return CONSTANT(name="w", dtype=dtype, shape=sizes)


def mean_of_squares(x: Value, square: Value | None = None) -> Value:
    square = elementwise.POW(x, scalar(2.0, "f32")) if square is None else square
    return reduce.MEAN(square, axes=(x.type.rank - 1,), keepdims=True)


def inverse(x: Value, mean: Value | None = None) -> Value:
    mean = mean_of_squares(x) if mean is None else mean
    return elementwise.RSQRT(add(mean, scalar(1e-6, "f32")))


def root(x: Value) -> Value:
    return elementwise.SQRT(add(mean_of_squares(x), scalar(1e-6, "f32")))


SPELLINGS: dict[str, Callable[[Value, Value], Value]] = {
    "w * (x * r)": lambda x, w: mul(w, mul(x, inverse(x))),
    "(x * r) * w": lambda x, w: mul(mul(x, inverse(x)), w),
    "(w * x) * r": lambda x, w: mul(mul(w, x), inverse(x)),
    "x * (r * w)": lambda x, w: mul(x, mul(inverse(x), w)),
    "x * x": lambda x, w: mul(w, mul(x, inverse(x, mean_of_squares(x, mul(x, x))))),
    "eps first": lambda x, w: mul(w, mul(x, elementwise.RSQRT(add(scalar(1e-6, "f32"), mean_of_squares(x))))),
    "power -1/2": lambda x, w: mul(
        w, mul(x, elementwise.POW(add(mean_of_squares(x), scalar(1e-6, "f32")), scalar(-0.5, "f32")))
    ),
    "x / root": lambda x, w: mul(w, div(x, root(x))),
    "(w * x) / root": lambda x, w: div(mul(w, x), root(x)),
    "sum / n": lambda x, w: mul(
        w, mul(x, inverse(x, div(reduce.SUM(mul(x, x), axes=(2,), keepdims=True), scalar(6.0, "f32"))))
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_rms_norm(spelling: Callable[[Value, Value], Value], unchanged: Any) -> None:
    x = entry("x", B, T, 6)
    graph, misses = Graph((x,), (spelling(x, weight(6)),)), []
    fused = fuse_rms_norm(graph, misses)
    assert [node.op for node in fused if node.inputs] == [norm.RMS_NORM]
    assert misses == []
    unchanged(graph, fused, {B: 2, T: 3})
    unchanged(graph, fused, {B: 1, T: 1})


def test_rms_norm_of_a_product_and_of_a_norm(unchanged: Any, golden: Any) -> None:
    x, w = entry("x", T, 6), weight(6)
    scaled = mul(x, scalar(3.0, "f32"))
    first = mul(w, mul(scaled, inverse(scaled)))
    graph = Graph((x,), (mul(w, mul(first, inverse(first))),))
    fused = fuse_rms_norm(graph, [])
    assert sum(node.op is norm.RMS_NORM for node in fused) == 2
    unchanged(graph, fused, {T: 3})
    golden(show(fused))


@pytest.mark.parametrize("weight_first", [True, False])
def test_rms_norm_in_bfloat16(weight_first: bool) -> None:
    """Both orders in which families cast: before the weight, or after it where the weight is float32."""
    x = entry("x", T, 6, dtype="bf16")
    wide = cast(x, dtype="f32")
    normed = mul(wide, inverse(wide))
    if weight_first:
        out = cast(mul(weight(6), normed), dtype="bf16")
    else:
        out = mul(weight(6, dtype="bf16"), cast(normed, dtype="bf16"))
    fused = fuse_rms_norm(Graph((x,), (out,)), [])
    assert sum(node.op is norm.RMS_NORM for node in fused) == 1
    assert fused.outputs[0].type == out.type


def test_rms_norm_near_misses() -> None:
    x, misses = entry("x", B, T, 6), list[Miss]()
    over_all = reduce.MEAN(mul(x, x), axes=(1, 2), keepdims=True)
    graph = Graph((x,), (mul(weight(6), mul(x, inverse(x, over_all))), mul(x, mul(x, inverse(x)))))
    assert fuse_rms_norm(graph, misses) is graph
    assert [miss.reason for miss in misses] == [
        "squares of f32[B, T, 6] are averaged to f32[B, 1, 1], not along the last axis alone",
        "an RMS norm of f32[B, T, 6] is scaled by f32[B, T, 6], not by one weight for each column",
    ]


def test_rms_norm_leaves_other_means_alone() -> None:
    x, y, misses = entry("x", T, 6), entry("y", T, 6), list[Miss]()
    graph = Graph((x, y), (mul(weight(6), mul(y, inverse(x))), mul(x, inverse(x)), mul(weight(6), mul(x, y))))
    assert fuse_rms_norm(graph, misses) is graph
    assert misses == []


def part(x: Value, start: int, stop: int, step: int = 1) -> Value:
    return shape.SLICE(x, axis=x.type.rank - 1, start=start, stop=stop, step=step)


def angles(doubled: bool) -> tuple[Value, Value, Value]:
    """(positions' angles, cos, sin), for all heads alike; doubled as [c|c]."""
    freqs = entry("freqs", B, T, R // 2)
    whole = shape.CONCAT(freqs, freqs, axis=2) if doubled else freqs
    scaled = (mul(op(whole), scalar(1.5, "f32")) for op in (elementwise.COS, elementwise.SIN))
    return freqs, *(shape.RESHAPE(v, shape=(B, 1, T, v.shape[2])) for v in scaled)


def turned(x1: Value, x2: Value, cos: Value, sin: Value) -> tuple[Value, Value]:
    return elementwise.SUB(mul(x1, cos), mul(x2, sin)), add(mul(x2, cos), mul(x1, sin))


def strided() -> Graph:
    """DeepSeek-V3: pairs are neighbours, the result lies in halves; half of doubled angles is used."""
    freqs, cos, sin = angles(doubled=True)
    q = entry("q", B, N, T, 12)
    x = part(q, 4, 12)
    halves = turned(part(x, 0, R, 2), part(x, 1, R, 2), part(cos, 0, R // 2), part(sin, 0, R // 2))
    return Graph((q, freqs), (shape.CONCAT(*halves, axis=3),))


def rotated_half() -> Graph:
    """Qwen3: pairs lie in halves, before and after."""
    freqs, cos, sin = angles(doubled=True)
    x = shape.TRANSPOSE(entry("q", B, T, N, R), perm=(0, 2, 1, 3))
    crossed = shape.CONCAT(elementwise.NEG(part(x, 4, 8)), part(x, 0, 4), axis=3)
    return Graph((x.node.inputs[0], freqs), (add(mul(x, cos), mul(crossed, sin)),))


def rotated_half_of_reordered() -> Graph:
    """Older DeepSeek-V3: neighbours are first brought into halves."""
    freqs, cos, sin = angles(doubled=True)
    q = entry("q", B, N, T, R)
    pairs = shape.TRANSPOSE(shape.RESHAPE(q, shape=(B, N, T, 4, 2)), perm=(0, 1, 2, 4, 3))
    x = shape.RESHAPE(pairs, shape=(B, N, T, R))
    crossed = shape.CONCAT(elementwise.NEG(part(x, 4, 8)), part(x, 0, 4), axis=3)
    return Graph((q, freqs), (add(mul(x, cos), mul(crossed, sin)),))


def complex_product(folded: bool) -> Graph:
    """DeepSeek-V2: a complex product, its real pairs neighbours before and after."""
    freqs, cos, sin = angles(doubled=False)
    q = entry("q", B, N, T, R)
    pairs = shape.RESHAPE(q, shape=(B, N, T, 4, 2))
    single = [shape.RESHAPE(part(pairs, i, i + 1), shape=(B, N, T, 4)) for i in (0, 1)]
    x1, x2 = single if folded else (part(q, 0, R, 2), part(q, 1, R, 2))
    real, imaginary = elementwise.SUB(mul(x1, cos), mul(x2, sin)), add(mul(x1, sin), mul(x2, cos))
    columns = (shape.RESHAPE(v, shape=(B, N, T, 4, 1)) for v in (real, imaginary))
    return Graph((q, freqs), (shape.RESHAPE(shape.CONCAT(*columns, axis=4), shape=(B, N, T, R)),))


ROTATIONS = {
    "strided": (strided(), "interleaved", "halves"),
    "rotated half": (rotated_half(), "halves", "halves"),
    "reordered": (rotated_half_of_reordered(), "interleaved", "halves"),
    "complex": (complex_product(folded=False), "interleaved", "interleaved"),
    "complex of pairs": (complex_product(folded=True), "interleaved", "interleaved"),
}


@pytest.mark.parametrize(("graph", "pairs_in", "pairs_out"), ROTATIONS.values(), ids=ROTATIONS)
def test_rotary(graph: Graph, pairs_in: str, pairs_out: str, unchanged: Any, golden: Any) -> None:
    misses: list[Miss] = []
    fused = fuse_rotary(graph, misses)
    (rotary,) = (node for node in fused if node.op is norm.ROTARY)
    assert (rotary.attrs["pairs_in"], rotary.attrs["pairs_out"]) == (pairs_in, pairs_out)
    assert rotary.inputs[1].shape == (B, 1, T, R // 2)
    assert not any(node.op in (shape.CONCAT, elementwise.SUB, elementwise.ADD) for node in fused)
    assert misses == []
    unchanged(graph, fused, {B: 2, T: 3})
    unchanged(graph, fused, {B: 1, T: 1})
    golden(show(fused))


def test_rotary_needs_pairs_of_one_tensor() -> None:
    freqs, cos, sin = angles(doubled=False)
    a, b = entry("a", B, N, T, R), entry("b", B, N, T, R)
    two = turned(part(a, 0, R, 2), part(b, 1, R, 2), cos, sin)
    overlapping = turned(part(a, 0, 4), part(a, 2, 6), cos, sin)
    graph = Graph((a, b, freqs), tuple(shape.CONCAT(*halves, axis=3) for halves in (two, overlapping)))
    assert fuse_rotary(graph, []) is graph


def test_rotary_needs_equal_halves_of_angles() -> None:
    x, cos, sin = (entry(name, B, T, R) for name in ("x", "cos", "sin"))
    crossed = shape.CONCAT(elementwise.NEG(part(x, 4, 8)), part(x, 0, 4), axis=2)
    misses: list[Miss] = []
    graph = Graph((x, cos, sin), (add(mul(x, cos), mul(crossed, sin)),))
    assert fuse_rotary(graph, misses) is graph
    assert [miss.reason for miss in misses] == ["a rotation's cos and sin are not two equal halves"]
