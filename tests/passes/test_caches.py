"""Which inputs become bf16, and that nothing else does."""

from __future__ import annotations

from moec.compiler.ir import B, Graph, L, S, T, Value
from moec.compiler.ops.cache import APPEND, FILLED
from moec.compiler.ops.elementwise import ADD
from moec.compiler.ops.reduce import SUM
from moec.compiler.ops.sources import INPUT
from moec.passes.caches import NarrowCaches

MASK = INPUT(name="attention_mask", dtype="i64", shape=(B, S + T))
PAST = INPUT(name="past.0.key", dtype="f32", shape=(B, 2, L, 8))
ROWS = INPUT(name="rows", dtype="f32", shape=(B, 2, T, 8))


def narrowed(*outputs: Value) -> Graph:
    return NarrowCaches()(Graph((MASK, PAST, ROWS), outputs), [])


def test_a_cache_comes_and_goes_in_bf16_and_is_read_in_f32() -> None:
    present = APPEND(PAST, ROWS, MASK)
    graph = narrowed(present, FILLED(present, MASK))
    assert [value.type.dtype for value in graph.inputs] == ["i64", "bf16", "f32"]
    assert [value.type.dtype for value in graph.outputs] == ["bf16", "f32"]
    assert graph.outputs[0].op is APPEND


def test_layers_that_follow_each_other() -> None:
    other = INPUT(name="past.1.key", dtype="f32", shape=PAST.shape)
    first = APPEND(PAST, ROWS, MASK)
    second = APPEND(other, ADD(ROWS, SUM(FILLED(first, MASK), axes=(2,), keepdims=True)), MASK)
    graph = NarrowCaches()(Graph((MASK, PAST, other, ROWS), (first, second)), [])
    assert [value.type.dtype for value in graph.inputs] == ["i64", "bf16", "bf16", "f32"]
    assert [value.type.dtype for value in graph.outputs] == ["bf16", "bf16"]


def test_what_is_read_otherwise_stays() -> None:
    graph = narrowed(APPEND(PAST, ROWS, MASK), ADD(PAST, PAST))
    assert [value.type.dtype for value in graph.inputs] == ["i64", "f32", "f32"]
    assert [value.type.dtype for value in graph.outputs] == ["f32", "f32"]
