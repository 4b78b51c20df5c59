"""Latent attention is found in its dataflow, whatever the family spells, and computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from layers import (
    EDGES,
    HEADS,
    HIDDEN,
    LATENT,
    MASK,
    NOPE,
    ROPE,
    VALUE,
    assert_same,
    count,
    feeds_of,
    grouped_attention,
    latent_attention,
    weights_of,
)  # fmt: skip

from moec.compiler.interpret import interpret
from moec.compiler.ir import B, Graph, L, Miss, S, T, Value
from moec.compiler.ops.latent import LATENT_ATTENTION
from moec.compiler.ops.sources import INPUT
from moec.compiler.text import show
from moec.passes.fold import fold
from moec.passes.mla import fuse_mla

X = INPUT(name="x", dtype="f32", shape=(B, T, HIDDEN))


def layer(
    attention: Callable[..., Any] = latent_attention, extra: tuple[Value, ...] = (), **options: Any
) -> Graph:
    out, caches = attention(X, 0, **options)
    pasts = [cache.node.inputs[0] for cache in caches]
    ids = INPUT(name="input_ids", dtype="i64", shape=(B, T))
    return Graph((X, ids, MASK, *pasts, *extra), (out, *caches), ("out", "key", "value"))


FORMS = (
    {"lora": True},
    {"lora": False},
    {"pairs": ("interleaved", "interleaved")},
    {"pairs": ("halves", "halves")},
    {"pairs": None},
)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_becomes_one_op_and_gives_the_same_numbers(form: dict[str, Any]) -> None:
    before = layer(**form)
    misses: list[Miss] = []
    after = fuse_mla(before, misses)
    assert not misses
    found = count(after)
    assert found["latent_attention"] == 1
    assert not found.keys() & {"sdpa", "filled", "causal_mask"}
    for sizes in EDGES:
        assert_same(before, after, **sizes)


def test_what_the_layer_becomes(golden: Callable[[str], None]) -> None:
    golden(show(fold(fuse_mla(layer(lora=False), []), [])))


@pytest.mark.parametrize("turned", [True, False])
def test_the_op_means_what_it_expands_to(turned: bool) -> None:
    def entry(name: str, dtype: str, *shape: Any) -> Value:
        return INPUT(name=name, dtype=dtype, shape=shape)

    angles = [entry(name, "f32", B, T, ROPE // 2) for name in ("cos", "sin")] if turned else []
    pairs = ("interleaved", "halves") if turned else ("none", "none")
    operands = (
        entry("q", "f32", B, T, HEADS * (NOPE + ROPE)),
        *angles,
        entry("latent", "f32", B, 1, L, LATENT),
        entry("keys", "f32", B, 1, L, ROPE),
        entry("attention_mask", "i64", B, S + T),
        entry("w", "f32", HEADS * (NOPE + VALUE), LATENT),
    )
    value = LATENT_ATTENTION(
        *operands, heads=HEADS, nope=NOPE, value=VALUE, scale=0.3, pairs_in=pairs[0], pairs_out=pairs[1]
    )
    assert LATENT_ATTENTION.expand
    expanded = LATENT_ATTENTION.expand(*operands, **value.node.attrs)
    for sizes in EDGES:
        assert_same(Graph(operands, (value,)), Graph(operands, tuple(expanded)), **sizes)


def test_a_token_that_sees_no_key_gives_zero() -> None:
    graph = fuse_mla(layer(), [])
    feeds = feeds_of(graph, cached=0, new=2)
    feeds["attention_mask"][0] = (0, 1)
    out = interpret(graph, feeds, weights_of(graph), double=True)["out"]
    assert (out[0, 0] == 0).all()
    assert (out[0, 1] != 0).any()


OTHER_MASK = INPUT(name="other_mask", dtype="i64", shape=(B, S + T))
SEEN = INPUT(name="seen", dtype="bool", shape=(B, 1, T, S + T))
COMPUTED = INPUT(name="w", dtype="f32", shape=(HEADS * (NOPE + VALUE), LATENT))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"mask": OTHER_MASK, "extra": (OTHER_MASK,)}, "latent and rotated key are masked differently"),
        ({"causal": SEEN, "extra": (SEEN,)}, "attention is not causal over the cache's own mask"),
        (
            {"w_kvb": COMPUTED, "extra": (COMPUTED,)},
            "the projection to keys and values has a computed weight",
        ),
    ],
    ids=["mask", "causal", "weight"],
)
def test_a_near_miss_is_left_and_says_why(options: dict[str, Any], reason: str) -> None:
    before = layer(**options)
    misses: list[Miss] = []
    assert fuse_mla(before, misses) == before
    assert [miss.reason for miss in misses] == [reason]


def test_other_attention_is_left_alone() -> None:
    before = layer(grouped_attention)
    misses: list[Miss] = []
    assert fuse_mla(before, misses) == before
    assert not misses
