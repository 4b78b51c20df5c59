"""Every op's ONNX spelling against its numpy reference, through onnxruntime, on odd and symbolic sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import sympy

from moec.compiler.interpret import interpret
from moec.compiler.ir import DTYPES, B, Graph, L, S, T, Type, Value, make
from moec.compiler.onnx_experts import SPELLINGS
from moec.compiler.onnx_graph import function_of, to_onnx
from moec.compiler.ops import cache, dense, latent, layout, norm, region, routing
from moec.compiler.ops.sources import INPUT, literal_of
from moec.compiler.ops.vocabulary import OPS

RANDOM = np.random.default_rng(7)
SIZES = {B: 2, T: 3, S: 5, L: 11}


def entry(name: str, dtype: str, *shape: Any) -> Value:
    return INPUT(name=name, dtype=dtype, shape=shape)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def run(graph: Graph, feeds: dict[str, np.ndarray], naming: Any = lambda node: None) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(to_onnx(graph, {}, naming).SerializeToString(), options)
    return session.run(None, feeds)


def agree(graph: Graph, feeds: dict[str, np.ndarray], naming: Any = lambda node: None) -> None:
    expected = interpret(graph, feeds, {})
    for got, (name, want) in zip(run(graph, feeds, naming), expected.items(), strict=True):
        assert got.dtype == want.dtype, name
        assert got.shape == want.shape, name
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6, err_msg=name)


def alone(op: str, *arrays: np.ndarray, **attrs: Any) -> None:
    """One op on inputs of fixed shape."""
    dtypes = {dtype: name for name, dtype in DTYPES.items()}
    inputs = tuple(entry(f"x{i}", dtypes[a.dtype], *a.shape) for i, a in enumerate(arrays))
    node = make(OPS[op], *inputs, **attrs)
    outputs = tuple(node[i] for i in range(len(node.types)))
    agree(
        Graph(inputs, outputs, tuple(f"y{i}" for i in range(len(outputs)))),
        dict(zip(("x0", "x1", "x2", "x3"), arrays)),
    )


UNARY = ("neg", "abs", "exp", "cos", "sin", "tanh", "sigmoid", "silu", "softplus")
POSITIVE = ("sqrt", "rsqrt", "log")
BINARY = ("add", "sub", "mul", "div", "floor_divide", "maximum", "minimum")
COMPARE = ("equal", "less", "less_equal", "greater", "greater_equal")
INTEGER = ("add", "sub", "mul", "floor_divide", "maximum", "minimum", *COMPARE)
I64 = np.array([[-7, -3, 0, 3, 7]], np.int64)
TIES = np.array([[1, 3, 3, 0, 3, 1, 0], [2, 2, 2, 2, 2, 2, 2]], np.float32)
BOOLS = RANDOM.random((3, 5)) < 0.5

CASES: list[tuple[str, tuple[np.ndarray, ...], dict[str, Any]]] = [
    *((op, (floats(3, 5),), {}) for op in UNARY),
    *((op, (np.abs(floats(3, 5)) + 0.1,), {}) for op in POSITIVE),
    *((op, (floats(3, 1, 5), floats(7, 1)), {}) for op in BINARY),
    *((op, (TIES[:1], TIES[1:]), {}) for op in COMPARE),
    *((op, (I64, np.array([[2], [-2], [3]], np.int64)), {}) for op in INTEGER),
    ("pow", (np.abs(floats(3, 5)), np.array(2.5, np.float32)), {}),
    ("neg", (I64,), {}),
    ("round", (np.array([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.49, 1e9]], np.float32),), {}),
    ("abs", (I64,), {}),
    ("gelu", (floats(3, 5),), {}),
    ("gelu", (floats(3, 5),), {"approximate": "tanh"}),
    ("equal", (BOOLS, BOOLS[:1]), {}),
    *((op, (BOOLS, BOOLS[::-1].copy()), {}) for op in ("logical_and", "logical_or")),
    ("logical_not", (BOOLS,), {}),
    ("where", (BOOLS, floats(3, 5), floats(1)), {}),
    ("where", (BOOLS, BOOLS[:1], BOOLS[::-1].copy()), {}),
    ("where", (BOOLS, I64, np.array(1, np.int64)), {}),
    ("cast", (BOOLS,), {"dtype": "f32"}),
    ("cast", (floats(3, 5) * 9,), {"dtype": "i64"}),
    ("cast", (I64,), {"dtype": "bool"}),
    ("cast", (floats(3, 5),), {"dtype": "f64"}),
    ("reshape", (floats(3, 10),), {"shape": (5, 1, 6)}),
    ("reshape", (floats(3, 0),), {"shape": (0, 5)}),
    ("transpose", (floats(2, 3, 5),), {"perm": (2, 0, 1)}),
    ("slice", (floats(3, 11),), {"axis": 1, "start": 2, "stop": 9, "step": 3}),
    ("slice", (floats(3, 11),), {"axis": 0, "start": 1, "stop": 1}),
    ("concat", (floats(2, 3), floats(2, 5), floats(2, 0)), {"axis": 1}),
    ("expand", (floats(3, 1),), {"shape": (2, 3, 5)}),
    ("iota", (), {"size": 7, "dtype": "i64"}),
    ("iota", (), {"size": 7, "dtype": "f32"}),
    ("full", (), {"shape": (3, 5), "value": 2.5, "dtype": "f32"}),
    ("full", (), {"shape": (3,), "value": True, "dtype": "bool"}),
    ("sum", (floats(2, 3, 5),), {"axes": (0, 2), "keepdims": False}),
    ("sum", (I64,), {"axes": (1,), "keepdims": True}),
    ("mean", (floats(2, 3, 5),), {"axes": (1,), "keepdims": True}),
    ("max", (floats(2, 3, 5),), {"axes": (2,), "keepdims": False}),
    ("cumsum", (floats(2, 3, 5),), {"axis": 1}),
    ("cumsum", (I64,), {"axis": 1}),
    ("softmax", (floats(2, 3, 5),), {"axis": 1}),
    ("top_k", (TIES,), {"k": 4}),
    ("sort", (TIES,), {}),
    ("sort", (np.array([5, 1, 5, 0, 1, 0] * 300, np.int64),), {}),
    ("take", (floats(7, 5), np.array([[6, 0], [3, 3]], np.int64)), {"axis": 0}),
    ("take", (floats(7, 5), np.array(3, np.int64)), {"axis": 1}),
    ("gather_along", (floats(3, 5), np.array([[0, 4], [1, 1]], np.int64)), {"axis": 1}),
    ("scatter_along", (floats(3, 5), np.array([[0, 4], [1, 3]], np.int64), floats(2, 2)), {"axis": 1}),
    ("scatter_rows", (floats(5, 3), np.array([4, 0], np.int64), floats(2, 3)), {}),
    ("scatter_rows", (np.zeros(5, np.int64), np.array([4, 0], np.int64), np.array([7, 8], np.int64)), {}),
    ("bincount", (np.array([0, 3, 3, 6, 0], np.int64),), {"bins": 7}),
    ("linear", (floats(2, 3, 5), floats(7, 5)), {}),
    ("linear", (floats(3, 5), floats(7, 5), floats(7)), {}),
    ("matmul", (floats(2, 1, 3, 5), floats(4, 5, 7)), {}),
    ("grouped_mm", (floats(7, 3), floats(4, 3, 5), np.array([0, 3, 3, 7], np.int32)), {}),
    ("grouped_mm", (floats(0, 3), floats(4, 3, 5), np.array([0, 0, 0, 0], np.int64)), {}),
    ("grouped_mm", (floats(7, 3), floats(4, 3, 5), np.array([7, 7, 7, 7], np.int64)), {}),
    ("sdpa", (floats(2, 6, 3, 5), floats(2, 2, 4, 5), floats(2, 2, 4, 7)), {"scale": 0.3}),
    (
        "sdpa",
        (floats(2, 6, 3, 5), floats(2, 2, 4, 5), floats(2, 2, 4, 7), RANDOM.random((2, 1, 3, 4)) < 0.3),
        {"scale": 0.3},
    ),
]


@pytest.mark.parametrize(
    ("op", "arrays", "attrs"), CASES, ids=lambda case: case if isinstance(case, str) else ""
)
def test_spelling(op: str, arrays: tuple[np.ndarray, ...], attrs: dict[str, Any]) -> None:
    alone(op, *arrays, **attrs)


def test_every_primitive_is_spelled_and_tested() -> None:
    primitive = {name for name, op in OPS.items() if op.expand is None} - {"input", "constant", "literal"}
    assert primitive <= set(SPELLINGS)
    assert primitive <= {op for op, _, _ in CASES}


def feed(graph: Graph) -> dict[str, np.ndarray]:
    feeds = {}
    for value in graph.inputs:
        shape = [int(sympy.sympify(dim).subs(SIZES)) for dim in value.shape]
        data = floats(*shape) if value.type.dtype == "f32" else np.ones(shape, np.int64)
        feeds[value.node.attrs["name"]] = data
    return feeds


IDS, MASK = Type("i64", (B, T)), Type("i64", (B, S + T))
CACHE, ROWS = Type("f32", (B, 2, L, 5)), Type("f32", (B, 2, T, 5))


def value(name: str, type: Type) -> Value:
    return entry(name, type.dtype, *type.shape)


@pytest.mark.parametrize("holes", [False, True])
def test_cache_ops_take_their_sizes_from_the_inputs(holes: bool) -> None:
    ids, mask, past, rows = value("ids", IDS), value("mask", MASK), value("past", CACHE), value("rows", ROWS)
    present = cache.APPEND(past, rows, mask)
    outputs = (present, cache.FILLED(present, mask), cache.CAUSAL_MASK(mask, ids), cache.POSITIONS(mask, ids))
    graph = Graph((ids, mask, past, rows), outputs, ("a", "b", "c", "d"))
    feeds = feed(graph)
    if holes:
        feeds["mask"][0, :4] = 0
    agree(graph, feeds)


def test_products_of_sizes() -> None:
    """Tokens of all sequences as one axis, and as many rows as slots: 6*B*T is told by no input alone."""
    x = entry("x", "f32", B, T, 3)
    flat = OPS["reshape"](x, shape=(B * T, 3))
    rows = OPS["reshape"](
        OPS["expand"](OPS["reshape"](flat, shape=(B * T, 1, 3)), shape=(B * T, 6, 3)), shape=(6 * B * T, 3)
    )
    counted = OPS["iota"](size=6 * B * T, dtype="i64")
    back = OPS["reshape"](rows, shape=(B, T, 18))
    graph = Graph((x,), (rows, counted, back), ("rows", "counted", "back"))
    agree(graph, feed(graph))


def routed(share: int) -> Graph:
    """A gate and the two grouped products behind it, for B*T tokens."""
    logits, x = entry("logits", "f32", B * T, 8), entry("x", "f32", B * T, 5)
    up, down = entry("up", "f32", 8, 14, 5), entry("down", "f32", 8, 5, 7)
    groups = {"groups": 4, "keep": 2, "group_score": "top2"}
    scaled = {"normalise": True, "eps": 1e-20, "scale": 2.5}
    ids, weights = make(routing.TOP_K_GATE, logits, scores="sigmoid", k=share, **groups, **scaled).values
    order, ends = make(routing.PERMUTE, ids, experts=8).values
    inner = routing.SWIGLU(routing.GROUPED_MATMUL(x, order, ends, up, share=share))
    y = routing.COMBINE(routing.GROUPED_MATMUL(inner, order, ends, down, share=0), order, weights)
    # Only the interpreter needs the tokens: it must know B and T, not just their product.
    return Graph((logits, x, up, down, value("tokens", IDS)), (y, ids), ("y", "ids"))


@pytest.mark.parametrize("share", [1, 3])
def test_routing_expands(share: int) -> None:
    graph = routed(share)
    agree(graph, feed(graph))


@pytest.mark.parametrize("halves", [1, 2])
def test_packed_experts_are_unpacked_one_by_one(halves: int) -> None:
    x, packed = entry("x", "f32", 5, 3), entry("packed", "f32", 4, 2, 3, 8)
    order, ends = entry("order", "i64", 10), entry("ends", "i64", 4)
    w = layout.UNPACK(packed, rows=10, halves=halves)
    graph = Graph((x, order, ends, packed), (routing.GROUPED_MATMUL(x, order, ends, w, share=2),), ("y",))
    feeds = {"x": floats(5, 3), "packed": floats(4, 2, 3, 8)}
    feeds |= {"order": RANDOM.permutation(10), "ends": np.array([0, 4, 4, 10])}
    agree(graph, feeds)
    nodes = to_onnx(graph, {}, lambda node: None).graph.node
    assert "Transpose" not in {node.op_type for node in nodes}  # but in the loop


def test_norm_and_rotary_expand() -> None:
    x, w = entry("x", "f32", B, T, 6), entry("w", "f32", 6)
    cos, sin = entry("cos", "f32", B, T, 3), entry("sin", "f32", B, T, 3)
    turned = [norm.ROTARY(x, cos, sin, pairs_in=a, pairs_out=b) for a in norm.PAIRS for b in norm.PAIRS]
    graph = Graph((x, w, cos, sin), (norm.RMS_NORM(x, w, eps=1e-6), *turned), ("n", "a", "b", "c", "d"))
    agree(graph, feed(graph))


def test_latent_attention_expands() -> None:
    graph = attention()
    agree(graph, feed(graph))


def attention() -> Graph:
    q, latents = entry("q", "f32", B, T, 3 * (4 + 2)), entry("latent", "f32", B, 1, L, 7)
    cos, sin = entry("cos", "f32", B, T, 1), entry("sin", "f32", B, T, 1)
    keys, mask, w = entry("keys", "f32", B, 1, L, 2), value("mask", MASK), entry("w", "f32", 3 * (4 + 5), 7)
    inputs = (q, cos, sin, latents, keys, mask, w)
    y = latent.LATENT_ATTENTION(
        *inputs, heads=3, nope=4, value=5, scale=0.4, pairs_in="interleaved", pairs_out="halves"
    )  # fmt: skip
    return Graph(inputs, (y,), ("y",))


@pytest.mark.parametrize(("rows", "lanes", "halves"), [(10, 8, 1), (10, 8, 2), (16, 8, 2)])
def test_packing_is_undone_in_standard_ops(rows: int, lanes: int, halves: int) -> None:
    w = entry("w", "f32", 3, rows, 5)
    packed = layout.PACK(w, lanes=lanes, halves=halves)
    graph = Graph((w,), (layout.UNPACK(packed, rows=rows, halves=halves),), ("w again",))
    agree(graph, feed(graph))


def regional(kind: str, graph: Graph) -> Graph:
    """The whole graph as one region, of the inputs that it reads."""
    read = [value for value in graph.inputs if value in graph.users()]
    node = make(region.REGION, *read, kind=kind, body=Graph(tuple(read), graph.outputs))
    return Graph(graph.inputs, node.values, graph.names)


@pytest.mark.parametrize("graph", [routed(3), attention()], ids=["routed", "attention"])
def test_without_the_library_a_region_runs_its_function(graph: Graph) -> None:
    called = regional("k", graph)
    agree(called, feed(graph), naming=lambda node: "k_1" if node.op.name == "region" else None)


def test_equal_regions_share_a_function() -> None:
    x, w = entry("x", "f32", B, T, 5), entry("w", "f32", 5, 5)
    a, b = entry("x0", "f32", B, T, 5), entry("x1", "f32", 5, 5)
    body = Graph((a, b), (dense.LINEAR(a, b),))
    once = make(region.REGION, x, w, kind="linear", body=body)[0]
    graph = Graph((x, w), (make(region.REGION, once, w, kind="linear", body=body)[0],), ("y",))
    model = to_onnx(graph, {}, lambda node: "linear_5" if node.op.name == "region" else None)
    assert [function.name for function in model.functions] == ["linear_5"]
    assert [node.op_type for node in model.graph.node] == ["linear_5", "linear_5"]


def test_a_function_does_not_depend_on_the_rank_of_rows() -> None:
    def function(*rows: Any) -> Any:
        x, w = entry("x", "f32", *rows, 6), entry("w", "f32", 6)
        return function_of("k", Graph((x, w), (norm.RMS_NORM(x, w, eps=1e-6),)))

    assert function(B, T) == function(B * T)


def test_a_literal_an_input_and_a_repeated_value_may_be_outputs() -> None:
    x = entry("x", "f32", B, 3)
    y = OPS["neg"](x)
    graph = Graph((x,), (x, y, y, literal_of(np.arange(3))), ("a", "b", "c", "d"))
    agree(graph, feed(graph))


def test_an_unknown_size_is_named() -> None:
    x = entry("x", "f32", B * T, 3)
    graph = Graph((x,), (OPS["iota"](size=T, dtype="i64"),), ("y",))
    with pytest.raises(ValueError, match=r"no input has a size that tells T; known are B\*T"):
        to_onnx(graph, {}, lambda node: None)
