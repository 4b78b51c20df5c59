"""Norm and routing ops: the reference against the op in simple ops, at the sizes where such ops break."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moec.compiler.interpret import interpret
from moec.compiler.ir import DTYPES, B, Graph, T, TypeMismatch, Value, make
from moec.compiler.ops import cache, norm, routing
from moec.compiler.ops.sources import INPUT

RANDOM = np.random.default_rng(3)


def entry(name: str, *shape: Any, dtype: str = "f32") -> Value:
    return INPUT(name=name, dtype=dtype, shape=shape)


def agree(op: Any, feeds: dict[str, np.ndarray], *inputs: Value, **attrs: Any) -> list[np.ndarray]:
    """The op's results, equal in float64 to those of its expansion."""
    node = make(op, *inputs, **attrs)
    spelled = op.expand(*inputs, **node.attrs)
    assert [value.type for value in spelled] == list(node.types)
    results, expected = (
        list(interpret(Graph(inputs, tuple(outputs)), feeds, {}, double=True).values())
        for outputs in (node.values, spelled)
    )
    for got, want in zip(results, expected):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)
    return results


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_rms_norm(tokens: int) -> None:
    x, w = RANDOM.standard_normal((2, tokens, 6)), RANDOM.standard_normal(6)
    (got,) = agree(norm.RMS_NORM, {"x": x, "w": w}, entry("x", B, T, 6), entry("w", 6), eps=1e-6)
    np.testing.assert_allclose(got, w * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6), rtol=1e-12)


def test_rms_norm_of_bfloat16_averages_in_float32() -> None:
    x, w = entry("x", 1, 1024, dtype="bf16"), entry("w", 1024, dtype="bf16")
    feeds = {name: np.full(value.shape, 3, DTYPES["bf16"]) for name, value in (("x", x), ("w", w))}
    (got,) = interpret(Graph((x, w), (norm.RMS_NORM(x, w, eps=0.0),)), feeds, {}).values()
    np.testing.assert_array_equal(got.astype(np.float32), 3)  # summed in bfloat16 it would stop at 256 * 9


@pytest.mark.parametrize("pairs_in", norm.PAIRS)
@pytest.mark.parametrize("pairs_out", norm.PAIRS)
@pytest.mark.parametrize("tokens", [0, 1, 4])
def test_rotary(pairs_in: str, pairs_out: str, tokens: int) -> None:
    x, angle = RANDOM.standard_normal((2, 3, tokens, 8)), RANDOM.standard_normal((2, 1, tokens, 4))
    inputs = entry("x", B, 3, T, 8), entry("cos", B, 1, T, 4), entry("sin", B, 1, T, 4)
    feeds = {"x": x, "cos": np.cos(angle), "sin": np.sin(angle)}
    (got,) = agree(norm.ROTARY, feeds, *inputs, pairs_in=pairs_in, pairs_out=pairs_out)
    x1, x2 = (x[..., 0::2], x[..., 1::2]) if pairs_in == "interleaved" else (x[..., :4], x[..., 4:])
    o1, o2 = (got[..., 0::2], got[..., 1::2]) if pairs_out == "interleaved" else (got[..., :4], got[..., 4:])
    np.testing.assert_allclose(o1 + 1j * o2, (x1 + 1j * x2) * np.exp(1j * angle), rtol=1e-12)


TOP2 = {"group_score": "top2"}
GATES = (
    {"scores": "softmax", "k": 2, "normalise": False, "scale": 1.0},
    {"scores": "softmax", "k": 8, "normalise": True, "scale": 1.0},
    {"scores": "softmax", "k": 3, "groups": 4, "keep": 2, "normalise": False, "scale": 16.0},
    {"scores": "sigmoid", "k": 2, "groups": 4, "keep": 1, "normalise": True, "scale": 2.5} | TOP2,
    {"scores": "sigmoid", "k": 8, "groups": 2, "keep": 2, "normalise": True, "scale": 2.5} | TOP2,
)


@pytest.mark.parametrize("attrs", GATES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_gate(attrs: dict[str, Any], biased: bool, tokens: int) -> None:
    logits, bias = RANDOM.standard_normal((tokens, 8)), RANDOM.standard_normal(8)
    inputs = (entry("logits", T, 8), entry("bias", 8))[: 1 + biased]
    feeds = dict(zip(("logits", "bias")[: 1 + biased], (logits, bias)))
    ids, weights = agree(routing.TOP_K_GATE, feeds, *inputs, eps=1e-20, **attrs)
    assert all(len(set(row)) == attrs["k"] for row in ids)
    if attrs["normalise"]:
        np.testing.assert_allclose(weights.sum(1), attrs["scale"])
    groups, keep = attrs.get("groups", 1), attrs.get("keep", 1)
    assert all(len(set(row // (8 // groups))) <= keep for row in ids)


def test_gate_breaks_ties_by_the_lower_index() -> None:
    attrs = {"scores": "sigmoid", "k": 3, "groups": 2, "keep": 1, "normalise": True, "eps": 0.0, "scale": 1.0}
    ids, weights = agree(routing.TOP_K_GATE, {"logits": np.zeros((2, 8))}, entry("logits", T, 8), **attrs)
    np.testing.assert_array_equal(ids, [[0, 1, 2]] * 2)
    np.testing.assert_allclose(weights, 1 / 3)


def test_gate_refuses_to_keep_too_few_experts() -> None:
    with pytest.raises(TypeMismatch, match="1 of 4 groups of 8 experts do not leave 3 to choose from"):
        make(routing.TOP_K_GATE, entry("logits", T, 8), scores="softmax", k=3, groups=4, keep=1,
             normalise=False, eps=0.0, scale=1.0)  # fmt: skip


IDS = {
    "spread": [[2, 0], [1, 3], [2, 1]],
    "one expert": [[3, 3], [3, 3]],
    "last experts idle": [[0, 1]],
    "no token": np.zeros((0, 2), int),
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_experts(ids: Any) -> None:
    """Permute, both products and combine together are the sum over each token's experts."""
    ids = np.asarray(ids, dtype=np.int64)
    x, weights = RANDOM.standard_normal((len(ids), 5)), RANDOM.standard_normal(ids.shape)
    up, down = RANDOM.standard_normal((4, 6, 5)), RANDOM.standard_normal((4, 5, 3))
    order, ends = agree(routing.PERMUTE, {"ids": ids}, entry("ids", T, 2, dtype="i64"), experts=4)
    assert ends[-1] == ids.size
    rows = entry("x", T, 5), entry("order", 2 * T, dtype="i64"), entry("ends", 4, dtype="i64")
    feeds = {"x": x, "order": order, "ends": ends, "w": up}
    (h,) = agree(routing.GROUPED_MATMUL, feeds, *rows, entry("w", 4, 6, 5), share=2)
    (h,) = agree(routing.SWIGLU, {"x": h}, entry("x", T, 6))
    rows = entry("x", 2 * T, 3), *rows[1:]
    (y,) = agree(routing.GROUPED_MATMUL, feeds | {"x": h, "w": down}, *rows, entry("w", 4, 5, 3), share=0)
    inputs = entry("y", 2 * T, 5), rows[1], entry("weights", T, 2)
    (got,) = agree(routing.COMBINE, {"y": y, "order": order, "weights": weights}, *inputs)
    expected = np.zeros((len(ids), 5))
    for m, j in np.ndindex(ids.shape):
        gate, linear = np.split(up[ids[m, j]] @ x[m], 2)
        expected[m] += weights[m, j] * (down[ids[m, j]] @ (gate / (1 + np.exp(-gate)) * linear))
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


def test_products_read_only_the_experts_chosen() -> None:
    w = np.full((4, 2, 2), np.nan)
    w[1] = np.eye(2)
    feeds = {"x": np.ones((1, 2)), "order": np.array([0]), "ends": np.array([0, 1, 1, 1]), "w": w}
    rows = entry("x", T, 2), entry("order", T, dtype="i64"), entry("ends", 4, dtype="i64")
    (got,) = agree(routing.GROUPED_MATMUL, feeds, *rows, entry("w", 4, 2, 2), share=1)
    np.testing.assert_array_equal(got, np.ones((1, 2)))


@pytest.mark.parametrize(
    ("rows", "span"),
    [
        ([[1]], [[0, 1]]),
        ([[1, 1, 1], [0, 0, 1]], [[0, 3], [2, 3]]),
        ([[1, 1, 0, 0], [0, 1, 0, 0]], [[0, 2], [1, 2]]),
        ([[0, 7], [0, 0]], [[1, 2], [2, 2]]),
        ([[0, 0, 0]], [[3, 0]]),
    ],
    ids=["one", "padding on the left", "wider than what is seen", "none in one", "none"],
)
def test_span(rows: list[list[int]], span: list[list[int]]) -> None:
    (got,) = agree(cache.SPAN, {"mask": np.array(rows)}, entry("mask", B, T, dtype="i64"))
    np.testing.assert_array_equal(got, span)
