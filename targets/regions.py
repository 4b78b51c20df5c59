"""From a region to the kernel that computes it.

DIMS and REALS give the order in which the runtime's rows hold a kernel's sizes and numbers; the enums in
runtime/*.cc mirror them. What they mean stands with the ops in compiler/ops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..compiler.ir import HALVES, Graph, L, Node, Op, P
from ..compiler.ops.attention import SDPA
from ..compiler.ops.cache import APPEND
from ..compiler.ops.coded import DECODE_ROWS, ENCODE_ROWS
from ..compiler.ops.coded import format_of as coding_of
from ..compiler.ops.dense import LINEAR
from ..compiler.ops.elementwise import ADD, CAST
from ..compiler.ops.index import TAKE
from ..compiler.ops.latent import LATENT_ATTENTION
from ..compiler.ops.norm import RMS_NORM, ROTARY
from ..compiler.ops.quantize import DEQUANTIZE, FORMATS, format_of
from ..compiler.ops.routing import COMBINE, GROUPED_MATMUL, PERMUTE, TOP_K_GATE
from ..compiler.ops.sampling import CHOOSE_TOKEN
from ..compiler.ops.shape import RESHAPE
from ..passes.match import last_slice, peel
from .base import Kernel
from .paged import PAGED

# How the runtime numbers the ways in which rotated pairs lie.
PAIRS: Mapping[str, int] = {"interleaved": 0, "halves": 1, "none": 2}

GATE = ("groups", "keep", "sigmoid", "top2", "normalise", "bias", "shared")
DIMS: Mapping[str, tuple[str, ...]] = {
    "linear": ("k", "n"),
    "linear_add": ("k", "n"),
    "linear_swiglu": ("k", "n"),
    "grouped_swiglu": ("k", "n", "experts", "share"),
    "grouped_combine": ("k", "n", "experts", "share", "base"),
    "rms_norm": ("n", "width", "start"),
    "top_k_gate": ("experts", "k", *GATE),
    "route": ("k", "n", "chosen", *GATE),
    "permute": ("experts", "k"),
    "latent_write": ("c", "r", "width", "start", "pairs_in", "pairs_out"),
    "latent_attention": (
        *("heads", "nope", "rope", "latent", "value", "pairs_in", "pairs_out"),
        *("width", "start"),
    ),
    "append": ("h", "d"),
    "rotary": ("r", "pairs_in", "pairs_out"),
    "attention": ("heads", "groups", "dk", "dv"),
}

BITS: Mapping[str, int] = {name: attrs["bits"] for name, attrs in FORMATS.items()}

REALS: Mapping[str, tuple[str, ...]] = {
    "rms_norm": ("eps",),
    "last_norm": ("eps",),
    "top_k_gate": ("eps", "scale"),
    "route": ("eps", "scale"),
    "latent_write": ("eps",),
    "latent_attention": ("scale",),
    "attention": ("scale",),
}


def kernel_of(region: Node, dims_of: Mapping[str, Sequence[str]] = DIMS) -> Kernel:
    """The kernel for a region, packed or not; dims_of: the sizes that a target's kernels of a kind have.

    Raises KeyError for a kind that is not among them.
    """
    kind, body = region.attrs["kind"], region.attrs["body"]
    plain = kind.removesuffix(PAGED)
    sizes = SIZES[plain](body)
    dims = tuple((name, int(sizes[name])) for name in dims_of[kind])
    reals = tuple((name, float(sizes[name])) for name in REALS.get(plain, ()))
    return Kernel(kind, dims, reals, dtype_of(body))


def dtype_of(body: Graph) -> str:
    """What the kernel's weight is stored as: "int4", "int8", "int8row", "fp8", "bf16", "f16", or f32 as all
    else; behind a "+" how its cache is, where that is narrower. See Kernel.
    """
    codes = [format_of(node) for node in body if node.op is DEQUANTIZE]
    narrow = [value.type for value in body.inputs if value.type.dtype in HALVES]
    weights = [each.dtype for each in narrow if all(isinstance(dim, int) for dim in each.shape)]
    caches = [f"+{each.dtype}" for each in narrow if L in each.shape or P in each.shape]
    coded = [f"+{coding_of(node)}" for node in body if node.op in (ENCODE_ROWS, DECODE_ROWS)]
    f16 = [value.type.dtype for value in (*body.inputs, *body.outputs) if value.type.dtype == "f16"]
    return (codes or weights or f16 or ["f32"])[0] + (coded or caches or [""])[0]


def the(op: Op, body: Graph) -> Node:
    """The body's one node of this op."""
    (node,) = (node for node in body if node.op is op)
    return node


def linear_sizes(body: Graph) -> dict[str, Any]:
    """k columns and n rows of the weight; for swiglu these are gate and up. wide: whether it gives f32."""
    n, k = the(LINEAR, body).inputs[1].shape
    return {"k": k, "n": n, "wide": body.outputs[0].type.dtype == "f32"}


def grouped_sizes(body: Graph) -> dict[str, Any]:
    """share is how many rows come from one row of x."""
    product = the(GROUPED_MATMUL, body)
    experts, n, k = product.inputs[3].shape
    return {"k": k, "n": n, "experts": experts, "share": product.attrs["share"]}


def combine_sizes(body: Graph) -> dict[str, Any]:
    """share is how many experts a token has; base is 0 or, where the result is added to something of its
    shape, how many axes that has before the last.
    """
    chosen, result = the(COMBINE, body).inputs[2].shape[1], body.outputs[0]
    added = any(node.op is ADD and peel(result, RESHAPE, CAST).node is node for node in body)
    return grouped_sizes(body) | {"share": chosen, "base": (result.type.rank - 1) * added}


def norm_sizes(body: Graph) -> dict[str, Any]:
    """Columns start..start+n of an input of `width` columns."""
    norm = the(RMS_NORM, body)
    x, start, *_ = last_slice(norm.inputs[0]) or (norm.inputs[0], 0)
    return {"n": norm.inputs[1].shape[0], "width": x.shape[-1], "start": start, "eps": norm.attrs["eps"]}


def gate_sizes(body: Graph) -> dict[str, Any]:
    """The gate's attributes, those with names as flags."""
    gate = the(TOP_K_GATE, body)
    flags = {
        "experts": gate.inputs[0].shape[-1],
        "sigmoid": gate.attrs["scores"] == "sigmoid",
        "top2": gate.attrs["group_score"] == "top2",
        "bias": len(gate.inputs) - 1,
    }
    return dict(gate.attrs) | flags


def route_sizes(body: Graph) -> dict[str, Any]:
    """The router's sizes and the gate's; `chosen` are the gate's k."""
    return gate_sizes(body) | {"chosen": the(TOP_K_GATE, body).attrs["k"]} | linear_sizes(body)


def permute_sizes(body: Graph) -> dict[str, Any]:
    """k experts for each token."""
    permute = the(PERMUTE, body)
    return {"experts": permute.attrs["experts"], "k": permute.inputs[0].shape[1]}


def pairs(attrs: Mapping[str, Any]) -> dict[str, int]:
    """How a rotation's pairs lie, in the runtime's numbers."""
    return {name: PAIRS[attrs[name]] for name in ("pairs_in", "pairs_out")}


def write_sizes(body: Graph) -> dict[str, Any]:
    """Of `width` columns, c from `start` on are the latent, r after them the key."""
    turned = the(ROTARY, body)
    norm = norm_sizes(body)
    return norm | {"c": norm["n"], "r": turned.types[0].shape[-1], **pairs(turned.attrs)}


def latent_sizes(body: Graph) -> dict[str, Any]:
    """The op's attributes, the widths of its two caches, and where queries lie: from `start` of `width`."""
    node = the(LATENT_ATTENTION, body)
    latent, rotary_keys = node.inputs[-4:-2]
    q, start, *_ = last_slice(node.inputs[0]) or (node.inputs[0], 0)
    widths = {"latent": latent.shape[3], "rope": rotary_keys.shape[3], "width": q.shape[2], "start": start}
    return dict(node.attrs) | widths | pairs(node.attrs)


def append_sizes(body: Graph) -> dict[str, Any]:
    """h heads of d numbers in the cache."""
    _, h, _, d = the(APPEND, body).types[0].shape
    return {"h": h, "d": d}


def rotary_sizes(body: Graph) -> dict[str, Any]:
    """r numbers of a head, all rotated."""
    turned = the(ROTARY, body)
    return {"r": turned.types[0].shape[-1], **pairs(turned.attrs)}


def attention_sizes(body: Graph) -> dict[str, Any]:
    """Query heads, key heads, and the widths of a key and a value."""
    node = the(SDPA, body)
    (_, heads, _, dk), (_, groups, _, dv) = node.inputs[0].shape, node.inputs[2].shape
    return {"heads": heads, "groups": groups, "dk": dk, "dv": dv, "scale": node.attrs["scale"]}


def choose_sizes(body: Graph) -> dict[str, Any]:
    """v tokens to choose from."""
    return {"v": the(CHOOSE_TOKEN, body).inputs[0].shape[-1]}


def embedding_sizes(body: Graph) -> dict[str, Any]:
    """v rows of n numbers in the table."""
    v, n = the(TAKE, body).inputs[0].shape
    return {"v": v, "n": n}


def angles_sizes(body: Graph) -> dict[str, Any]:
    """f frequencies, one for each pair of numbers that is turned."""
    return {"f": body.outputs[0].shape[-1]}


SIZES: Mapping[str, Callable[[Graph], Mapping[str, Any]]] = {
    "linear": linear_sizes,
    "linear_add": linear_sizes,
    "linear_swiglu": linear_sizes,
    "grouped_swiglu": grouped_sizes,
    "grouped_combine": combine_sizes,
    "rms_norm": norm_sizes,
    "top_k_gate": gate_sizes,
    "route": route_sizes,
    "permute": permute_sizes,
    "latent_write": write_sizes,
    "latent_attention": latent_sizes,
    "append": append_sizes,
    "rotary": rotary_sizes,
    "attention": attention_sizes,
    "last_norm": norm_sizes,
    "choose_token": choose_sizes,
    "embedding": embedding_sizes,
    "angles": angles_sizes,
}
