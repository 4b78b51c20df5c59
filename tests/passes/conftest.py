"""What tests of passes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from moec.compiler.interpret import input_name, interpret
from moec.compiler.ir import Dim, Graph, Node, plain
from moec.compiler.ops.sources import CONSTANT

Unchanged = Callable[..., None]


@pytest.fixture
def unchanged() -> Unchanged:
    """Asserts that two graphs compute the same in float64; feeds and weights not given are random."""

    def check(before: Graph, after: Graph, sizes: Mapping[Any, int], **given: Any) -> None:
        source = np.random.default_rng(5)
        weights = {node.attrs["name"]: normal(source, node, sizes) for node in before if node.op is CONSTANT}
        feeds = {input_name(value): normal(source, value.node, sizes) for value in before.inputs}
        weights |= {name: np.asarray(array) for name, array in given.items() if name in weights}
        feeds |= {name: np.asarray(array) for name, array in given.items() if name in feeds}
        expected = interpret(before, feeds, weights, double=True)
        for name, array in interpret(after, feeds, weights, double=True).items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-12, atol=1e-13)

    return check


def normal(source: Any, node: Node, sizes: Mapping[Any, int]) -> Any:
    """Numbers for a source: normal floats, or zeros for what is not float."""
    shape = [size_of(dim, sizes) for dim in node[0].shape]
    return source.standard_normal(shape) if node[0].type.dtype == "f32" else np.zeros(shape, np.int64)


def size_of(dim: Dim, sizes: Mapping[Any, int]) -> int:
    return dim if isinstance(dim, int) else int(plain(dim.subs(sizes)))
