"""The interpreter: sizes from feeds, weights from their source, double precision, memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from arrays import Recording

from moec.compiler import slices as sliced
from moec.compiler.interpret import Unfit, bind, evaluate, interpret
from moec.compiler.ir import DTYPES, B, Graph, L, Op, S, T, Value, make
from moec.compiler.ops import cache, dense, elementwise, layout, reduce, region, shape, sources
from moec.compiler.slices import evaluate_rows

rng = np.random.default_rng(0)


def real(*sizes: int) -> Any:
    return rng.standard_normal(sizes).astype(np.float32)


def source(name: str, *sizes: Any, dtype: str = "f32") -> Value:
    return sources.INPUT(name=name, dtype=dtype, shape=sizes)


def weight(name: str, *sizes: int, dtype: str = "f32") -> Value:
    return sources.CONSTANT(name=name, dtype=dtype, shape=sizes)


def test_binds_sizes_that_need_others_first() -> None:
    graph = Graph(
        (source("mask", B, S + T), source("past", B, L), source("ids", B, T)), (source("ids", B, T),)
    )
    feeds = {"mask": real(2, 7), "past": real(2, 9), "ids": real(2, 3)}
    assert bind(graph, feeds) == {B: 2, T: 3, S: 4, L: 9}
    assert bind(graph, feeds | {"mask": real(2, 3)})[S] == 0


def test_binds_multiples() -> None:
    graph = Graph((source("x", 2 * T + 1), source("y", B * T, B)), (source("x", 2 * T + 1),))
    assert bind(graph, {"x": real(7), "y": real(6, 2)}) == {T: 3, B: 2}


@pytest.mark.parametrize(("changed", "sentence"), [
    ({"ids": None}, "no feed for ids; the graph takes mask, ids"),
    ({"extra": (2,)}, "the graph has no input extra; it takes mask, ids"),
    ({"ids": (2, 3, 1)}, r"ids was fed \[2, 3, 1\], but is f32\[B, T\]"),
    ({"ids": (3, 3)}, "axis 0 of ids is 3, but must be B = 2, as other inputs say B = 2"),
    ({"ids": (2, 8)}, r"axis 1 of mask is 7, but must be S \+ 8 for some size S"),
])  # fmt: skip
def test_feeds_that_do_not_fit(changed: dict[str, Any], sentence: str) -> None:
    graph = Graph((source("mask", B, S + T), source("ids", B, T)), (source("ids", B, T),))
    sizes = {"mask": (2, 7), "ids": (2, 3)} | changed
    with pytest.raises(Unfit, match=sentence):
        interpret(graph, {name: real(*size) for name, size in sizes.items() if size is not None}, {})


def test_fixed_sizes_and_halves_must_fit() -> None:
    with pytest.raises(Unfit, match="axis 0 of x is 4, but must be 3"):
        bind(Graph((source("x", 3),), (source("x", 3),)), {"x": real(4)})
    with pytest.raises(Unfit, match=r"axis 0 of x is 4, but must be 2\*T \+ 1 for some size T"):
        bind(Graph((source("x", 2 * T + 1),), ()), {"x": real(4)})


def test_wrong_dtypes_are_refused() -> None:
    graph = Graph((source("x", B),), (elementwise.NEG(source("x", B)),))
    with pytest.raises(Unfit, match=r"x is float64\[2\], but must be float32\[2\]"):
        interpret(graph, {"x": np.zeros(2)}, {})
    assert interpret(graph, {"x": np.zeros(2)}, {}, double=True)["out.0"].dtype == np.float64


def test_a_size_that_no_input_fixes() -> None:
    graph = Graph((source("x", B),), (shape.IOTA(size=S, dtype="i64"),))
    with pytest.raises(Unfit, match="the size S is not fixed by the shape of any input"):
        interpret(graph, {"x": real(2)}, {})


def test_sizes_are_filled_into_attributes() -> None:
    x = source("x", B, T, 4)
    graph = Graph(
        (x,), (shape.RESHAPE(x, shape=(B * T, 4)), shape.IOTA(size=T + 1, dtype="i32")), ("rows", "places")
    )
    result = interpret(graph, {"x": real(2, 3, 4)}, {})
    assert list(result) == ["rows", "places"]
    assert result["rows"].shape == (6, 4)
    assert result["places"].tolist() == [0, 1, 2, 3]


def test_an_input_outside_the_graph_is_an_error() -> None:
    with pytest.raises(Unfit, match="input y is read, but is not among the graph's inputs"):
        interpret(Graph((), (elementwise.NEG(source("y", 2)),)), {}, {})


def test_a_result_of_another_type_is_an_error() -> None:
    wrong = Op("wrong", lambda x: (x,), lambda x: x[:1])
    graph = Graph((source("x", B),), (wrong(source("x", B), origin="layers.3"),))
    with pytest.raises(
        Unfit, match=r"the result of wrong is float32\[1\], but must be float32\[2\]  \[from layers.3\]"
    ):
        interpret(graph, {"x": real(2)}, {})


def test_weights_from_a_mapping_or_a_reader() -> None:
    x, w = source("x", B, 4), weight("w", 3, 4)
    graph, feeds, array = Graph((x,), (dense.LINEAR(x, w),)), {"x": real(2, 4)}, real(3, 4)
    for given in ({"w": array}, Recording(w=array)):
        np.testing.assert_allclose(interpret(graph, feeds, given)["out.0"], feeds["x"] @ array.T, rtol=1e-6)
    with pytest.raises(Unfit, match="no weight w; 1 others were given"):
        interpret(graph, feeds, {"v": array})
    with pytest.raises(Unfit, match=r"w is float32\[4, 3\], but must be float32\[3, 4\]"):
        interpret(graph, feeds, {"w": array.T})


def test_double_precision_is_double_throughout() -> None:
    x, w = source("x", B, 64), weight("w", 8, 64)
    y = elementwise.MUL(dense.LINEAR(x, w), sources.scalar(0.1, "f32"))
    y = elementwise.ADD(elementwise.CAST(elementwise.CAST(y, dtype="bf16"), dtype="f32"),
                        elementwise.CAST(shape.IOTA(size=8, dtype="i64"), dtype="f32"))  # fmt: skip
    y = elementwise.ADD(y, shape.FULL(shape=(8,), value=0.3, dtype="f32"))
    feeds, array = {"x": real(2, 64)}, real(8, 64)
    result = interpret(Graph((x,), (y,)), feeds, {"w": array}, double=True)["out.0"]
    exact = feeds["x"].astype(float) @ array.T.astype(float) * float(np.float32(0.1)) + np.arange(8) + 0.3
    np.testing.assert_allclose(result, exact, rtol=1e-14)
    assert not np.allclose(interpret(Graph((x,), (y,)), feeds, {"w": array})["out.0"], exact, rtol=1e-9)


def test_double_precision_leaves_integers_alone() -> None:
    ids = source("ids", B, dtype="i64")
    graph = Graph((ids,), (elementwise.CAST(ids, dtype="i32"), sources.scalar(3, "i64")))
    result = interpret(graph, {"ids": np.array([1, 2])}, {}, double=True)
    assert [array.dtype for array in result.values()] == [np.int32, np.int64]


def test_region_bodies_share_sizes_weights_and_precision() -> None:
    past, mask = source("past", B, 1, L, 2), source("mask", B, S + T, dtype="i64")
    inner = Graph((past, mask), (elementwise.MUL(cache.FILLED(past, mask), weight("w", 2)),))
    outer_past, outer_mask = source("p", B, 1, L, 2), source("m", B, S + T, dtype="i64")
    call = region.REGION(elementwise.NEG(outer_past), outer_mask, kind="k", body=inner)
    feeds = {"p": real(1, 1, 6, 2), "m": np.ones((1, 4), np.int64), "ids": real(3)}
    graph = Graph((outer_past, outer_mask, source("ids", T)), (call,))
    result = interpret(graph, feeds, {"w": np.array([2, 3], np.float32)}, double=True)["out.0"]
    np.testing.assert_array_equal(result, -feeds["p"][:, :, :4].astype(float) * [2, 3], strict=True)


def test_several_results_and_outputs_that_are_inputs() -> None:
    x = source("x", B, 5)
    node = make(reduce.TOP_K, x, k=2)
    result = interpret(Graph((x,), (node[1], x, node[1])), {"x": real(2, 5)}, {})
    assert [array.shape for array in result.values()] == [(2, 2), (2, 5), (2, 2)]


def test_no_batch_at_all() -> None:
    x = source("x", B, T, 4)
    y = reduce.SOFTMAX(dense.LINEAR(shape.RESHAPE(x, shape=(B * T, 4)), weight("w", 3, 4)), axis=1)
    assert interpret(Graph((x,), (y,)), {"x": real(0, 3, 4)}, {"w": real(3, 4)})["out.0"].shape == (0, 3)


def test_arrays_are_dropped_after_their_last_reader() -> None:
    x = source("x", B)
    y = x
    for _ in range(50):
        y = elementwise.NEG(y)
    feeds = {"x": real(1 << 18)}  # 1 MiB
    tracemalloc.start()
    interpret(Graph((x,), (y,)), feeds, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def experts(count: int) -> tuple[Value, Recording, Any]:
    """Gate and up projections of each expert, scaled, merged and packed."""
    gate, up, scale = real(count, 6, 4), real(count, 6, 4), real(1, 6, 1)
    merged = shape.CONCAT(weight("gate", count, 6, 4), weight("up", count, 6, 4), axis=1)
    scaled = elementwise.MUL(merged, shape.CONCAT(*[weight("scale", 1, 6, 1)] * 2, axis=1))
    flat = shape.RESHAPE(scaled, shape=(count, 12, 2, 2))
    turned = shape.RESHAPE(shape.TRANSPOSE(flat, perm=(0, 1, 3, 2)), shape=(count, 12, 4))
    value = layout.PACK(shape.SLICE(turned, axis=2, start=1, stop=4), lanes=8, halves=2)
    return value, Recording(gate=gate, up=up, scale=scale), {"gate": gate, "up": up, "scale": scale}


def test_rows_of_experts_are_read_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    value, weights, arrays = experts(5)
    monkeypatch.setattr(sliced, "CHUNK_BYTES", 2 * 4 * int(np.prod(value.shape[1:], dtype=int)))
    slices = list(evaluate_rows(value, weights))
    assert [len(part) for part in slices] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(slices), evaluate(value, arrays), strict=True)
    assert [read for read in weights.reads if read[0] == "gate"] == [
        ("gate", 0, 2),
        ("gate", 2, 4),
        ("gate", 4, 5),
    ]
    assert [read for read in weights.reads if read[0] == "scale"] == [("scale", 0, None)]


@pytest.mark.parametrize("value", [
    shape.TRANSPOSE(weight("w", 6, 6), perm=(1, 0)),
    shape.CONCAT(weight("w", 6, 6), weight("w", 6, 6), axis=0),
    shape.SLICE(shape.CONCAT(weight("w", 6, 6), weight("w", 6, 6), axis=0), axis=0, start=3, stop=9),
    shape.SLICE(weight("w", 6, 6), axis=0, start=0, stop=6),
    shape.RESHAPE(weight("w", 6, 6), shape=(4, 9)),
    elementwise.ADD(weight("w", 6, 6), weight("v", 6)),
    elementwise.ADD(weight("v", 6), weight("w", 6, 6)),
    elementwise.NEG(shape.TRANSPOSE(weight("w", 6, 6), perm=(1, 0))),
    layout.PACK(weight("w", 6, 6), lanes=4),
    layout.PACK(weight("w", 6, 6), lanes=2),
    layout.PACK(weight("w", 6, 6), lanes=2, halves=2),
    layout.PACK(shape.CONCAT(weight("w", 6, 6), weight("w", 6, 6), axis=1), lanes=4),
    layout.PACK(weight("w", 6, 6), lanes=1),
    layout.UNPACK(layout.PACK(weight("w", 6, 6), lanes=1), rows=6),
    reduce.SUM(weight("w", 6, 6), axes=(0,), keepdims=True),
    reduce.SUM(weight("w", 6, 6), axes=(0, 1), keepdims=False),
    shape.SLICE(weight("w", 6, 6), axis=0, start=2, stop=2),
    make(reduce.TOP_K, weight("w", 6, 6), k=2)[1],
    elementwise.MUL(weight("w", 6, 6), sources.literal_of(np.arange(36, dtype=np.float32).reshape(6, 6))),
], ids=repr)  # fmt: skip
def test_rows_are_those_of_the_whole(value: Value, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced, "CHUNK_BYTES", 48)
    arrays = {"w": real(6, 6), "v": real(6)}
    for weights in (arrays, Recording(**arrays)):
        parts = list(evaluate_rows(value, weights))
        whole = evaluate(value, arrays)
        np.testing.assert_array_equal(np.concatenate(parts) if whole.ndim else parts[0], whole, strict=True)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f8e4m3"])
def test_small_floats_are_weights_too(dtype: str) -> None:
    array = real(3, 4).astype(DTYPES[dtype])
    result = evaluate(elementwise.CAST(weight("w", 3, 4, dtype=dtype), dtype="f32"), {"w": array})
    np.testing.assert_array_equal(result, array.astype(np.float32), strict=True)
