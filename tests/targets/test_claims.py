"""What the CPU kernels can not do is not claimed, and stays in ops that every runtime has."""

from __future__ import annotations

import pytest
from layers import HEADS, HIDDEN, MASK, ROPE, count, decoder, weight

from moec.compiler.ir import B, Graph, L, Miss, S, T, Value
from moec.compiler.ops.attention import SDPA
from moec.compiler.ops.cache import CAUSAL_MASK, FILLED
from moec.compiler.ops.dense import LINEAR
from moec.compiler.ops.elementwise import ADD, CAST
from moec.compiler.ops.norm import RMS_NORM, ROTARY
from moec.compiler.ops.routing import SWIGLU
from moec.compiler.ops.shape import FULL, RESHAPE, SLICE
from moec.compiler.ops.sources import CONSTANT, INPUT
from moec.compiler.pipeline import run
from moec.passes.partition import partition
from moec.targets.claims import CLAIMS
from moec.targets.cpu.pipeline import PASSES

X = INPUT(name="x", dtype="f32", shape=(B, T, HIDDEN))
Y = INPUT(name="y", dtype="f32", shape=(B, T, HIDDEN))
W = weight("w", HIDDEN, HIDDEN)
HEAD = INPUT(name="head", dtype="f32", shape=(B, HEADS, T, ROPE))
CACHE = INPUT(name="cache", dtype="f32", shape=(B, 1, L, ROPE))
OTHER = INPUT(name="other_mask", dtype="i64", shape=(B, S + T))


def claimed(*outputs: Value) -> tuple[dict[str, int], list[str]]:
    misses: list[Miss] = []
    graph = partition(Graph((X, Y, HEAD, CACHE, MASK), outputs), CLAIMS, misses)
    return count(graph), [miss.reason for miss in misses]


def angle(*shape: object) -> Value:
    return INPUT(name="angle", dtype="f32", shape=shape)


def attended(mask: Value, scores: Value) -> Value:
    return SDPA(HEAD, FILLED(CACHE, MASK), FILLED(CACHE, mask), scores, scale=0.5)


BLANK = FULL(shape=(B, T), value=0, dtype="i64")
HALVES = {"pairs_in": "halves", "pairs_out": "halves"}


@pytest.mark.parametrize(
    ("value", "left"),
    [
        (LINEAR(X, W, weight("bias", HIDDEN)), "linear"),
        (LINEAR(X, INPUT(name="w", dtype="f32", shape=(4, HIDDEN))), "linear"),
        (LINEAR(CAST(X, dtype="f64"), CONSTANT(name="w", dtype="f64", shape=(4, HIDDEN))), "linear"),
        (RMS_NORM(X, INPUT(name="w", dtype="f32", shape=(HIDDEN,)), eps=1e-6), "rms_norm"),
        (ROTARY(HEAD, angle(1, 1, T, ROPE // 2), angle(1, 1, T, ROPE // 2), **HALVES), "rotary"),
        (ROTARY(HEAD, angle(B, HEADS, T, 2), angle(B, HEADS, T, 2), **HALVES), "rotary"),
        (attended(OTHER, CAUSAL_MASK(MASK, BLANK)), "sdpa"),
        (attended(MASK, INPUT(name="seen", dtype="bool", shape=(B, 1, T, S + T))), "sdpa"),
        (SWIGLU(X), "swiglu"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_kernel_can_do_stays(value: Value, left: str) -> None:
    found, misses = claimed(value)
    assert found[left] == 1
    assert not misses


def test_a_projection_and_a_sum_that_broadcasts_stay_apart() -> None:
    found, _ = claimed(ADD(LINEAR(X, W), RESHAPE(weight("row", HIDDEN), shape=(1, HIDDEN))))
    assert found == {"add": 1, "linear": 1, "reshape": 1}


def test_a_product_that_is_read_twice_is_its_own_kernel() -> None:
    product = LINEAR(X, W)
    found, misses = claimed(ADD(product, Y), SWIGLU(product))
    assert found == {"add": 1, "linear": 1, "swiglu": 1}
    assert misses == ["no linear_swiglu kernel: f32[B, T, 8] from linear inside it is also read by add"]


def test_a_product_added_to_its_own_operand_is_two_nodes() -> None:
    found, misses = claimed(ADD(LINEAR(X, W), X))
    assert found == {"add": 1, "linear": 1}
    assert misses == ["no linear_add kernel: two of its operands are one value"]


def test_a_norm_reads_columns_in_place() -> None:
    part = SLICE(X, axis=2, start=2, stop=5)
    found, _ = claimed(RMS_NORM(part, weight("n", 3), eps=1e-6), ADD(part, part))
    assert found == {"add": 1, "rms_norm": 1, "slice": 1}


def test_nothing_is_refused_in_a_whole_model() -> None:
    for latent in (True, False):
        misses: list[Miss] = []
        run(decoder(2, latent=latent), PASSES, misses=misses)
        assert not misses
