"""Small decoder layers written by hand, as the passes for norms, rotation and routing leave them."""

from __future__ import annotations

from typing import Any

import numpy as np

from moec.compiler.interpret import interpret
from moec.compiler.ir import B, Graph, L, Node, S, T, Value, make
from moec.compiler.ops.attention import SDPA
from moec.compiler.ops.cache import APPEND, CAUSAL_MASK, FILLED, POSITIONS
from moec.compiler.ops.dense import LINEAR
from moec.compiler.ops.elementwise import ADD, CAST, COS, MUL, SIN
from moec.compiler.ops.index import TAKE
from moec.compiler.ops.norm import RMS_NORM, ROTARY
from moec.compiler.ops.routing import COMBINE, GROUPED_MATMUL, PERMUTE, SWIGLU, TOP_K_GATE
from moec.compiler.ops.shape import CONCAT, EXPAND, RESHAPE, SLICE, TRANSPOSE
from moec.compiler.ops.sources import CONSTANT, INPUT, literal_of

VOCAB, HIDDEN, HEADS, NOPE, ROPE, VALUE, LATENT, Q_LORA = 11, 8, 2, 3, 4, 5, 6, 7
EXPERTS, CHOSEN, WIDTH = 4, 2, 3
IDS = INPUT(name="input_ids", dtype="i64", shape=(B, T))
MASK = INPUT(name="attention_mask", dtype="i64", shape=(B, S + T))


def weight(name: str, *shape: int) -> Value:
    return CONSTANT(name=name, dtype="f32", shape=shape)


def past(name: str, heads: int, width: int) -> Value:
    return INPUT(name=name, dtype="f32", shape=(B, heads, L, width))


def part(x: Value, start: int, stop: int) -> Value:
    return SLICE(x, axis=x.type.rank - 1, start=start, stop=stop)


def by_head(x: Value, heads: int) -> Value:
    split = RESHAPE(x, shape=(*x.shape[:2], heads, x.shape[2] // heads))
    return TRANSPOSE(split, perm=(0, 2, 1, 3))


def angles() -> tuple[Value, Value]:
    """cos and sin [B,1,T,ROPE/2]."""
    places = RESHAPE(CAST(POSITIONS(MASK, IDS), dtype="f32"), shape=(B, T, 1))
    turns = MUL(places, literal_of(np.array([1.0, 0.125], np.float32)))
    return tuple(RESHAPE(f(turns), shape=(B, 1, T, ROPE // 2)) for f in (COS, SIN))  # type: ignore[return-value]


def latent_attention(x: Value, i: int, lora: bool = True, mask: Value = MASK, causal: Value | None = None,
                     pairs: tuple[str, str] | None = ("interleaved", "halves"),
                     w_kvb: Value | None = None) -> tuple[Value, tuple[Value, ...]]:  # fmt: skip
    """x [B,T,H] through multi-head latent attention: heads' values [B,T,N*V], and the two caches."""

    def turned(x: Value) -> Value:
        return ROTARY(x, *angles(), pairs_in=pairs[0], pairs_out=pairs[1]) if pairs else x

    if lora:
        q_a = RMS_NORM(LINEAR(x, weight(f"{i}.q_a", Q_LORA, HIDDEN)), weight(f"{i}.q_norm", Q_LORA), eps=1e-6)
        q = LINEAR(q_a, weight(f"{i}.q_b", HEADS * (NOPE + ROPE), Q_LORA))
    else:
        q = LINEAR(x, weight(f"{i}.q", HEADS * (NOPE + ROPE), HIDDEN))
    q = by_head(q, HEADS)
    q = CONCAT(part(q, 0, NOPE), turned(part(q, NOPE, NOPE + ROPE)), axis=3) if pairs else q
    kv = LINEAR(x, weight(f"{i}.kv_a", LATENT + ROPE, HIDDEN))
    latent = RMS_NORM(part(kv, 0, LATENT), weight(f"{i}.kv_norm", LATENT), eps=1e-6)
    latent = RESHAPE(latent, shape=(B, 1, T, LATENT))
    key = turned(RESHAPE(part(kv, LATENT, LATENT + ROPE), shape=(B, 1, T, ROPE)))
    latents = APPEND(past(f"past.{i}.key", 1, LATENT), latent, MASK)
    keys = APPEND(past(f"past.{i}.value", 1, ROPE), key, MASK)
    wide = LINEAR(FILLED(latents, mask), w_kvb or weight(f"{i}.kv_b", HEADS * (NOPE + VALUE), LATENT))
    split = RESHAPE(wide, shape=(B, S + T, HEADS, NOPE + VALUE))
    heads = TRANSPOSE(split, perm=(0, 2, 1, 3))
    shared = EXPAND(FILLED(keys, MASK), shape=(B, HEADS, S + T, ROPE))
    k = CONCAT(part(heads, 0, NOPE), shared, axis=3)
    visible = CAUSAL_MASK(MASK, IDS) if causal is None else causal
    out = SDPA(q, k, part(heads, NOPE, NOPE + VALUE), visible, scale=0.3)
    return RESHAPE(TRANSPOSE(out, perm=(0, 2, 1, 3)), shape=(B, T, HEADS * VALUE)), (latents, keys)


def grouped_attention(x: Value, i: int) -> tuple[Value, tuple[Value, ...]]:
    """x [B,T,H] through attention with one key head for all query heads, rotated whole."""
    q, k, v = (
        by_head(LINEAR(x, weight(f"{i}.{name}", heads * ROPE, HIDDEN)), heads)
        for name, heads in (("q", HEADS), ("k", 1), ("v", 1))
    )
    q, k = (ROTARY(y, *angles(), pairs_in="halves", pairs_out="halves") for y in (q, k))
    keys, values = (APPEND(past(f"past.{i}.{n}", 1, ROPE), y, MASK) for n, y in (("key", k), ("value", v)))
    out = SDPA(q, FILLED(keys, MASK), FILLED(values, MASK), CAUSAL_MASK(MASK, IDS), scale=0.5)
    return RESHAPE(TRANSPOSE(out, perm=(0, 2, 1, 3)), shape=(B, T, HEADS * ROPE)), (keys, values)


def experts(x: Value, i: int, shared: int = WIDTH) -> Value:
    """x [B,T,H] through chosen experts and shared ones of that width."""
    return ADD(routed(x, i)[0], gated(x, i, shared))


def routed(x: Value, i: int) -> tuple[Value, Value]:
    """x [B,T,H] through chosen experts, and which those are [B*T,k]."""
    flat = RESHAPE(x, shape=(B * T, HIDDEN))
    logits = LINEAR(flat, weight(f"{i}.gate", EXPERTS, HIDDEN))
    ids, weights = make(TOP_K_GATE, logits, weight(f"{i}.bias", EXPERTS), scores="sigmoid", k=CHOSEN,
                        normalise=True, eps=1e-20, scale=2.5).values  # fmt: skip
    order, ends = make(PERMUTE, ids, experts=EXPERTS).values
    rows = GROUPED_MATMUL(flat, order, ends, weight(f"{i}.up", EXPERTS, 2 * WIDTH, HIDDEN), share=CHOSEN)
    y = GROUPED_MATMUL(SWIGLU(rows), order, ends, weight(f"{i}.down", EXPERTS, HIDDEN, WIDTH), share=0)
    return RESHAPE(COMBINE(y, order, weights), shape=(B, T, HIDDEN)), ids


def gated(x: Value, i: int, width: int = WIDTH) -> Value:
    """x [B,T,H] through a gated feed-forward."""
    hidden = SWIGLU(LINEAR(x, weight(f"{i}.wide", 2 * width, HIDDEN)))
    return LINEAR(hidden, weight(f"{i}.narrow", HIDDEN, width))


def apart() -> Graph:
    """What the decoders have in fewer kernels: a dense feed-forward, and a gate whose choice is returned."""
    x = INPUT(name="x", dtype="f32", shape=(B, T, HIDDEN))
    return Graph((x,), (gated(x, 0), *routed(x, 1)), ("dense", "experts", "ids"))


def decoder(layers: int = 1, lora: bool = True, latent: bool = True) -> Graph:
    """A model with a DeepSeek's layers, or with grouped-query attention: embedding, layers, head."""
    x = TAKE(weight("embedding", VOCAB, HIDDEN), IDS, axis=0)
    inputs, outputs = [IDS, MASK], []
    for i in range(layers):
        h = RMS_NORM(x, weight(f"{i}.norm", HIDDEN), eps=1e-6)
        h, caches = latent_attention(h, i, lora) if latent else grouped_attention(h, i)
        x = ADD(x, LINEAR(h, weight(f"{i}.o", HIDDEN, h.shape[2])))
        x = ADD(x, experts(RMS_NORM(x, weight(f"{i}.mlp_norm", HIDDEN), eps=1e-6), i))
        inputs += [cache.node.inputs[0] for cache in caches]
        outputs += caches
    logits = LINEAR(RMS_NORM(x, weight("norm", HIDDEN), eps=1e-6), weight("head", VOCAB, HIDDEN))
    kinds = [f"present.{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
    return Graph(tuple(inputs), (logits, *outputs), ("logits", *kinds))


def feeds_of(
    graph: Graph, batch: int = 2, new: int = 3, cached: int = 2, room: int = 7, padded: int = 0
) -> Any:
    """Random feeds; the first sequence begins with `padded` tokens that are none."""
    source = np.random.default_rng(batch * 100 + new * 10 + cached)
    sizes = {B: batch, T: new, S: cached, L: room}
    feeds = {}
    for value in graph.inputs:
        shape = [int(dim.subs(sizes)) if not isinstance(dim, int) else dim for dim in value.shape]
        floats = value.type.dtype == "f32"
        random = source.standard_normal(shape) if floats else source.integers(0, VOCAB, shape)
        feeds[value.node.attrs["name"]] = random
    if "attention_mask" in feeds:
        feeds["attention_mask"] = np.ones((batch, cached + new), np.int64)
        feeds["attention_mask"][0, :padded] = 0
    return feeds


def weights_of(graph: Graph) -> dict[str, Any]:
    """Random weights, by name."""
    constants = (node for node in graph if node.op is CONSTANT)
    return {
        node.attrs["name"]: np.random.default_rng(i).standard_normal(node.types[0].shape)
        for i, node in enumerate(sorted(constants, key=lambda node: node.attrs["name"]))
    }


EDGES = (
    {"new": 1},
    {"new": 1, "cached": 0, "batch": 1},
    {"cached": 0},
    {"padded": 2},
    {"cached": 0, "padded": 2},
    {"new": 4, "cached": 3, "room": 7},
)


def assert_same(before: Graph, after: Graph, **sizes: int) -> None:
    """Both graphs give the same numbers, in float64, where tokens are real."""
    feeds, weights = feeds_of(before, **sizes), weights_of(before)
    expected, found = (interpret(graph, feeds, weights, double=True) for graph in (before, after))
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-12, atol=1e-12, err_msg=f"{name} at {sizes}")


def count(graph: Graph) -> dict[str, int]:
    """How many nodes of each op, or of each kind of region, there are; sources left out."""
    names = [node.attrs.get("kind", node.op.name) for node in graph if node.inputs]
    return {name: names.count(name) for name in sorted(set(names))}


def running(graph: Graph) -> dict[str, int]:
    """The same of those nodes that run with the model; what weights are made of is computed before."""
    moving: list[Node] = []
    for node in graph:
        if node.op is INPUT or any(value.node in moving for value in node.inputs):
            moving.append(node)
    names = [node.attrs.get("kind", node.op.name) for node in moving if node.inputs]
    return {name: names.count(name) for name in sorted(set(names))}
