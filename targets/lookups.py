"""Claims on what a model does once, before its layers or after them. A target may leave it to onnxruntime."""

from __future__ import annotations

from ..compiler.ir import Node
from ..compiler.ops.cache import POSITIONS
from ..compiler.ops.elementwise import CAST, COS, MUL, SIN
from ..compiler.ops.index import TAKE
from ..compiler.ops.norm import RMS_NORM
from ..compiler.ops.sampling import CHOOSE_TOKEN
from ..compiler.ops.shape import RESHAPE, SLICE
from ..compiler.ops.sources import LITERAL
from ..passes.layout import is_weight
from ..passes.match import made_by, orders, peel
from ..passes.partition import Claim, Cluster, Users
from .claims import in_f32, rms_norm


def embedding(node: Node, users: Users) -> Cluster | None:
    """Rows of a table by ids."""
    table = node.inputs[0] if node.op is TAKE and in_f32(node) else None
    if table is None or node.attrs["axis"] or table.type.rank != 2 or not is_weight(table):
        return None
    ids = node.inputs[1]
    return Cluster("embedding", (ids, table), node.values) if ids.type.dtype == "i64" else None


def turns(node: Node, users: Users) -> Cluster | None:
    """cos and sin [B,T,f] of positions times frequencies, which are written in the graph."""
    if node.op is not COS or not in_f32(node):
        return None
    for places, freqs in orders(node.inputs[0], MUL):
        numbers = peel(places, RESHAPE, CAST)
        if not made_by(freqs, LITERAL) or freqs.type.rank != 1 or not made_by(numbers, POSITIONS):
            continue
        sines = [user for user in users[node.inputs[0]] if user.op is SIN]
        if sines and node.types[0].shape == (*numbers.shape, *freqs.shape):
            return Cluster("angles", (*numbers.node.inputs, freqs), (node[0], sines[0][0]))
    return None


def last_norm(node: Node, users: Users) -> Cluster | None:
    """RMSNorm [B,1,H] of the last of the tokens [B,T,H]."""
    if node.op is not RMS_NORM or not rms_norm(node, users) or not made_by(node.inputs[0], SLICE):
        return None
    cut, w = node.inputs[0].node, node.inputs[1]
    (x,) = cut.inputs
    ends = x.type.rank == 3 and cut.attrs["axis"] == 1 and cut.attrs["stop"] == x.shape[1]
    return Cluster("last_norm", (x, w), node.values) if ends and cut.types[0].shape[1] == 1 else None


def choose_token(node: Node, users: Users) -> Cluster | None:
    """The next token of each text."""
    fits = node.op is CHOOSE_TOKEN and in_f32(node)
    return Cluster("choose_token", node.inputs, node.values) if fits else None


LOOKUPS: tuple[Claim, ...] = (embedding, turns)
# How a model ends; before all other claims, which want a part of it.
ENDS: tuple[Claim, ...] = (last_norm, choose_token)
