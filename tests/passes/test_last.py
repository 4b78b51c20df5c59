"""Rows nobody reads are not computed, and a model that chooses its next token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from layers import EDGES, HIDDEN, VOCAB, apart, assert_same, decoder, running, weight

from moec.compiler.ir import B, Graph, T, Value
from moec.compiler.ops.dense import LINEAR
from moec.compiler.ops.elementwise import ADD, MUL, TANH
from moec.compiler.ops.norm import RMS_NORM
from moec.compiler.ops.reduce import CUMSUM
from moec.compiler.ops.shape import SLICE
from moec.compiler.ops.sources import INPUT, scalar
from moec.compiler.pipeline import run
from moec.compiler.text import read, show
from moec.passes.head import choosing, last_of
from moec.passes.last import take_rows_first
from moec.targets.cpu.pipeline import PASSES

X = INPUT(name="x", dtype="f32", shape=(B, T, HIDDEN))


def tail(x: Value = X) -> Value:
    """A norm, a head, and a soft cap as some models have it."""
    normed = RMS_NORM(x, weight("norm", HIDDEN), eps=1e-6)
    logits = LINEAR(normed, weight("head", VOCAB, HIDDEN))
    return MUL(TANH(MUL(logits, scalar(0.1, "f32"))), scalar(10.0, "f32"))


def test_rows_are_taken_first(golden: Callable[[str], None]) -> None:
    before = choosing(Graph((X,), (tail(),), ("logits",)))
    after = take_rows_first(before, [])
    golden(show(before) + "\n" + show(after))


def test_the_head_computes_one_row() -> None:
    before = choosing(decoder(2))
    after = take_rows_first(before, [])
    norm = next(node for node in after if node.op is RMS_NORM and node.inputs[1] == weight("norm", HIDDEN))
    assert norm.types[0].shape == (B, 1, HIDDEN)
    assert after.outputs[2].shape == (B, 1, VOCAB)
    assert running(after) == running(before)
    assert read(show(after)) == after
    for sizes in EDGES:
        assert_same(before, after, **sizes)


@pytest.mark.parametrize("latent", [True, False])
def test_all_passes_leave_the_token(latent: bool) -> None:
    before = choosing(decoder(2, latent=latent))
    after, _ = run(before, PASSES)
    for sizes in EDGES:
        assert_same(before, after, **sizes)


def test_what_others_read_too_stays() -> None:
    whole = tail()
    before = Graph((X,), (last_of(whole), whole), ("last", "all"))
    assert take_rows_first(before, []) == before


@pytest.mark.parametrize("mixed", [CUMSUM(X, axis=1), ADD(X, CUMSUM(X, axis=1))])
def test_nothing_is_cut_before_rows_are_mixed(mixed: Value) -> None:
    before = Graph((X,), (last_of(tail(mixed)),), ("last",))
    after = take_rows_first(before, [])
    (cut,) = (node for node in after if node.op is SLICE)
    assert cut.inputs[0] == mixed
    assert_same(before, after)


def test_a_weight_that_was_computed_is_no_weight() -> None:
    per_token = INPUT(name="gain", dtype="f32", shape=(B, T, VOCAB))
    before = Graph((X, per_token), (last_of(MUL(tail(), per_token)),), ("last",))
    assert take_rows_first(before, []) == before


def test_columns_are_left_to_others() -> None:
    before = Graph((X,), (SLICE(tail(), axis=2, start=0, stop=3),), ("part",))
    assert take_rows_first(before, []) == before


def test_what_is_no_language_model_has_no_next_token() -> None:
    with pytest.raises(ValueError, match="gives no logits of tokens"):
        choosing(apart())
