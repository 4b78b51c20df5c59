"""From a region to the kernel that computes it, and from a schedule to how the kernel's weights lie.

DIMS and REALS give the order in which the runtime's rows hold a kernel's sizes and numbers; the enums in
runtime/*.cc mirror them. What they mean stands with the ops in compiler/ops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...compiler.ir import FLOATS, Graph, Node, Op
from ...compiler.ops.attention import SDPA
from ...compiler.ops.cache import APPEND
from ...compiler.ops.dense import LINEAR
from ...compiler.ops.latent import LATENT_ATTENTION
from ...compiler.ops.norm import RMS_NORM, ROTARY
from ...compiler.ops.routing import GROUPED_MATMUL, PERMUTE, TOP_K_GATE
from ...passes.layout import HeadPanels, Layout, Panels
from ...passes.match import last_slice
from ..base import Kernel, Schedule

# How the runtime numbers the ways in which rotated pairs lie.
PAIRS: Mapping[str, int] = {"interleaved": 0, "halves": 1, "none": 2}

DIMS: Mapping[str, tuple[str, ...]] = {
    "linear": ("k", "n"),
    "linear_add": ("k", "n"),
    "linear_swiglu": ("k", "n"),
    "grouped_swiglu": ("k", "n", "experts", "share"),
    "grouped_combine": ("k", "n", "experts", "share", "base"),
    "rms_norm": ("n", "width", "start"),
    "top_k_gate": ("experts", "k", "groups", "keep", "sigmoid", "top2", "normalise", "bias"),
    "permute": ("experts", "k"),
    "latent_write": ("c", "r", "width", "start", "pairs_in", "pairs_out"),
    "latent_attention": ("heads", "nope", "rope", "latent", "value", "pairs_in", "pairs_out"),
    "append": ("h", "d"),
    "rotary": ("r", "pairs_in", "pairs_out"),
    "attention": ("heads", "groups", "dk", "dv"),
}

REALS: Mapping[str, tuple[str, ...]] = {
    "rms_norm": ("eps",),
    "top_k_gate": ("eps", "scale"),
    "latent_write": ("eps",),
    "latent_attention": ("scale",),
    "attention": ("scale",),
}


def kernel_of(region: Node) -> Kernel:
    """The kernel for a region of a kind in DIMS, packed or not. Raises KeyError for another kind."""
    kind, body = region.attrs["kind"], region.attrs["body"]
    sizes = SIZES[kind](body)
    dims = tuple((name, int(sizes[name])) for name in DIMS[kind])
    reals = tuple((name, float(sizes[name])) for name in REALS.get(kind, ()))
    floats = [value.type.dtype for value in (*body.inputs, *body.outputs) if value.type.dtype in FLOATS]
    return Kernel(kind, dims, reals, floats[0]) if floats else Kernel(kind, dims, reals)


def layout_of(kernel: Kernel, schedule: Schedule) -> Mapping[int, Layout]:
    """How each weight operand that the kernel wants packed lies under a schedule; lanes are its knob nr."""
    lanes = int(schedule.get("nr", 0))
    match kernel.kind:
        case "linear" | "linear_add":
            return {1: Panels(lanes, kernel["n"])}
        case "linear_swiglu":
            return {1: Panels(lanes, kernel["n"], halves=2)}
        case "grouped_swiglu":
            return {3: Panels(lanes, kernel["n"], halves=2)}
        case "grouped_combine":
            return {3: Panels(lanes, kernel["n"])}
        case "latent_attention":
            return {6: HeadPanels(lanes, kernel["heads"], kernel["nope"], kernel["value"])}
        case _:
            return {}


def the(op: Op, body: Graph) -> Node:
    """The body's one node of this op."""
    (node,) = (node for node in body if node.op is op)
    return node


def linear_sizes(body: Graph) -> dict[str, Any]:
    """k columns and n rows of the weight; for swiglu these are gate and up."""
    n, k = the(LINEAR, body).inputs[1].shape
    return {"k": k, "n": n}


def grouped_sizes(body: Graph) -> dict[str, Any]:
    """share is how many rows come from one row of x."""
    product = the(GROUPED_MATMUL, body)
    experts, n, k = product.inputs[3].shape
    return {"k": k, "n": n, "experts": experts, "share": product.attrs["share"]}


def combine_sizes(body: Graph) -> dict[str, Any]:
    """share is how many experts a token has; base is 1 where the result is added to something."""
    chosen = body.inputs[4].shape[1]
    return grouped_sizes(body) | {"share": chosen, "base": len(body.inputs) - 5}


def norm_sizes(body: Graph) -> dict[str, Any]:
    """Columns start..start+n of an input of `width` columns."""
    norm = the(RMS_NORM, body)
    x, start, *_ = last_slice(norm.inputs[0]) or (norm.inputs[0], 0)
    return {"n": norm.inputs[1].shape[0], "width": x.shape[-1], "start": start, "eps": norm.attrs["eps"]}


def gate_sizes(body: Graph) -> dict[str, Any]:
    """The gate's attributes, those with names as flags."""
    gate = the(TOP_K_GATE, body)
    flags = {
        "experts": gate.inputs[0].shape[1],
        "sigmoid": gate.attrs["scores"] == "sigmoid",
        "top2": gate.attrs["group_score"] == "top2",
        "bias": len(gate.inputs) - 1,
    }
    return dict(gate.attrs) | flags


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
    """The op's attributes, and the widths of its two caches."""
    node = the(LATENT_ATTENTION, body)
    latent, rotary_keys = node.inputs[-4:-2]
    widths = {"latent": latent.shape[3], "rope": rotary_keys.shape[3]}
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


SIZES: Mapping[str, Callable[[Graph], Mapping[str, Any]]] = {
    "linear": linear_sizes,
    "linear_add": linear_sizes,
    "linear_swiglu": linear_sizes,
    "grouped_swiglu": grouped_sizes,
    "grouped_combine": combine_sizes,
    "rms_norm": norm_sizes,
    "top_k_gate": gate_sizes,
    "permute": permute_sizes,
    "latent_write": write_sizes,
    "latent_attention": latent_sizes,
    "append": append_sizes,
    "rotary": rotary_sizes,
    "attention": attention_sizes,
}
