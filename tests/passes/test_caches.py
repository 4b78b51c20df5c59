"""Which inputs become bf16 or codes, and that nothing else does."""

from __future__ import annotations

import numpy as np
import pytest

from moec.compiler.ir import HALVES, B, Graph, L, S, T, Value
from moec.compiler.ops.cache import APPEND, FILLED
from moec.compiler.ops.coded import DECODE_ROWS
from moec.compiler.ops.dense import LINEAR
from moec.compiler.ops.elementwise import ADD
from moec.compiler.ops.reduce import SUM
from moec.compiler.ops.shape import SLICE
from moec.compiler.ops.sources import CONSTANT, INPUT
from moec.compiler.pipeline import Check, random_feeds, run
from moec.passes.caches import NarrowCaches
from moec.passes.coded import CodeLatents

MASK = INPUT(name="attention_mask", dtype="i64", shape=(B, S + T))
PAST = INPUT(name="past.0.key", dtype="f32", shape=(B, 2, L, 8))
ROWS = INPUT(name="rows", dtype="f32", shape=(B, 2, T, 8))


def narrowed(*outputs: Value, dtype: str = "bf16") -> Graph:
    return NarrowCaches(dtype)(Graph((MASK, PAST, ROWS), outputs), [])


@pytest.mark.parametrize("dtype", HALVES)
def test_a_cache_comes_and_goes_in_half_the_bytes_and_is_read_in_f32(dtype: str) -> None:
    present = APPEND(PAST, ROWS, MASK)
    graph = narrowed(present, FILLED(present, MASK), dtype=dtype)
    assert [value.type.dtype for value in graph.inputs] == ["i64", dtype, "f32"]
    assert [value.type.dtype for value in graph.outputs] == [dtype, "f32"]
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


def projected(name: str, rows: Value) -> tuple[Value, Value]:
    """A cache of latents after a step, and what a weight makes of its rows."""
    present = APPEND(INPUT(name=name, dtype="f32", shape=PAST.shape), rows, MASK)
    return present, LINEAR(FILLED(present, MASK), CONSTANT(name="w", dtype="f32", shape=(8, 8)))


@pytest.mark.parametrize(("format", "codes"), [("fp8", "u8"), ("int8", "i8")])
def test_latents_become_codes_with_scales_for_each_row(format: str, codes: str) -> None:
    first, made = projected("past.0.key", ROWS)
    second, _ = projected("past.1.key", SLICE(made, axis=2, start=S, stop=S + T))
    keys = APPEND(INPUT(name="past.0.value", dtype="f32", shape=PAST.shape), ROWS, MASK)
    outputs = (made, first, keys, second)
    names = ("logits", "present.0.key", "present.0.value", "present.1.key")
    inputs = (MASK, ROWS, *(each.node.inputs[0] for each in outputs[1:]))
    before = Graph(inputs, outputs, names)
    check = Check({"w": np.eye(8, dtype=np.float32)}, random_feeds(before, {B: 2, T: 3, S: 5, L: 9}))
    graph, _ = run(before, (NarrowCaches(), CodeLatents(format)), check=check)
    assert {value.node.attrs["name"]: str(value.type) for value in graph.inputs[2:]} == {
        "past.0.key": f"{codes}[B, 2, L, 8]",
        "past.0.value": "bf16[B, 2, L, 8]",
        "past.1.key": "bf16[B, 2, L, 8]",  # which nothing projects
        "past.0.scale": "f32[B, 2, L, 1]",
    }
    assert graph.names == (*names, "present.0.scale")
    assert [value.type.dtype for value in graph.outputs] == ["f32", codes, "bf16", "bf16", "f32"]
    assert sum(node.op is DECODE_ROWS for node in graph) == 1


def test_without_latents_there_are_no_codes() -> None:
    graph = narrowed(APPEND(PAST, ROWS, MASK))
    assert CodeLatents("fp8")(graph, []) == graph
