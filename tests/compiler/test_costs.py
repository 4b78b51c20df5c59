"""Bytes per token: of caches, and of the weights that a token reads."""

from __future__ import annotations

from moec.compiler import costs
from moec.compiler.ir import B, Graph, L, S, T, Value
from moec.compiler.ops import cache, dense, index, routing
from moec.compiler.ops.sources import CONSTANT, INPUT


def weight(name: str, *shape: int) -> Value:
    return CONSTANT(name=name, dtype="f32", shape=shape)


def test_a_cache_grows_by_one_row_a_token() -> None:
    mask = INPUT(name="mask", dtype="i64", shape=(B, S + T))
    past = [
        INPUT(name=f"past.0.{kind}", dtype="f32", shape=(B, 3, L, width))
        for kind, width in (("k", 5), ("v", 7))
    ]
    graph = Graph((mask, *past), tuple(cache.FILLED(each, mask) for each in past))
    assert costs.cache_bytes(graph) == 3 * (5 + 7) * 4


def test_a_lookup_reads_one_row_and_a_product_all_of_a_weight_they_share() -> None:
    ids, table = INPUT(name="ids", dtype="i64", shape=(B, T)), weight("table", 100, 8)
    embedded = index.TAKE(table, ids, axis=0)
    assert costs.active_bytes(Graph((ids,), (embedded,))) == 8 * 4
    assert costs.active_bytes(Graph((ids,), (dense.LINEAR(embedded, table),))) == 100 * 8 * 4


def test_of_experts_the_chosen_are_read() -> None:
    x = INPUT(name="x", dtype="f32", shape=(B * T, 4))
    order = INPUT(name="order", dtype="i64", shape=(3 * B * T,))
    ends = INPUT(name="ends", dtype="i64", shape=(8,))
    rows = routing.GROUPED_MATMUL(x, order, ends, weight("experts", 8, 6, 4), share=3)
    assert costs.active_bytes(Graph((x, order, ends), (rows,))) == 3 * 6 * 4 * 4
