"""Graphs as text and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moec.compiler.ir import DTYPES, B, Graph, L, S, T, Value, make
from moec.compiler.ops import cache, dense, elementwise, layout, reduce, region, shape, sources
from moec.compiler.text import TextError, read, show


def source(name: str, *sizes: Any, dtype: str = "f32") -> Value:
    return sources.INPUT(name=name, dtype=dtype, shape=sizes)


def example() -> Graph:
    """A bit of everything that the text form has a spelling for."""
    x, past, mask = source("x", B, T, 8), source("past.0", B, 1, L, 8), source("mask", B, S + T, dtype="i64")
    w = sources.CONSTANT(name="layers.0.w", dtype="f32", shape=(4, 8))
    a, packed = source("a", B, T, 8), source("w", 1, 8, 4)
    scaled = elementwise.MUL(dense.LINEAR(a, layout.UNPACK(packed, rows=4)), sources.scalar(0.1, "f32"))
    body = Graph((a, packed), (scaled, elementwise.NEG(a)), ("y", "z"))
    call = make(region.REGION, x, layout.PACK(w, lanes=4), kind="linear", body=body, origin="layers.0\n.proj")
    rows = shape.RESHAPE(call[0], shape=(B * T, 4), origin="layers.0")
    best = make(reduce.TOP_K, rows, k=2)
    table = sources.literal_of(np.linspace(0, 1, 20, dtype=np.float32))
    kept = cache.APPEND(past, shape.RESHAPE(call[1], shape=(B, 1, T, 8)), mask)
    odd = sources.CONSTANT(name='7 "odd" names', dtype="bf16", shape=())
    return Graph((x, past, mask), (*best.values, kept, table, odd), ("v", "i", "present.0", "t", 'o"dd'))


def test_text(golden: Callable[[str], None]) -> None:
    golden(show(example()))


def test_round_trip() -> None:
    graph = example()
    assert read(show(graph)) == graph
    assert show(read(show(graph))) == show(graph)
    assert [node.origin for node in read(show(graph))] == [node.origin for node in graph]


@pytest.mark.parametrize("value", [
    *(shape.FULL(shape=(2,), value=x, dtype="f32")
      for x in (1, 1.0, -1.5, -0.0, 1e-30, 1e300, float("inf"), float("-inf"), float("nan"), True)),
    *(shape.IOTA(size=x, dtype="i64")
      for x in (L - S - T, B * T + 3, T**2, B * (S + T), 2 * T - 1, T / 2, 7)),
    *(sources.literal_of(np.array(x, dtype))
      for x in (0.1, [], [[1, 2], [3, 4]], range(40)) for dtype in map(DTYPES.get, ("f32", "bf16", "i64"))),
    sources.literal_of(np.array([np.nan, -0.0, np.inf, -np.inf, 1e-45], np.float32)),
    sources.literal_of(np.frombuffer(b"\x01\x00\xc0\x7f\x00\x00\x00\x00", np.float32)),
    sources.literal_of(np.array([True, False])),
    sources.literal_of(np.array([2**63 - 1, -(2**63)])),
    sources.literal_of(np.array([0.1, 1e-320], np.float64)),
    shape.SLICE(source("x", L), axis=0, start=0, stop=L, step=2),
])  # fmt: skip
def test_attributes_round_trip(value: Value) -> None:
    graph = Graph(tuple(v for v in value.node.inputs), (value,))
    assert read(show(graph)) == graph


def test_labels_that_clash() -> None:
    x, w = source("w", 2), sources.CONSTANT(name="w", dtype="f32", shape=(2,))
    other, number = source("w", B), source("0", 2)
    graph = Graph((x, other, number), (elementwise.ADD(elementwise.ADD(x, w), number), other))
    assert read(show(graph)) == graph
    body = Graph((x, x), (x,))
    assert read(show(body)) == body


def test_inputs_that_the_graph_does_not_take() -> None:
    graph = Graph((), (elementwise.NEG(source("loose", 2)),))
    assert read(show(graph)) == graph


WHOLE = """graph(%x: f32[B, 8]) {
  %w = constant() : f32[4, 8]
  %0 = linear(%x, %w) : f32[B, 4]  # proj
  return %0 as "y"
}"""


def test_reads_what_people_write() -> None:
    x, w = source("x", B, 8), sources.CONSTANT(name="w", dtype="f32", shape=(4, 8))
    assert read(WHOLE) == Graph((x,), (dense.LINEAR(x, w),), ("y",))
    assert read(WHOLE.replace("\n", "\n\n ")) == read(WHOLE)


@pytest.mark.parametrize(("old", "new", "sentence"), [
    ("linear", "lineal", "line 3: no op is called lineal"),
    ("%x, %w)", "%x, %v)", "line 3: %v is used before it is computed"),
    ("[B, 4]", "[B, 5]", r"line 3: linear gives f32\[B, 4\]"),
    ("[4, 8]", "[4, 9]", "line 3: linear.*the last axis of x must be 9"),
    ("f32[B, 8]", "f33[B, 8]", "line 1: unknown dtype 'f33'"),
    ("[B, 8]", "[Q, 8]", "line 1: Q is no size; sizes are made of B, T, S, L"),
    ("[B, 8]", "[B**9, 8]", "line 1: a size to the power of 9"),
    ("[B, 8]", "[B/0, 8]", "line 1: a size divided by 0"),
    ("[B, 8]", "[B.__class__, 8]", "line 1: cannot read '.__class__"),
    ("[B, 8]", "[" + "(" * 60 + "B" + ")" * 60 + "]", "line 1: nested more than 50 deep"),
    ("[B, 8]", "[" + "9" * 40 + "]", "line 1: expected ,"),
    ("%w)", "%w; k=2)", "line 3: linear.*unexpected keyword argument 'k'"),
    ("%x, %w)", "%x)", "line 3: linear.*missing a required argument"),
    ("%0 =", "%0, %1 =", "line 3: linear gives"),
    ("return", "retur", "line 4: expected label, but here is retur"),
    ("\n}", "\n", "line 5: expected ,, but here is end of text"),
    ("\n}", "\n}}", "line 5: expected end of text, but here is }"),
    ('as "y"', r'as "\x"', "is no JSON string"),
    ("graph", "", r"line 1: expected graph, but here is \("),
    ("linear(%x, %w) : f32[B, 4]", "literal(; data=[1, 2]) : f32[3]", r"line 3: literal\(\): .* 12 bytes"),
    ("%0 = linear(%x, %w)", '%0 = literal(; data=b64"A")', "line 3: the data is no base64"),
    ("%0 = linear(%x, %w)", "%0 = literal(; data=[[B], 2])", "line 3: literal: "),
    ("%0 = linear(%x, %w)", "%0 = reshape(%x; shape=3)", "line 3: reshape: "),
    ("%0 = linear(%x, %w)", "%0 = region(%x; kind=3, body=4)", "line 3: region: "),
    ("linear(%x, %w)", 'linear(%x, %w; axis="é")', "line 3: linear.*unexpected"),
])  # fmt: skip
def test_errors_name_the_line(old: str, new: str, sentence: str) -> None:
    with pytest.raises(TextError, match=sentence):
        read(WHOLE.replace(old, new, 1))


UNARY = (elementwise.NEG, elementwise.SILU, elementwise.ABS)
BINARY = (elementwise.ADD, elementwise.MUL, elementwise.MAXIMUM)
NAMES = st.text(min_size=1, max_size=6).filter(lambda name: name.isprintable())


@st.composite
def graphs(draw: st.DrawFn, depth: int = 1) -> Graph:
    """Small random graphs over f32[B, S + T, 4], with literals, weights, several results and regions."""
    sizes = (B, S + T, 4)
    inputs = tuple(
        source(name, *sizes) for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    )
    values = [*inputs, sources.CONSTANT(name=draw(NAMES), dtype="f32", shape=(4,))]
    values.append(
        sources.literal_of(np.array(draw(st.lists(st.floats(width=32), min_size=4, max_size=4)), np.float32))
    )
    for _ in range(draw(st.integers(0, 8))):
        a, b = draw(st.sampled_from(values)), draw(st.sampled_from(inputs))
        kind = draw(st.integers(0, 4 if depth else 3))
        origin = draw(st.sampled_from(["", "layers.0.mlp"]))
        if kind == 0:
            values.append(draw(st.sampled_from(UNARY))(a, origin=origin))
        elif kind == 1:
            values.append(draw(st.sampled_from(BINARY))(a, b, origin=origin))
        elif kind == 2:
            best = make(reduce.TOP_K, shape.RESHAPE(b, shape=(B * (S + T), 4)), k=4)
            values += [shape.RESHAPE(elementwise.CAST(v, dtype="f32"), shape=sizes) for v in best.values]
        elif kind == 3:
            values.append(shape.FULL(shape=(4,), value=draw(st.floats() | st.integers(-9, 9)), dtype="f32"))
        else:
            body = draw(graphs(depth=0))
            values += make(region.REGION, *(b for _ in body.inputs), kind=draw(NAMES), body=body).values
    outputs = tuple(draw(st.lists(st.sampled_from(values), min_size=1, max_size=3)))
    return Graph(inputs, outputs, tuple(draw(st.sampled_from([(), tuple("abc")[: len(outputs)]]))))


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_random_graphs_round_trip(graph: Graph) -> None:
    assert read(show(graph)) == graph


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, len(WHOLE)), st.integers(0, 12), st.text(alphabet='()[]{}%;:,="#\\B1.e-*\n x', max_size=6)
)
def test_damaged_text_gives_a_text_error_or_a_graph(place: int, length: int, other: str) -> None:
    assert outcome(WHOLE[:place] + other + WHOLE[place + length :]).startswith(("line ", "graph"))


def outcome(text: str) -> str:
    try:
        return show(read(text))
    except TextError as error:
        return str(error)
