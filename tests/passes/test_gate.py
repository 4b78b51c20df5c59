"""Gates as the model families spell them, and as nobody should."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from moec.compiler.ir import Graph, Miss, T, Value, make
from moec.compiler.ops import elementwise, index, reduce, shape
from moec.compiler.ops.sources import CONSTANT, INPUT, scalar
from moec.compiler.text import show
from moec.passes.gate import fuse_gate

E, K = 8, 3
add, mul, div = elementwise.ADD, elementwise.MUL, elementwise.DIV
LOWEST = float("-inf")


def entry(name: str, *sizes: Any, dtype: str = "f32") -> Value:
    return INPUT(name=name, dtype=dtype, shape=sizes)


def weight(name: str, *sizes: int) -> Value:
    return CONSTANT(name=name, dtype="f32", shape=sizes)


def f32(number: float) -> Value:
    return scalar(number, "f32")


def full(value: float, *sizes: Any) -> Value:
    return shape.FULL(shape=sizes, value=value, dtype="f32")


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
        scores = elementwise.SIGMOID(LOGITS)
        if self.scores == "softmax":
            scores = reduce.SOFTMAX(LOGITS, axis=self.axis)
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
    "the weights are gathered from other scores than those that choose": Gate(
        bias=True, from_choice=True
    ).spelled,
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
