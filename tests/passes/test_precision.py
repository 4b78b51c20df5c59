"""Which weights become narrower, what stands in their place, and what the graph means then."""

from __future__ import annotations

from functools import partial
from typing import Any

import models
import numpy as np
import pytest
from layers import weights_of

from moec.compiler.interpret import interpret
from moec.compiler.ir import B, Graph, Miss, Node, T, Value
from moec.compiler.ops.dense import LINEAR
from moec.compiler.ops.elementwise import ADD, CAST
from moec.compiler.ops.index import TAKE
from moec.compiler.ops.quantize import DEQUANTIZE, QUANTIZE, ROUND_TRIP, ROW, TILE
from moec.compiler.ops.region import REGION
from moec.compiler.ops.routing import SWIGLU
from moec.compiler.ops.sources import CONSTANT, INPUT
from moec.compiler.pipeline import Check, PassMovedNumbers, run
from moec.compiler.source import resolve
from moec.compiler.text import read, show
from moec.compiler.trace import trace
from moec.passes.layout import CodePanels, Panels, pack
from moec.passes.partition import Partition
from moec.passes.precision import FP8, INT8_ROWS, POLICIES, Policy, Precision, UnmetRule, sites
from moec.targets.claims import CLAIMS
from moec.targets.cpu.lower import FORMATS, layout_of
from moec.targets.cpu.pipeline import PASSES
from moec.targets.regions import kernel_of

ALL = {
    **dict.fromkeys(("embedding", "router", "latent up", "latent down", "head", "experts", "dense"), "int4")
}
X = INPUT(name="x", dtype="f32", shape=(B, T, 64))


def weight(name: str, *shape: int) -> Value:
    return CONSTANT(name=name, dtype="f32", shape=shape)


def toy() -> Graph:
    """Products in their regions: x -> gated -> narrow, added to x, and another of an odd width."""
    wide = LINEAR(X, weight("wide", 192, 64))
    y = ADD(LINEAR(SWIGLU(wide), weight("narrow", 64, 96)), X)
    odd = LINEAR(y, weight("odd", 40, 64))
    last = LINEAR(odd, weight("last", 8, 40))
    return run(Graph((X,), (last, y), ("last", "y")), [Partition(CLAIMS)])[0]


def narrowed(graph: Graph, policy: Policy, kinds: Any = FORMATS) -> tuple[Graph, list[Miss]]:
    misses: list[Miss] = []
    return Precision(policy, kinds)(graph, misses), misses


def regions(graph: Graph) -> dict[str, Node]:
    """The regions by what their weight is made of."""
    found = {}
    for node in graph:
        if node.op is REGION:
            (names,) = {
                name for value in node.inputs for name in constants(value) if len(constants(value)) == 1
            }
            found[names] = node
    return found


def constants(value: Value) -> list[str]:
    if value.op is CONSTANT:
        return [value.node.attrs["name"]]
    return [name for inner in value.node.inputs if value.op is not REGION for name in constants(inner)]


def ops_of(node: Node) -> list[str]:
    return [inner.op.name for inner in node.attrs["body"] if inner.inputs]


def test_a_weight_becomes_codes_and_scales_and_its_operand_is_rounded() -> None:
    graph, misses = narrowed(toy(), Policy(ALL))
    found = regions(graph)
    wide = found["wide"]
    assert [value.op.name for value in wide.inputs] == ["input", "quantize", "quantize"]
    assert ops_of(wide) == ["round_trip", "dequantize", "linear", "swiglu"]
    assert ops_of(found["narrow"]) == ["round_trip", "dequantize", "linear", "add"]
    assert str(kernel_of(found["narrow"])) == "linear_add k=96 n=64 int4"
    assert layout_of(kernel_of(wide), {"nr": 8}) == {
        1: CodePanels(8, 192, bits=4, halves=2),
        2: Panels(8, 192, halves=2),
    }
    assert [str(miss) for miss in misses] == [
        "graph: last is bf16, not int4: its rows of 40 are not whole groups of 32"
    ]
    assert read(show(graph)) == graph


@pytest.mark.parametrize(("quant", "bits"), [("int4", 4), ("int8", 8)])
def test_the_graph_means_what_its_weights_and_operands_are_rounded_to(quant: str, bits: int) -> None:
    before = toy()
    after, _ = narrowed(before, Policy(dict.fromkeys(ALL, quant)))
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal(node.types[0].shape).astype(np.float32)
               for node in before if node.op is CONSTANT for name in [node.attrs["name"]]}  # fmt: skip
    feeds = {"x": random.standard_normal((2, 3, 64)).astype(np.float32)}
    found = interpret(after, feeds, weights)

    def rounded(name: str) -> Any:
        return DEQUANTIZE.reference(*QUANTIZE.reference(weights[name], bits=bits), bits=bits)

    trip = ROUND_TRIP.reference
    gated = SWIGLU.reference(trip(feeds["x"]) @ rounded("wide").T)
    y = trip(gated) @ rounded("narrow").T + feeds["x"]
    np.testing.assert_allclose(found["y"], y, rtol=1e-5, atol=1e-5)
    last = CAST.reference(CAST.reference(weights["last"], dtype="bf16"), dtype="f32")
    np.testing.assert_allclose(found["last"], trip(y) @ rounded("odd").T @ last.T, rtol=1e-4, atol=1e-4)
    exact = interpret(before, feeds, weights)["y"]
    assert 0 < np.abs(found["y"] - exact).max() < 0.5 * np.abs(exact).max()


def test_a_row_and_a_token_may_have_one_scale_each() -> None:
    before, rows = toy(), {"bits": 8, "group": ROW}
    kinds = dict.fromkeys(FORMATS, ("int8row",))
    after, misses = narrowed(before, Policy(dict.fromkeys(ALL, "int8row")), kinds)
    assert not misses  # also not for rows that are no whole groups of 32
    assert {kernel_of(node).dtype for node in regions(after).values()} == {"int8row"}
    assert read(show(after)) == after
    random = np.random.default_rng(0)
    shapes = {name: array.shape for name, array in weights_of(before).items()}
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    feeds = {"x": random.standard_normal((2, 3, 64)).astype(np.float32)}
    found = interpret(after, feeds, weights)
    w = {
        name: DEQUANTIZE.reference(*QUANTIZE.reference(array, **rows), **rows)
        for name, array in weights.items()
    }
    trip = partial(ROUND_TRIP.reference, group=ROW)
    y = trip(SWIGLU.reference(trip(feeds["x"]) @ w["wide"].T)) @ w["narrow"].T + feeds["x"]
    np.testing.assert_allclose(found["y"], y, rtol=1e-5, atol=1e-5)
    last = trip(trip(y) @ w["odd"].T) @ w["last"].T
    np.testing.assert_allclose(found["last"], last, rtol=1e-4, atol=1e-4)


def test_what_is_int8_by_rows_on_a_machine_that_multiplies_int8() -> None:
    bf16 = {role for role, format in INT8_ROWS.roles.items() if format == "bf16"}
    assert bf16 == {"embedding", "router", "latent up", "head"}
    assert {INT8_ROWS.roles[role] for role in set(ALL) - bf16} == {"int8row"}


def test_tiles_of_e4m3_have_a_scale_each() -> None:
    before, tiles = toy(), {"bits": 8, "group": TILE}
    after, misses = narrowed(before, Policy(dict.fromkeys(ALL, "fp8")), dict.fromkeys(FORMATS, ("fp8",)))
    assert [str(miss) for miss in misses] == [
        "graph: last is f32, not fp8: its rows of 40 are not whole groups of 16"
    ]
    found = regions(after)
    assert ops_of(found["narrow"]) == ["round_trip", "dequantize", "linear", "add"]
    assert str(kernel_of(found["narrow"])) == "linear_add k=96 n=64 fp8"
    assert [str(x.type) for x in found["wide"].inputs[1:]] == ["u8[192, 64]", "f32[2, 1]"]
    assert read(show(after)) == after
    random = np.random.default_rng(0)
    shapes = {name: array.shape for name, array in weights_of(before).items()}
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    feeds = {"x": random.standard_normal((2, 3, 64)).astype(np.float32)}
    w = {
        name: DEQUANTIZE.reference(*QUANTIZE.reference(array, **tiles), **tiles)
        for name, array in weights.items()
        if name != "last"
    }
    trip = partial(ROUND_TRIP.reference, group=TILE)
    y = trip(SWIGLU.reference(trip(feeds["x"]) @ w["wide"].T)) @ w["narrow"].T + feeds["x"]
    np.testing.assert_allclose(interpret(after, feeds, weights)["y"], y, rtol=1e-5, atol=1e-5)


def test_what_is_fp8_on_a_machine_that_multiplies_it() -> None:
    assert set(FP8.roles) == set(ALL)
    assert {role for role, format in FP8.roles.items() if format == "fp8"} == {"experts", "dense"}
    assert set(FP8.roles.values()) == {"fp8", "bf16"}


def test_half_the_bytes_round_no_operand() -> None:
    graph, misses = narrowed(toy(), POLICIES["bf16"])
    assert not misses
    for node in regions(graph).values():
        assert kernel_of(node).dtype == "bf16"
        assert ops_of(node)[0] == "cast"
        assert "round_trip" not in ops_of(node)


def test_packing_comes_after_and_changes_nothing() -> None:
    graph, _ = narrowed(toy(), Policy(ALL))
    layouts = {node: layout_of(kernel_of(node), {"nr": 4}) for node in regions(graph).values()}
    packed = pack(graph, layouts)
    assert sorted(map(str, map(kernel_of, regions(packed).values()))) == sorted(
        map(str, map(kernel_of, layouts))
    )
    weights = {name: array.astype(np.float32) for name, array in weights_of(graph).items()}
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 5, 64)).astype(np.float32)}
    for name, array in interpret(graph, feeds, weights).items():
        np.testing.assert_array_equal(interpret(packed, feeds, weights)[name], array)


def test_a_table_is_read_in_half_the_bytes() -> None:
    ids = INPUT(name="ids", dtype="i64", shape=(B, T))
    graph = Graph((ids,), (TAKE(weight("table", 9, 64), ids, axis=0),), ("y",))
    after, misses = narrowed(graph, POLICIES["int4"])
    assert [node.op.name for node in after if node.inputs] == ["cast", "take", "cast"]
    table = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)
    found = interpret(after, {"ids": np.array([[8, 0]])}, {"table": table})["y"]
    np.testing.assert_array_equal(found[0], CAST.reference(table, dtype="bf16").astype(np.float32)[[8, 0]])
    _, misses = narrowed(graph, Policy(ALL))
    assert [str(miss) for miss in misses] == ["graph: table is bf16, not int4: take has no kernel for that"]


def test_what_a_kernel_cannot_read_stays_with_the_reason() -> None:
    graph, misses = narrowed(toy(), Policy(ALL), {"linear": ("int4",)})
    assert {str(miss) for miss in misses} == {
        "graph: wide is f32, not int4: linear_swiglu has no kernel for that",
        "graph: narrow is f32, not int4: linear_add has no kernel for that",
        "graph: last is f32, not int4: its rows of 40 are not whole groups of 32",
    }
    assert {name for name, node in regions(graph).items() if kernel_of(node).dtype == "f32"} == {
        "wide", "narrow", "last",
    }  # fmt: skip


def test_the_first_rule_that_fits_comes_before_roles() -> None:
    rules = (("nar*", "int8"), ("*", "f32"))
    graph, _ = narrowed(toy(), Policy(ALL, rules))
    dtypes = {name: kernel_of(node).dtype for name, node in regions(graph).items()}
    assert dtypes == {"wide": "f32", "narrow": "int8", "odd": "f32", "last": "f32"}


def test_a_rule_about_nothing_is_refused() -> None:
    with pytest.raises(UnmetRule, match=r"'\*\.expert\.\*': 'int4' is about no tensor .* the first is wide"):
        narrowed(toy(), Policy(ALL, (("*.expert.*", "int4"),)))


def test_checking_goes_on_from_the_rounded_numbers() -> None:
    def spoil(graph: Graph, misses: list[Miss]) -> Graph:
        doubled = ADD(graph.outputs[0], graph.outputs[0])
        return Graph(graph.inputs, (doubled, *graph.outputs[1:]), graph.names)

    graph = toy()
    weights = {name: array.astype(np.float32) for name, array in weights_of(graph).items()}
    check = Check(weights, {"x": np.random.default_rng(1).standard_normal((1, 2, 64))})
    run(graph, [Precision(Policy(ALL), FORMATS)], check=check)
    with pytest.raises(PassMovedNumbers, match="spoil"):
        run(graph, [Precision(Policy(ALL), FORMATS), spoil], check=check)


ROLES = {
    "deepseek_v2_lite": {
        "model.embed_tokens.weight": "embedding",
        "self_attn.q_proj": "latent down",
        "self_attn.kv_b_proj": "latent up",
        "self_attn.o_proj": "dense",
        "mlp.gate.weight": "router",
        "mlp.experts.gate_up_proj": "experts",
        "mlp.experts.down_proj": "experts",
        "0.mlp.down_proj": "dense",
        "lm_head": "head",
    },
    "deepseek_v3": {
        "self_attn.q_a_proj": "latent down",
        "self_attn.q_b_proj": "dense",
        "mlp.gate.weight": "router",
        "mlp.experts.gate_up_proj": "experts",
        "lm_head": "head",
    },
    "qwen3_moe": {
        "self_attn.v_proj": "dense",
        "self_attn.o_proj": "dense",
        "mlp.gate.weight": "router",
        "mlp.experts.down_proj": "experts",
        "lm_head": "head",
    },
}


@pytest.mark.parametrize("family", ROLES)
def test_roles_are_found_in_the_graph(family: str, tmp_path: Any) -> None:
    models.config(family).save_pretrained(tmp_path)
    graph, _ = run(trace(resolve(config=tmp_path)).graph, PASSES)
    found = {name: site.role for site in sites(graph) for name in site.names}
    for part, role in ROLES[family].items():
        some = {name: each for name, each in found.items() if part in name}
        assert set(some.values()) == {role}, (part, some)
    matrices = {node.attrs["name"] for node in graph if node.op is CONSTANT and node.types[0].rank > 1}
    assert matrices == set(found)


def test_every_policy_says_what_becomes_of_each_role() -> None:
    for policy in POLICIES.values():
        assert set(policy.roles) == set(ALL)
        assert policy.roles["router"] == "f32"


def test_int4_spares_what_costs_the_most_quality_for_its_bytes() -> None:
    wide = {role: format for role, format in POLICIES["int4"].roles.items() if format != "int4"}
    assert wide == {
        "embedding": "bf16",
        "router": "f32",
        "latent up": "bf16",
        "latent down": "int8",
        "head": "int8",
    }
