"""The graph core: types, interning, rewriting."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import sympy

from moec.compiler import ir
from moec.compiler.ir import B, Graph, L, S, T, Type, TypeMismatch, make, plain
from moec.compiler.ops import dense, elementwise, reduce, region, shape, sources


def source(name: str, *sizes: ir.Dim, dtype: str = "f32") -> ir.Value:
    return sources.INPUT(name=name, dtype=dtype, shape=sizes)


def test_sizes_are_equal_however_they_are_written() -> None:
    assert Type("f32", (B * (S + T),)) == Type("f32", (B * T + S * B,))
    assert type(plain(sympy.Integer(3))) is int
    assert type(plain(np.int64(3))) is int
    assert plain(S + T - S) == T
    assert plain(2 * T / T) == 2
    assert Type("f32", (B, 3, T)).elements == 3 * B * T
    assert Type("f32", ()).elements == 1


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(TypeMismatch, match="unknown dtype 'f33'; known: f64"):
        Type("f33", ())


def test_equal_nodes_are_one_object() -> None:
    x = source("x", B, 4)
    assert elementwise.NEG(x) == elementwise.NEG(x)
    assert elementwise.NEG(x, origin="a") == elementwise.NEG(x, origin="b")
    assert elementwise.NEG(x).node is elementwise.NEG(x).node
    assert elementwise.NEG(x) != elementwise.ABS(x)
    assert shape.RESHAPE(x, shape=(2 * (B + B),)) == shape.RESHAPE(x, shape=(4 * B,))


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (1, True), (0.0, -0.0)])
def test_attributes_that_python_holds_equal_stay_apart(one: float, other: float) -> None:
    first = shape.FULL(shape=(2,), value=one, dtype="f32")
    second = shape.FULL(shape=(2,), value=other, dtype="f32")
    assert first != second
    assert repr(second.node.attrs["value"]) == repr(other)


def test_nan_is_interned() -> None:
    one, other = (shape.FULL(shape=(2,), value=float("nan"), dtype="f32") for _ in range(2))
    assert one == other


def test_attributes_are_plain_and_complete() -> None:
    cut = shape.SLICE(source("x", 4), axis=0, start=np.int64(1), stop=sympy.Integer(3))
    assert cut == shape.SLICE(source("x", 4), step=1, axis=0, start=1, stop=3)
    assert dict(cut.node.attrs) == {"axis": 0, "start": 1, "step": 1, "stop": 3}
    assert {type(attr) for attr in cut.node.attrs.values()} == {int}


def test_interned_nodes_die_with_their_last_reader() -> None:
    gc.collect()
    before = len(ir._interned)
    value = source("short-lived", 7)
    for _ in range(20_000):
        value = elementwise.NEG(value)
    assert len(ir._interned) >= before + 20_000
    del value
    gc.collect()
    assert len(ir._interned) <= before


def test_error_names_op_operands_and_origin() -> None:
    with pytest.raises(TypeMismatch) as caught:
        elementwise.ADD(source("x", B, 4), source("y", T, 4), origin="layers.0")
    assert str(caught.value) == (
        "add(f32[B, 4], f32[T, 4]): shapes [B, 4] and [T, 4] do not broadcast: B is not T  [from layers.0]"
    )


@pytest.mark.parametrize("call", [
    lambda x: elementwise.ADD(x),
    lambda x: elementwise.NEG(x, x),
    lambda x: elementwise.NEG(x, axis=1),
    lambda x: shape.SLICE(x, axis=0, start=0),
])  # fmt: skip
def test_wrong_operands_or_attributes_are_a_type_mismatch(call: object) -> None:
    with pytest.raises(TypeMismatch, match="the op takes"):
        call(source("x", 4))  # type: ignore[operator]


def test_nodes_come_operands_first_and_unreached_ones_not_at_all() -> None:
    x, w = source("x", B, 4), source("w", 3, 4)
    y = dense.LINEAR(x, w)
    elementwise.NEG(y)
    graph = Graph((x, w), (elementwise.ADD(y, y),))
    assert [node.op.name for node in graph] == ["input", "input", "linear", "add"]
    assert len(graph) == 4
    assert graph.users() == {x: [y.node], w: [y.node], y: [graph.outputs[0].node]}


def test_unread_inputs_stay() -> None:
    x, unread = source("x", 2), source("unread", 2)
    assert source("unread", 2).node in set(Graph((x, unread), (elementwise.NEG(x),)))


def test_names_must_match_outputs() -> None:
    x = source("x", 2)
    with pytest.raises(TypeMismatch, match="2 outputs, but 1 names"):
        Graph((x,), (x, elementwise.NEG(x)), ("y",))


def test_rewrite_replaces_and_keeps() -> None:
    x = source("x", 2)
    graph = Graph((x,), (elementwise.EXP(elementwise.NEG(x)),), ("y",))
    swapped = graph.rewrite(
        lambda node, new: (elementwise.ABS(*new),) if node.op is elementwise.NEG else None
    )
    assert swapped == Graph((x,), (elementwise.EXP(elementwise.ABS(x)),), ("y",))
    assert graph.rewrite(lambda node, new: None) == graph


def test_rewrite_refuses_another_type() -> None:
    x = source("x", 2)
    graph = Graph((x,), (elementwise.NEG(x),))
    with pytest.raises(TypeMismatch, match=r"is f32\[2\] and may not become bool\[2\]"):
        graph.rewrite(lambda node, new: (elementwise.EQUAL(*new, *new),) if new else None)


def test_replace_may_use_original_values() -> None:
    x = source("x", 2, 8)
    y = make(reduce.TOP_K, elementwise.NEG(x), k=2)
    graph = Graph((x,), (elementwise.EXP(y[0]),))
    other = elementwise.ABS(shape.SLICE(x, axis=1, start=0, stop=2))
    assert graph.replace({y[0]: other}) == Graph((x,), (elementwise.EXP(other),))
    assert graph.replace({}) == graph


def test_replace_refuses_a_circle() -> None:
    x = source("x", 2)
    y = elementwise.NEG(x)
    with pytest.raises(ValueError, match="computed from the value that it replaces"):
        Graph((x,), (y,)).replace({y: elementwise.ABS(y)})


def test_a_wide_and_deep_graph_is_walked_once() -> None:
    value = source("x", 2)
    for _ in range(3_000):
        value = elementwise.ADD(value, value)  # 2**3000 paths
    assert len(Graph((source("x", 2),), (value,))) == 3_001


def test_graphs_are_values() -> None:
    x = source("x", B, L)
    bodies = [Graph((x,), (elementwise.NEG(x),)) for _ in range(2)]
    assert bodies[0] == bodies[1]
    assert hash(bodies[0]) == hash(bodies[1])
    calls = [region.REGION(source("z", B, L), kind="k", body=body) for body in bodies]
    assert calls[0] == calls[1]
