"""Decode of one token over a latent cache, beside onnxruntime's Attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from onnx import helper

from moec.targets.base import Kernel
from moec.targets.cases_attention import attention_feeds, latent_feeds
from moec.targets.cpu.device import Bench
from moec.targets.cpu.sample import aligned, spread

from .ceilings import FLOATS, READ
from .kernels import called, floats, opened, placed
from .onnx_session import session
from .setting import Setting
from .timing import Batch, Row, interleave, rows

CACHED = 4096
CALLS = (
    12  # of a run, each with a cache of its own: as when layers take turns, none stays in the CPU's caches
)
COPIES = 4  # of the projections' weights, which calls use by turns
NOPE, ROPE, LATENT, VALUE = 128, 64, 512, 128
SCALE = (NOPE + ROPE) ** -0.5


def attention(setting: Setting) -> Iterator[Row]:
    """Decode of one token over a latent cache: attention, with absorption and projection too, and that over
    caches in fewer bits.
    """
    for heads, bars in ((16, {"ONNX Attention-24": 10.0, READ: 0.8}), (128, {FLOATS: 0.6})):
        for what, ours, projected in (
            ("absorbed attention", core, False),
            ("with projections", latent, True),
        ):
            calls = {
                "moec": Batch(ours(heads, setting.threads), CALLS),
                "ONNX Attention-24": Batch(attention_24(heads, setting.threads, projected), CALLS),
            }
            seconds = interleave(calls | attention_floors(setting, heads, projected), 15)
            yield from rows(f"{what}, {heads} heads, {CACHED} cached", seconds, bars)
        stored = {"moec": "f32+int8", "over bf16": "f32+bf16", "over f32": "f32"}
        caches = {name: Batch(latent(heads, setting.threads, it), CALLS) for name, it in stored.items()}
        yield from rows(f"over int8, {heads} heads, {CACHED} cached", interleave(caches, 15), {})


def attention_floors(setting: Setting, heads: int, projected: bool) -> dict[str, Batch]:
    """Each head multiplies and sums the cache; it is read once, or without projections as keys and values."""
    pairs = heads * CACHED * (LATENT + ROPE + LATENT)
    if not projected:
        return setting.floors(read=4 * CACHED * (LATENT + ROPE + LATENT), floats=2 * pairs)
    weights = heads * LATENT * (NOPE + VALUE)
    return setting.floors(read=4 * (CACHED * (LATENT + ROPE) + weights), floats=2 * (pairs + weights))


def by_turns(bench: Bench, calls: list[list[Any]]) -> Callable[[], object]:
    """A run that calls the kernel once with each of these operands, and its weights' copies by turns."""
    copies = [
        {i: [aligned(part) for part in parts] for i, parts in bench.packed.items()} for _ in range(COPIES)
    ]
    return called(bench, [spread(operands, copies[call % COPIES]) for call, operands in enumerate(calls)])


def core(heads: int, threads: int) -> Callable[[], object]:
    """Our attention on queries that are already absorbed, all heads over one key and value."""
    dims = {"heads": heads, "groups": 1, "dk": LATENT + ROPE, "dv": LATENT}
    bench = opened(Kernel("attention", tuple(dims.items()), (("scale", SCALE),)), threads)
    return by_turns(bench, [operands(attention_feeds, bench.kernel, call) for call in range(CALLS)])


def latent(heads: int, threads: int, dtype: str = "f32") -> Callable[[], object]:
    """Our latent attention: rotation, absorption, attention and value projection."""
    sizes = {"nope": NOPE, "rope": ROPE, "latent": LATENT, "value": VALUE, "pairs_in": 0, "pairs_out": 1}
    dims = {"heads": heads, **sizes, "width": heads * (NOPE + ROPE), "start": 0}
    bench = opened(Kernel("latent_attention", tuple(dims.items()), (("scale", SCALE),), dtype), threads)
    return by_turns(bench, [operands(latent_feeds, bench.kernel, call) for call in range(CALLS)])


def operands(feeds: Callable[..., list[Any]], kernel: Kernel, call: int) -> list[Any]:
    """One token's, after CACHED - 1 others, in caches that start at a page as an artifact's do."""
    return [aligned(each) for each in feeds(kernel, 1, np.random.default_rng(call), cached=CACHED - 1)]


def query(heads: int, call: int) -> Any:
    """An absorbed query f32 [1, heads, 1, latent + rope]."""
    return floats(1, heads, 1, LATENT + ROPE, seed=call)


def caches(call: int) -> dict[str, Any]:
    """The key and value of all heads, for one call."""
    return {
        f"k{call}": aligned(floats(1, 1, CACHED, LATENT + ROPE, seed=call)),
        f"v{call}": aligned(floats(1, 1, CACHED, LATENT, seed=call)),
    }


def attention_24(heads: int, threads: int, projected: bool) -> Callable[[], object]:
    """onnxruntime's Attention over one shared key and value; `projected`, MatMuls absorb and project."""
    feeds: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    nodes: list[Any] = []
    for call in range(CALLS):
        feeds |= caches(call)
        nodes.append(
            helper.make_node("Attention", [f"q{call}", f"k{call}", f"v{call}"], [f"y{call}"], scale=SCALE)
        )
        if projected:
            feeds |= unabsorbed(heads, call)
            nodes[-1:] = [*absorption(call), nodes[-1], projection(call)]
        else:
            feeds[f"q{call}"] = query(heads, call)
    if projected:
        for copy in range(COPIES):
            weights |= projections(heads, copy)
    results = [f"{'z' if projected else 'y'}{call}" for call in range(CALLS)]
    peer = session(nodes, weights, feeds, results, threads)
    return placed(lambda: peer.run(None, feeds), threads)


def projections(heads: int, copy: int) -> dict[str, Any]:
    """The weights of the projections, none like another: onnxruntime keeps equal ones once."""
    return {
        f"uk{copy}": floats(heads, NOPE, LATENT, seed=copy),
        f"uv{copy}": floats(heads, LATENT, VALUE, seed=copy),
    }


def unabsorbed(heads: int, call: int) -> dict[str, Any]:
    """The parts of a query without and with rotation, for one call."""
    return {
        f"n{call}": floats(1, heads, 1, NOPE, seed=call),
        f"r{call}": floats(1, heads, 1, ROPE, seed=call),
    }


def absorption(call: int) -> list[Any]:
    """The nodes that make the query."""
    return [
        helper.make_node("MatMul", [f"n{call}", f"uk{call % COPIES}"], [f"a{call}"]),
        helper.make_node("Concat", [f"a{call}", f"r{call}"], [f"q{call}"], axis=-1),
    ]


def projection(call: int) -> Any:
    """The node that makes values of what attention gives."""
    return helper.make_node("MatMul", [f"y{call}", f"uv{call % COPIES}"], [f"z{call}"])
