"""Gates and experts read tokens in the shape they have."""

from __future__ import annotations

from layers import EDGES, EXPERTS, HIDDEN, apart, assert_same, decoder, running, weight

from moec.compiler.ir import B, Graph, Miss, T
from moec.compiler.ops.routing import GROUPED_MATMUL, TOP_K_GATE
from moec.compiler.ops.shape import RESHAPE
from moec.compiler.ops.sources import INPUT
from moec.passes.rows import drop_flattening


def test_nothing_is_flattened() -> None:
    for before in (decoder(2), apart()):
        misses: list[Miss] = []
        after = drop_flattening(before, misses)
        ranks = [
            node.inputs[0].type.rank
            for node in after
            if node.op is TOP_K_GATE or (node.op is GROUPED_MATMUL and node.attrs["share"])
        ]
        assert set(ranks) == {3}
        assert running(after)["reshape"] < running(before)["reshape"]
        assert not misses
        for sizes in EDGES:
            assert_same(before, after, **sizes)


def test_rows_of_another_width_are_no_tokens() -> None:
    x = INPUT(name="x", dtype="f32", shape=(B, T, 2 * HIDDEN))
    order, ends = (
        INPUT(name=n, dtype="i64", shape=s) for n, s in (("order", (2 * B * T,)), ("ends", (EXPERTS,)))
    )
    rows = RESHAPE(x, shape=(2 * B * T, HIDDEN))
    product = GROUPED_MATMUL(rows, order, ends, weight("w", EXPERTS, 3, HIDDEN), share=1)
    before = Graph((x, order, ends), (product,))
    assert drop_flattening(before, []) == before
