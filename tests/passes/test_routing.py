"""Gates and experts as the model families spell them, and as nobody should."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from moec.compiler.ir import Graph, Miss, T, Value, make, plain
from moec.compiler.ops import dense, elementwise, index, reduce, routing, shape
from moec.compiler.ops.sources import CONSTANT, INPUT, scalar
from moec.compiler.text import show
from moec.passes.gate import fuse_gate
from moec.passes.routing import lower_routing

E, K, H, I = 8, 3, 6, 5  # noqa: E741
add, mul, div = elementwise.ADD, elementwise.MUL, elementwise.DIV
ROWS = plain(K * T)
LOWEST = float("-inf")


def entry(name: str, *sizes: Any, dtype: str = "f32") -> Value:
    return INPUT(name=name, dtype=dtype, shape=sizes)


def weight(name: str, *sizes: int) -> Value:
    return CONSTANT(name=name, dtype="f32", shape=sizes)


def f32(number: float) -> Value:
    return scalar(number, "f32")


def full(value: Any, *sizes: Any, dtype: str = "f32") -> Value:
    return shape.FULL(shape=sizes, value=value, dtype=dtype)


LOGITS = entry("logits", T, E)


def graph_of(pair: tuple[Value, Value]) -> Graph:
    return Graph((LOGITS,), pair, ("ids", "weights"))


def ops_in(graph: Graph) -> list[str]:
    return [node.op.name for node in graph if node.inputs]


@dataclass(frozen=True)
class Gate:
    """A gate spelled out in simple ops, as the attributes tell."""

    scores: str = "sigmoid"
    axis: int = 1
    bias: bool = False
    groups: int = 0
    keep: int = 2
    group_score: str = "top2"
    masked: float = LOWEST
    k: int = K
    gathered: bool = True
    from_choice: bool = False
    normalise: bool = True
    eps: float | None = 1e-20
    scale: float | None = 2.5

    def spelled(self) -> tuple[Value, Value]:
        scores = reduce.SOFTMAX(LOGITS, axis=self.axis) if self.scores == "softmax" else elementwise.SIGMOID(LOGITS)
        choice = add(scores, weight("bias", E)) if self.bias else scores
        if self.groups:
            choice = elementwise.WHERE(self.dropped(choice), f32(self.masked), choice)
        best = make(reduce.TOP_K, choice, k=self.k)
        source = choice if self.from_choice else scores
        weights = index.GATHER_ALONG(source, best[1], axis=1) if self.gathered else best[0]
        if self.normalise:
            total = reduce.SUM(weights, axes=(1,), keepdims=True)
            weights = div(weights, total if self.eps is None else add(total, f32(self.eps)))
        return best[1], weights if self.scale is None else mul(weights, f32(self.scale))

    def dropped(self, choice: Value) -> Value:
        """Which experts are outside the groups kept."""
        grouped = shape.RESHAPE(choice, shape=(T, self.groups, E // self.groups))
        if self.group_score == "top2":
            strength = reduce.SUM(reduce.TOP_K(grouped, k=2), axes=(2,), keepdims=False)
        else:
            strength = reduce.MAX(grouped, axes=(2,), keepdims=False)
        kept = make(reduce.TOP_K, strength, k=self.keep)[1]
        mask = index.SCATTER_ALONG(full(0.0, T, self.groups), kept, full(1.0, T, self.keep), axis=1)
        mask = shape.EXPAND(shape.RESHAPE(mask, shape=(T, self.groups, 1)), shape=grouped.shape)
        return elementwise.LOGICAL_NOT(elementwise.CAST(shape.RESHAPE(mask, shape=(T, E)), dtype="bool"))


GATES = {
    "deepseek v2 greedy": Gate(scores="softmax", gathered=False, normalise=False, scale=None),
    "deepseek v2": Gate(
        scores="softmax", groups=4, group_score="max", masked=0.0, gathered=False, normalise=False, scale=16.0
    ),
    "deepseek v3": Gate(bias=True, groups=4),
    "one group": Gate(bias=True, groups=1, keep=1),
    "qwen3": Gate(scores="softmax", gathered=False, eps=None, scale=None),
    "longcat": Gate(scores="softmax", bias=True, normalise=False, scale=6.0),
    "all experts": Gate(k=E),
    "one expert": Gate(k=1, bias=True),
    "lowest float": Gate(bias=True, groups=4, masked=float(np.finfo(np.float32).min)),
}
ALL_LOGITS: Sequence[tuple[int, Any]] = (
    (0, np.zeros((0, E))),
    (1, np.arange(E)[None] / 3.0),
    (4, np.zeros((4, E))),
    (5, np.sin(np.arange(5 * E)).reshape(5, E)),
)


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_gate(gate: Gate, unchanged: Any, golden: Any) -> None:
    graph, misses = graph_of(gate.spelled()), list[Miss]()
    fused = fuse_gate(graph, misses)
    assert ops_in(fused) == ["top_k_gate"]
    assert misses == []
    for tokens, logits in ALL_LOGITS:
        unchanged(graph, fused, {T: tokens}, logits=logits)
    unchanged(graph, fused, {T: 5}, bias=np.zeros(E), logits=np.round(np.sin(np.arange(5 * E)).reshape(5, E)))
    golden(show(fused))


def test_softmax_of_the_chosen(unchanged: Any) -> None:
    best = make(reduce.TOP_K, LOGITS, k=K)
    graph = graph_of((best[1], reduce.SOFTMAX(best[0], axis=1)))
    fused = fuse_gate(graph, [])
    assert ops_in(fused) == ["top_k_gate"]
    for tokens, logits in ALL_LOGITS:
        unchanged(graph, fused, {T: tokens}, logits=logits)


def test_gate_whose_scores_serve_others_too(unchanged: Any) -> None:
    ids, weights = GATES["deepseek v3"].spelled()
    scores = elementwise.SIGMOID(LOGITS)
    graph = Graph((LOGITS,), (ids, weights, scores))
    fused = fuse_gate(graph, [])
    assert ops_in(fused) == ["top_k_gate", "sigmoid"]
    unchanged(graph, fused, {T: 4})


def odd_scores() -> tuple[Value, Value]:
    scores = elementwise.SQRT(elementwise.SOFTPLUS(LOGITS))
    best = make(reduce.TOP_K, scores, k=K)
    return best[1], best[0]


def biased_by_token() -> tuple[Value, Value]:
    scores = add(elementwise.SIGMOID(LOGITS), elementwise.NEG(LOGITS))
    best = make(reduce.TOP_K, scores, k=K)
    return best[1], index.GATHER_ALONG(elementwise.SIGMOID(LOGITS), best[1], axis=1)


def divided_by_the_largest() -> tuple[Value, Value]:
    best = make(reduce.TOP_K, elementwise.SIGMOID(LOGITS), k=K)
    return best[1], div(best[0], reduce.MAX(best[0], axes=(1,), keepdims=True))


NEAR_GATES: dict[str, Callable[[], tuple[Value, Value]]] = {
    "the softmax is not over the experts": Gate(scores="softmax", axis=0).spelled,
    "a top-k takes its scores from sqrt, neither softmax nor sigmoid": odd_scores,
    "the scores are biased by f32[T, 8], not by one number for each expert": biased_by_token,
    "the weights of the chosen experts have the bias in them": Gate(bias=True, gathered=False).spelled,
    "the weights are gathered from other scores than those that choose": Gate(bias=True, from_choice=True).spelled,
    "the weights are divided by max, not by their sum": divided_by_the_largest,
    "masked experts score 0, and others may score less": Gate(bias=True, groups=4, masked=0.0).spelled,
    "masked experts score -1, and others may score less": Gate(groups=4, masked=-1.0).spelled,
    "1 groups of 2 experts are fewer than the 3 to choose": Gate(groups=4, keep=1).spelled,
}


@pytest.mark.parametrize(("reason", "spelled"), NEAR_GATES.items(), ids=[*NEAR_GATES])
def test_near_gate(reason: str, spelled: Callable[[], tuple[Value, Value]]) -> None:
    graph, misses = graph_of(spelled()), list[Miss]()
    assert fuse_gate(graph, misses) is graph
    assert [miss.reason for miss in misses] == [reason]


def test_gate_needs_whole_groups_masked() -> None:
    """A mask that repeats the groups one after another, not each for its experts."""
    gate = Gate(groups=4)
    dropped = gate.dropped(elementwise.SIGMOID(LOGITS))
    mask = dropped.node.inputs[0].node.inputs[0].node.inputs[0].node.inputs[0].node.inputs[0]
    mask = shape.EXPAND(shape.RESHAPE(mask, shape=(T, 1, 4)), shape=(T, 2, 4))
    mask = elementwise.LOGICAL_NOT(elementwise.CAST(shape.RESHAPE(mask, shape=(T, E)), dtype="bool"))
    best = make(reduce.TOP_K, elementwise.WHERE(mask, f32(LOWEST), elementwise.SIGMOID(LOGITS)), k=K)
    graph, misses = graph_of((best[1], best[0])), list[Miss]()
    assert fuse_gate(graph, misses) is graph
    assert [m.reason for m in misses] == ["a mask of f32[T, 4] does not spread over 8 experts group by group"]


def test_other_choices_are_left_alone() -> None:
    """The top of a sequence's tokens is no gate: three axes, or no fixed count to choose from."""
    x, y = entry("x", T, 4, E), entry("y", 3, T)
    graph = Graph((x, y), (*make(reduce.TOP_K, x, k=2).values, *make(reduce.TOP_K, y, k=1).values))
    misses: list[Miss] = []
    assert fuse_gate(graph, misses) is graph
    assert misses == []


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
        return index.SCATTER_ROWS(full(0, ROWS, dtype="i64"), order, numbers)


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
    unsorted = reduce.SUM(shape.RESHAPE(index.TAKE(y, order, axis=0), shape=(T, K, H)), axes=(1,), keepdims=False)
    assert near(Graph(INPUTS, (unsorted,))) == ["the experts' results are not weighted and put back"]


def test_experts_in_another_order_are_left_alone() -> None:
    """Rows of the right groups in the wrong order: as many rows go to each expert, but not the tokens that chose it."""
    slots = shape.RESHAPE(IDS, shape=(ROWS,))
    order = make(reduce.SORT, elementwise.NEG(slots))[1]
    right = Grouped().rows()[1].node.inputs[2]
    rows = index.TAKE(X, elementwise.FLOOR_DIVIDE(order, scalar(K, "i64")), axis=0)
    h = Grouped().product(rows, "gate_up", 2 * I, right)
    gate, up = (shape.SLICE(h, axis=1, start=start, stop=start + I) for start in (0, I))
    y = Grouped().product(mul(elementwise.SILU(gate), up), "down", H, right)
    graph = Graph(INPUTS, (reduce.SUM(shape.RESHAPE(y, shape=(T, K, H)), axes=(1,), keepdims=False),))
    assert near(graph) == ["the experts' rows do not lie in the order of their experts"]


def test_gate_and_experts_are_found_apart() -> None:
    """A layer lowers its experts though its gate is unknown, and the other way round."""
    odd = odd_scores()
    experts = Graph(INPUTS, (Grouped().out(),))
    whole = experts.replace({IDS: odd[0], WEIGHTS: odd[1]})
    assert [node.op for node in lower_routing(fuse_gate(whole, []), [])].count(routing.COMBINE) == 1
    gelu = Graph(INPUTS, (Grouped(activation=elementwise.GELU).out(),))
    ids, weights = replace(GATES["qwen3"], k=K).spelled()
    whole = gelu.replace({IDS: ids, WEIGHTS: weights})
    assert [node.op for node in lower_routing(fuse_gate(whole, []), [])].count(routing.TOP_K_GATE) == 1
