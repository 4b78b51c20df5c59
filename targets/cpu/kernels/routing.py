"""The gate's scores; which experts win is decided by the runtime, which is all compares and no arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm.script import tirx as T

from ...base import Kernel, Schedule
from ..isa import Isa
from .exponential import exp, sigmoid
from .matmul import divisor, tiles


def sigmoid_scores(symbol: str, experts: int, lanes: int) -> Any:
    """A function (x, p, rows): p = sigmoid(x), both float32[rows, experts]."""
    width = divisor(experts, 4 * lanes)

    @T.prim_func(s_tir=True)
    def nest(x: T.handle("float32"), p: T.handle("float32"), rows: T.int32):
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        X = T.decl_buffer((rows, experts), "float32", data=x, align=4)
        P = T.decl_buffer((rows, experts), "float32", data=p, align=4)
        for i in T.serial(rows):
            for c in T.serial(experts // width):
                for j in T.vectorized(width):
                    P[i, c * width + j] = sigmoid(X[i, c * width + j])

    return nest


def softmax_scores(symbol: str, experts: int, lanes: int) -> Any:
    """A function (x, p, rows): p = softmax(x) over the experts, both float32[rows, experts]."""
    width = divisor(experts, 4 * lanes)

    @T.prim_func(s_tir=True)
    def nest(x: T.handle("float32"), p: T.handle("float32"), rows: T.int32):
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        X = T.decl_buffer((rows, experts), "float32", data=x, align=4)
        P = T.decl_buffer((rows, experts), "float32", data=p, align=4)
        many = T.sblock_alloc_buffer((width,), "float32")
        one = T.sblock_alloc_buffer((1,), "float32")
        for i in T.serial(rows):
            one[0] = X[i, 0]
            for e in T.serial(experts):
                one[0] = T.max(one[0], X[i, e])
            for j in T.vectorized(width):
                many[j] = T.float32(0)
            for c in T.serial(experts // width):
                for j in T.vectorized(width):
                    P[i, c * width + j] = exp(X[i, c * width + j] - one[0])
                for j in T.vectorized(width):
                    many[j] = many[j] + P[i, c * width + j]
            one[0] = T.float32(0)
            for j in T.unroll(width):
                one[0] = one[0] + many[j]
            one[0] = T.float32(1) / one[0]
            for c in T.serial(experts // width):
                for j in T.vectorized(width):
                    P[i, c * width + j] = P[i, c * width + j] * one[0]

    return nest


def gate(kernel: Kernel, schedule: Schedule, isa: Isa, prefix: str) -> Sequence[Any]:
    """In the order of runtime/routing.cc."""
    return [scores(kernel, kernel["experts"], isa, prefix)]


def route(kernel: Kernel, schedule: Schedule, isa: Isa, prefix: str) -> Sequence[Any]:
    """The linear layer's tiles by their heights, then the gate's scores."""
    return [*tiles(kernel, schedule, isa, prefix), scores(kernel, kernel["n"], isa, prefix)]


def scores(kernel: Kernel, experts: int, isa: Isa, prefix: str) -> Any:
    """A function (logits, p, rows): the scores that the gate chooses by."""
    make = sigmoid_scores if kernel["sigmoid"] else softmax_scores
    return make(f"{prefix}_scores", experts, isa.lanes)


def nothing(kernel: Kernel, schedule: Schedule, isa: Isa, prefix: str) -> Sequence[Any]:
    """Counting and copying are the runtime's own."""
    return []


BUILDERS: Mapping[str, Callable[[Kernel, Schedule, Isa, str], Sequence[Any]]] = {
    "top_k_gate": gate,
    "route": route,
    "permute": nothing,
    "append": nothing,
}
