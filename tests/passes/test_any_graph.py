"""Whatever the graph, passes keep its numbers: graphs drawn at random, full of nearly matching pieces."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moec.compiler.ir import B, Graph, T, Value, make
from moec.compiler.ops.dense import LINEAR
from moec.compiler.ops.elementwise import ADD, COS, DIV, MUL, NEG, POW, RSQRT, SIGMOID, SILU, SIN, SQRT, SUB
from moec.compiler.ops.norm import RMS_NORM
from moec.compiler.ops.reduce import MEAN, SOFTMAX
from moec.compiler.ops.routing import COMBINE, GROUPED_MATMUL, PERMUTE, SWIGLU, TOP_K_GATE
from moec.compiler.ops.shape import CONCAT, RESHAPE, SLICE, TRANSPOSE
from moec.compiler.ops.sources import CONSTANT, INPUT, scalar
from moec.compiler.pipeline import run
from moec.targets.cpu.pipeline import PASSES

WIDTH = 6
X = INPUT(name="x", dtype="f32", shape=(B, T, WIDTH))
Y = INPUT(name="y", dtype="f32", shape=(B, T, WIDTH))


def weight(number: int, *shape: int) -> Value:
    return CONSTANT(name=f"w{number}.{shape}", dtype="f32", shape=shape)


def part(x: Value, start: int, stop: int) -> Value:
    return SLICE(x, axis=2, start=start, stop=stop)


def normed(a: Value, b: Value, n: int) -> Value:
    """An RMSNorm, or nearly one: scaled by the root of another value's mean square where a is not b."""
    square = ADD(MEAN(POW(b, scalar(2.0, "f32")), axes=(2,), keepdims=True), scalar(1e-3, "f32"))
    return MUL(weight(n, WIDTH), MUL(a, RSQRT(square)))


def turned(a: Value, b: Value, n: int) -> Value:
    """A rotation of halves, or nearly one: the second half of another value."""
    half = WIDTH // 2
    cos, sin = COS(part(b, 0, half)), SIN(part(b, 0, half))
    first, second = part(a, 0, half), part(a if n % 2 else b, half, WIDTH)
    return CONCAT(SUB(MUL(first, cos), MUL(second, sin)), ADD(MUL(second, cos), MUL(first, sin)), axis=2)


def viewed(a: Value, b: Value, n: int) -> Value:
    """There and back, with work between."""
    split = TRANSPOSE(RESHAPE(a, shape=(B, T, 2, 3)), perm=(0, 2, 1, 3))
    return RESHAPE(TRANSPOSE(NEG(split) if n % 2 else split, perm=(0, 2, 1, 3)), shape=(B, T, WIDTH))


def chosen(a: Value, b: Value, n: int) -> Value:
    """Two of three experts and a shared one, or nearly that: of another width, or reading another value."""
    flat = RESHAPE(a, shape=(B * T, WIDTH))
    ids, weights = make(
        TOP_K_GATE,
        LINEAR(flat, weight(n, 3, WIDTH)),
        scores="softmax",
        k=2,
        normalise=True,
        eps=0.0,
        scale=1.0,
    ).values
    order, ends = make(PERMUTE, ids, experts=3).values
    rows = GROUPED_MATMUL(flat, order, ends, weight(n, 3, 4, WIDTH), share=2)
    y = GROUPED_MATMUL(SWIGLU(rows), order, ends, weight(n, 3, WIDTH, 2), share=0)
    routed = RESHAPE(COMBINE(y, order, weights), shape=(B, T, WIDTH))
    width = 2 + n
    wide = SWIGLU(LINEAR(a if n < 2 else b, weight(n, 2 * width, WIDTH)))
    return ADD(routed, LINEAR(wide, weight(n, WIDTH, width)))


# Each makes one value [B,T,WIDTH] of two, and of a number that picks weights and variants.
PIECES: tuple[Callable[[Value, Value, int], Value], ...] = (
    lambda a, b, n: ADD(a, b),
    lambda a, b, n: SUB(a, MUL(b, scalar(float(n % 2), "f32"))),
    lambda a, b, n: LINEAR(a, weight(n, WIDTH, WIDTH)),
    lambda a, b, n: ADD(LINEAR(a, weight(n, WIDTH, WIDTH)), b),
    lambda a, b, n: MUL(SILU(LINEAR(a, weight(n, WIDTH, WIDTH))), LINEAR(b, weight(n + 1, WIDTH, WIDTH))),
    lambda a, b, n: SWIGLU(LINEAR(a, weight(n, 2 * WIDTH, WIDTH))),
    lambda a, b, n: CONCAT(part(a, 0, 2), part(b, 2, WIDTH), axis=2),
    lambda a, b, n: RMS_NORM(part(LINEAR(a, weight(n, 9, WIDTH)), n, n + WIDTH), weight(n, WIDTH), eps=1e-3),
    lambda a, b, n: DIV(SIGMOID(a), ADD(SQRT(MUL(b, b)), scalar(1.0, "f32"))),
    lambda a, b, n: SOFTMAX(a, axis=2),
    normed,
    turned,
    viewed,
    chosen,
)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Up to a dozen pieces, each on values made before, so that some are read often and some never."""
    values = [X, Y]
    for _ in range(draw(st.integers(1, 12))):
        piece, operand = draw(st.sampled_from(PIECES)), st.sampled_from(values[-4:])
        values.append(piece(draw(operand), draw(operand), draw(st.integers(0, 3))))
    return Graph((X, Y), (values[-1], draw(st.sampled_from(values[2:]))))


@pytest.mark.parametrize("sizes", [(1, 1), (2, 3)], ids=str)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graph=graphs())
def test_the_numbers_stay(unchanged: Callable[..., None], sizes: tuple[int, int], graph: Graph) -> None:
    after, _ = run(graph, PASSES)
    assert [value.type for value in after.outputs] == [value.type for value in graph.outputs]
    unchanged(graph, after, dict(zip((B, T), sizes)))
