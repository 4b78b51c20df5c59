"""Folding takes nodes away and nothing else: not numbers, not types."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from layers import EDGES, assert_same, decoder

from moec.compiler.interpret import interpret
from moec.compiler.ir import B, Graph, S, T, Value
from moec.compiler.ops.cache import CAUSAL_MASK
from moec.compiler.ops.elementwise import ADD, CAST, COS, DIV, FLOOR_DIVIDE, MUL, NEG, POW, SUB
from moec.compiler.ops.shape import CONCAT, EXPAND, FULL, RESHAPE, SLICE, TRANSPOSE
from moec.compiler.ops.sources import INPUT, LITERAL, literal_of, scalar
from moec.passes.fold import fold

X = INPUT(name="x", dtype="f32", shape=(2, 3, 4))
Y = INPUT(name="y", dtype="f32", shape=(2, 3, 5))
ROWS = INPUT(name="rows", dtype="f32", shape=(B, 1, T, 4))
MASK = INPUT(name="mask", dtype="i64", shape=(B, S + T))
IDS = INPUT(name="ids", dtype="i64", shape=(B, T))
BOTH = CONCAT(X, Y, axis=2)
SWAP = (1, 0, 2)


def folded(value: Value) -> Value:
    return fold(Graph((), (value,)), []).outputs[0]


def columns(x: Value, start: int, stop: int, step: int = 1) -> Value:
    return SLICE(x, axis=x.type.rank - 1, start=start, stop=stop, step=step)


CASES: dict[str, tuple[Value, Value]] = {
    "same shape": (RESHAPE(X, shape=(2, 3, 4)), X),
    "reshape twice": (RESHAPE(RESHAPE(X, shape=(24,)), shape=(4, 6)), RESHAPE(X, shape=(4, 6))),
    "reshape there and back": (RESHAPE(RESHAPE(X, shape=(24,)), shape=(2, 3, 4)), X),
    "transpose there and back": (TRANSPOSE(TRANSPOSE(X, perm=SWAP), perm=SWAP), X),
    "transpose twice": (TRANSPOSE(TRANSPOSE(X, perm=SWAP), perm=(2, 1, 0)), TRANSPOSE(X, perm=(2, 0, 1))),
    "transpose of a size 1": (TRANSPOSE(ROWS, perm=(0, 2, 1, 3)), RESHAPE(ROWS, shape=(B, T, 1, 4))),
    "whole slice": (columns(X, 0, 4), X),
    "slice twice": (columns(columns(X, 1, 4), 1, 3), columns(X, 2, 4)),
    "first piece": (columns(BOTH, 0, 4), X),
    "second piece": (columns(BOTH, 4, 9), Y),
    "part of a piece": (columns(BOTH, 5, 7), columns(Y, 1, 3)),
    "several pieces": (columns(CONCAT(Y, X, Y, axis=2), 5, 14), CONCAT(X, Y, axis=2)),
    "through cos": (columns(COS(CONCAT(X, X, axis=2)), 0, 4), COS(X)),
    "through a scaled cos": (
        columns(MUL(COS(BOTH), scalar(0.5, "f32")), 4, 9),
        MUL(COS(Y), scalar(0.5, "f32")),
    ),
    "slices joined": (CONCAT(columns(X, 0, 1), columns(X, 1, 4), axis=2), X),
    "concat of one": (CONCAT(X, axis=0), X),
    "same dtype": (CAST(X, dtype="f32"), X),
    "wider and back": (CAST(CAST(X, dtype="f64"), dtype="f32"), X),
    "same size": (EXPAND(X, shape=(2, 3, 4)), X),
    "expand that broadcasts": (
        MUL(X, EXPAND(scalar(2.0, "f32"), shape=(2, 3, 4))),
        MUL(X, scalar(2.0, "f32")),
    ),
    "plus 0": (ADD(FULL(shape=(), value=0.0, dtype="f32"), X), X),
    "minus 0": (SUB(X, scalar(0.0, "f32")), X),
    "times 1": (MUL(scalar(1.0, "f32"), X), X),
    "over 1": (DIV(X, scalar(1.0, "f32")), X),
    "to the 1": (POW(X, scalar(1.0, "f32")), X),
    "arithmetic": (ADD(scalar(2, "i64"), scalar(3, "i64")), scalar(5, "i64")),
    "exact floats": (MUL(scalar(0.5, "f32"), scalar(3.0, "f32")), scalar(1.5, "f32")),
    "ids that are only counted": (
        CAUSAL_MASK(MASK, IDS),
        CAUSAL_MASK(MASK, FULL(shape=(B, T), value=0, dtype="i64")),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_changes_nothing_goes(case: str) -> None:
    before, after = CASES[case]
    assert before != after
    assert folded(before) == after


@pytest.mark.parametrize(
    "value",
    [
        RESHAPE(X, shape=(6, 4)),
        TRANSPOSE(X, perm=SWAP),
        columns(X, 0, 4, 2),
        columns(BOTH, 3, 5),
        columns(NEG(X), 0, 2),
        CONCAT(columns(X, 1, 4), columns(X, 0, 1), axis=2),
        CAST(CAST(X, dtype="f16"), dtype="f32"),
        SUB(scalar(0.0, "f32"), X),
        DIV(scalar(1.0, "f32"), X),
        MUL(scalar(1.0, "f32"), EXPAND(columns(X, 0, 1), shape=(2, 3, 4))),
        ADD(EXPAND(columns(X, 0, 1), shape=(2, 3, 4)), columns(X, 1, 2)),
    ],
    ids=str,
)
def test_what_changes_something_stays(value: Value) -> None:
    assert folded(value).type == value.type
    assert folded(value) == value or len(Graph((), (folded(value),))) < len(Graph((), (value,)))


def test_a_rounded_result_is_not_written_down() -> None:
    third = DIV(scalar(1.0, "f32"), scalar(3.0, "f32"))
    assert folded(third) == third


def test_floor_division_and_moves_of_literals() -> None:
    data = literal_of(np.arange(6, dtype=np.int64).reshape(2, 3))
    value = folded(FLOOR_DIVIDE(TRANSPOSE(data, perm=(1, 0)), scalar(2, "i64")))
    assert value.op is LITERAL
    assert value.shape == (3, 2)


@pytest.mark.parametrize("latent", [True, False])
def test_a_whole_model_gives_the_same_numbers(latent: bool) -> None:
    before = decoder(2, latent=latent)
    after = fold(before, [])
    assert fold(after, []) == after
    for sizes in EDGES:
        assert_same(before, after, **sizes)


def moves(source: np.random.Generator) -> list[Callable[[Value], Value]]:
    def cut(x: Value) -> Value:
        axis = int(source.integers(x.type.rank))
        start, stop = sorted(int(i) for i in source.integers(0, int(x.shape[axis]) + 1, 2))
        return SLICE(x, axis=axis, start=start, stop=stop) if start < stop else x

    def turn(x: Value) -> Value:
        return TRANSPOSE(x, perm=tuple(int(i) for i in source.permutation(x.type.rank)))

    def flat(x: Value) -> Value:
        return RESHAPE(x, shape=(int(x.type.elements),))

    def tall(x: Value) -> Value:
        return RESHAPE(x, shape=(1, *x.shape))

    def twice(x: Value) -> Value:
        return CONCAT(x, NEG(x), axis=int(source.integers(x.type.rank)))

    def bent(x: Value) -> Value:
        return COS(ADD(x, scalar(float(source.integers(2)), "f32")))

    return [cut, turn, flat, tall, twice, bent]


@pytest.mark.parametrize("seed", range(40))
def test_random_moves_give_the_same_numbers(seed: int) -> None:
    source = np.random.default_rng(seed)
    value = X
    for _ in range(10):
        value = moves(source)[source.integers(6)](value)
    before = Graph((X,), (value,))
    after = fold(before, [])
    assert len(after) <= len(before)
    feeds = {"x": source.standard_normal((2, 3, 4))}
    expected, found = (interpret(graph, feeds, {}, double=True)["out.0"] for graph in (before, after))
    np.testing.assert_array_equal(found, expected)
