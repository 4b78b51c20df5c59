"""Runs single ops on arrays, as they are and through their expansion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest

from moec.compiler.interpret import interpret
from moec.compiler.ir import Graph, Op, Value, make
from moec.compiler.onnx_graph import to_onnx
from moec.compiler.ops import sources
from moec.compiler.text import read, show

Run = Callable[..., list[Any]]


def inputs_like(arrays: tuple[Any, ...]) -> tuple[Value, ...]:
    types = [sources.literal_of(array).type for array in arrays]
    return tuple(sources.INPUT(name=f"x{i}", dtype=t.dtype, shape=t.shape) for i, t in enumerate(types))


def run_op(op: Op, *arrays: Any, double: bool = False, **attrs: Any) -> list[Any]:
    inputs = inputs_like(arrays)
    feeds = {f"x{i}": array for i, array in enumerate(arrays)}
    return list(
        interpret(Graph(inputs, make(op, *inputs, **attrs).values), feeds, {}, double=double).values()
    )


def run_expansion(op: Op, *arrays: Any, **attrs: Any) -> list[Any]:
    inputs = inputs_like(arrays)
    node = make(op, *inputs, **attrs)
    assert op.expand is not None
    results = tuple(op.expand(*inputs, **node.attrs))
    assert [value.type for value in results] == list(node.types)
    feeds = {f"x{i}": array for i, array in enumerate(arrays)}
    return list(interpret(Graph(inputs, results), feeds, {}).values())


@pytest.fixture
def run() -> Run:
    """The results of an op on arrays; the interpreter checks them against the op's types."""
    return run_op


@pytest.fixture
def both() -> Run:
    """The same, and that the op's expansion gives just that."""

    def run_both(op: Op, *arrays: Any, **attrs: Any) -> list[Any]:
        results, expanded = run_op(op, *arrays, **attrs), run_expansion(op, *arrays, **attrs)
        for result, other in zip(results, expanded, strict=True):
            np.testing.assert_array_equal(result, other, strict=True)
        return results

    return run_both


def through_onnxruntime(op: Op, *arrays: Any, **attrs: Any) -> list[Any]:
    inputs = inputs_like(arrays)
    outputs = make(op, *inputs, **attrs).values
    graph = Graph(inputs, outputs, tuple(f"y{i}" for i in range(len(outputs))))
    assert read(show(graph)) == graph
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(to_onnx(graph, {}, lambda node: None).SerializeToString(), options)
    return session.run(None, {f"x{i}": array for i, array in enumerate(arrays)})


@pytest.fixture
def everywhere(both: Run) -> Run:
    """An op's results, equal by its reference, by its expansion, and by that in onnxruntime."""

    def run_everywhere(op: Op, *arrays: Any, **attrs: Any) -> list[Any]:
        results = both(op, *arrays, **attrs)
        for result, other in zip(results, through_onnxruntime(op, *arrays, **attrs), strict=True):
            np.testing.assert_array_equal(result, other, strict=True)
        return results

    return run_everywhere
