"""Experts as the model families spell them, and as nobody should."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from moec.compiler.ir import Graph, Miss, T, Value, make, plain
from moec.compiler.ops import dense, elementwise, index, reduce, shape
from moec.compiler.ops.sources import CONSTANT, INPUT, scalar
from moec.compiler.text import show
from moec.passes.routing import lower_routing

E, K, H, I = 8, 3, 6, 5  # noqa: E741
mul = elementwise.MUL
ROWS = plain(K * T)


def entry(name: str, *sizes: Any, dtype: str = "f32") -> Value:
    return INPUT(name=name, dtype=dtype, shape=sizes)


def weight(name: str, *sizes: int) -> Value:
    return CONSTANT(name=name, dtype="f32", shape=sizes)


def ops_in(graph: Graph) -> list[str]:
    return [node.op.name for node in graph if node.inputs]


IDS, WEIGHTS, X = entry("ids", T, K, dtype="i64"), entry("weights", T, K), entry("x", T, H)
INPUTS = (X, IDS, WEIGHTS)


@dataclass(frozen=True)
class Grouped:
    """Experts on rows sorted by expert."""

    turned: bool = True  # weights lie as [E, N, K] and are transposed
    argsort: bool = False  # the inverse order by sorting, not by writing numbers
    late: bool = False  # weighted after the rows are back slot by slot
    split: bool = False  # gate and up as two products
    activation: Callable[[Value], Value] = elementwise.SILU
    sorted_counts: bool = True
    axes: tuple[int, ...] = (1,)

    def out(self) -> Value:
        slots, y, order = self.rows()
        del slots
        flat = shape.RESHAPE(WEIGHTS, shape=(ROWS,))
        if not self.late:
            y = mul(y, shape.RESHAPE(index.TAKE(flat, order, axis=0), shape=(ROWS, 1)))
        back = shape.RESHAPE(index.TAKE(y, self.inverse(order), axis=0), shape=(T, K, H))
        if self.late:
            back = mul(back, shape.RESHAPE(WEIGHTS, shape=(T, K, 1)))
        return reduce.SUM(back, axes=self.axes, keepdims=False)

    def rows(self) -> tuple[Value, Value, Value]:
        slots = shape.RESHAPE(IDS, shape=(ROWS,))
        values, order = make(reduce.SORT, slots).values
        rows = index.TAKE(X, elementwise.FLOOR_DIVIDE(order, scalar(K, "i64")), axis=0)
        counts = index.BINCOUNT(values if self.sorted_counts else slots, bins=E)
        ends = elementwise.CAST(reduce.CUMSUM(counts, axis=0), dtype="i32")
        if self.split:
            gate, up = (self.product(rows, name, I, ends) for name in ("gate", "up"))
        else:
            h = self.product(rows, "gate_up", 2 * I, ends)
            gate, up = (shape.SLICE(h, axis=1, start=start, stop=start + I) for start in (0, I))
        return slots, self.product(mul(self.activation(gate), up), "down", H, ends), order

    def product(self, rows: Value, name: str, width: int, ends: Value) -> Value:
        depth = rows.shape[1]
        assert isinstance(depth, int)
        lying = weight(name, E, width, depth) if self.turned else weight(name, E, depth, width)
        return dense.GROUPED_MM(rows, shape.TRANSPOSE(lying, perm=(0, 2, 1)) if self.turned else lying, ends)

    def inverse(self, order: Value) -> Value:
        if self.argsort:
            return make(reduce.SORT, order)[1]
        numbers = shape.IOTA(size=ROWS, dtype="i64")
        return index.SCATTER_ROWS(shape.FULL(shape=(ROWS,), value=0, dtype="i64"), order, numbers)


@dataclass(frozen=True)
class Batched:
    """Experts on a matrix fetched for each row."""

    matrix_first: bool = True
    tokens: str = "expanded"
    late: bool = False

    def out(self) -> Value:
        h = self.product(self.rows(), "gate_up", 2 * I)
        gate, up = (shape.SLICE(h, axis=1, start=start, stop=start + I) for start in (0, I))
        y = self.product(mul(elementwise.SILU(gate), up), "down", H)
        if self.late:
            slots = shape.RESHAPE(y, shape=(T, K, H))
            return reduce.SUM(mul(slots, shape.RESHAPE(WEIGHTS, shape=(T, K, 1))), axes=(1,), keepdims=False)
        weighted = mul(y, shape.RESHAPE(WEIGHTS, shape=(ROWS, 1)))
        return reduce.SUM(shape.RESHAPE(weighted, shape=(T, K, H)), axes=(1,), keepdims=False)

    def rows(self) -> Value:
        if self.tokens == "expanded":
            spread = shape.EXPAND(shape.RESHAPE(X, shape=(T, 1, H)), shape=(T, K, H))
            return shape.RESHAPE(spread, shape=(ROWS, H))
        if self.tokens == "divided":
            slot = shape.IOTA(size=ROWS, dtype="i64")
            return index.TAKE(X, elementwise.FLOOR_DIVIDE(slot, scalar(K, "i64")), axis=0)
        token = shape.RESHAPE(shape.IOTA(size=T, dtype="i64"), shape=(T, 1))
        return index.TAKE(X, shape.RESHAPE(shape.EXPAND(token, shape=(T, K)), shape=(ROWS,)), axis=0)

    def product(self, rows: Value, name: str, width: int) -> Value:
        depth = rows.shape[1]
        assert isinstance(depth, int)
        slots = shape.RESHAPE(IDS, shape=(ROWS,))
        if self.matrix_first:
            fetched = index.TAKE(weight(name, E, width, depth), slots, axis=0)
            product = dense.MATMUL(fetched, shape.RESHAPE(rows, shape=(ROWS, depth, 1)))
        else:
            fetched = index.TAKE(weight(name, E, depth, width), slots, axis=0)
            product = dense.MATMUL(shape.RESHAPE(rows, shape=(ROWS, 1, depth)), fetched)
        return shape.RESHAPE(product, shape=(ROWS, width))


EXPERTS: dict[str, Grouped | Batched] = {
    "grouped": Grouped(),
    "grouped, weights as read": Grouped(turned=False),
    "grouped, inverse by sorting": Grouped(argsort=True),
    "grouped, weighted late": Grouped(late=True),
    "grouped, gate and up apart": Grouped(split=True),
    "grouped, counts of the unsorted": Grouped(sorted_counts=False),
    "batched": Batched(),
    "batched, rows first": Batched(matrix_first=False),
    "batched, slots divided": Batched(tokens="divided"),
    "batched, tokens numbered": Batched(tokens="numbered"),
    "batched, weighted late": Batched(late=True),
}
ALL_IDS: Sequence[Any] = (
    np.zeros((0, K), int),
    [[7, 0, 3]],
    [[5, 5, 5], [5, 5, 5]],
    [[0, 1, 2], [2, 1, 0], [6, 2, 1], [1, 2, 6]],
)


@pytest.mark.parametrize("experts", EXPERTS.values(), ids=EXPERTS)
def test_experts(experts: Grouped | Batched, unchanged: Any, golden: Any) -> None:
    graph, misses = Graph(INPUTS, (experts.out(),)), list[Miss]()
    lowered = lower_routing(graph, misses)
    known = ["permute", "grouped_matmul", "swiglu", "grouped_matmul", "combine"]
    assert [name for name in ops_in(lowered) if name not in ("transpose", "concat")] == known
    assert misses == []
    for ids in ALL_IDS:
        unchanged(graph, lowered, {T: len(ids)}, ids=ids)
    golden(show(lowered))


def test_weights_lie_as_they_are_stored() -> None:
    lowered = lower_routing(Graph(INPUTS, (Grouped().out(),)), [])
    assert "transpose" not in ops_in(lowered)
    lowered = lower_routing(Graph(INPUTS, (Grouped(turned=False).out(),)), [])
    assert ops_in(lowered).count("transpose") == 2


def near(graph: Graph) -> list[str]:
    misses: list[Miss] = []
    assert lower_routing(graph, misses) is graph
    return [miss.reason for miss in misses]


def test_near_experts() -> None:
    gelu = Graph(INPUTS, (Grouped(activation=elementwise.GELU).out(),))
    assert near(gelu) == ["between the experts' products is no silu(gate) * up"]
    wrong_axis = Graph(INPUTS, (Grouped(axes=(2,)).out(),))
    assert near(wrong_axis) == ["the experts' results f32[T, 3, 6] are not summed over the chosen"]
    _, y, order = Grouped().rows()
    assert near(Graph(INPUTS, (elementwise.NEG(y),))) == [
        "the experts' results go to neg, not to a sum over the chosen"
    ]
    twice = Graph(INPUTS, (Grouped().out(), elementwise.NEG(y)))
    assert near(twice) == ["the experts' results are used 2 times, not summed over the chosen"]
    slots = shape.RESHAPE(index.TAKE(y, order, axis=0), shape=(T, K, H))
    unsorted = reduce.SUM(slots, axes=(1,), keepdims=False)
    assert near(Graph(INPUTS, (unsorted,))) == ["the experts' results are not weighted and put back"]


def test_experts_in_another_order_are_left_alone() -> None:
    """As many rows go to each expert as should, but not the tokens that chose it."""
    slots = shape.RESHAPE(IDS, shape=(ROWS,))
    order = make(reduce.SORT, elementwise.NEG(slots))[1]
    right = Grouped().rows()[1].node.inputs[2]
    rows = index.TAKE(X, elementwise.FLOOR_DIVIDE(order, scalar(K, "i64")), axis=0)
    h = Grouped().product(rows, "gate_up", 2 * I, right)
    gate, up = (shape.SLICE(h, axis=1, start=start, stop=start + I) for start in (0, I))
    y = Grouped().product(mul(elementwise.SILU(gate), up), "down", H, right)
    graph = Graph(INPUTS, (reduce.SUM(shape.RESHAPE(y, shape=(T, K, H)), axes=(1,), keepdims=False),))
    assert near(graph) == ["the experts' rows do not lie in the order of their experts"]


def test_experts_do_not_need_a_known_gate(unchanged: Any) -> None:
    logits = entry("logits", T, E)
    best = make(reduce.TOP_K, elementwise.SQRT(elementwise.SOFTPLUS(logits)), k=K)
    experts = Graph((X, logits), (Grouped().out(),)).replace({IDS: best[1], WEIGHTS: best[0]})
    lowered = lower_routing(experts, [])
    assert ops_in(lowered).count("combine") == 1
    unchanged(experts, lowered, {T: 4})
