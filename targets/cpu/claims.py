"""Which parts of a graph the CPU target's kernels take; operands and results in the order the kernels have them.

Where two claims want one node, the order of CLAIMS decides: the kernel that does more comes first.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...compiler.ir import FLOATS, Node, Op, Value
from ...compiler.ops.attention import SDPA
from ...compiler.ops.cache import APPEND, CAUSAL_MASK, FILLED
from ...compiler.ops.dense import LINEAR
from ...compiler.ops.elementwise import ADD
from ...compiler.ops.latent import LATENT_ATTENTION
from ...compiler.ops.norm import RMS_NORM, ROTARY
from ...compiler.ops.routing import COMBINE, GROUPED_MATMUL, PERMUTE, SWIGLU, TOP_K_GATE
from ...compiler.ops.shape import EXPAND, RESHAPE, SLICE
from ...passes.layout import is_weight
from ...passes.match import last_slice, made_by, peel
from ...passes.partition import Claim, Cluster, Users


def sole(value: Value, users: Users) -> bool:
    """Whether just one node reads the value."""
    return len(users.get(value, ())) == 1


def in_f32(node: Node) -> bool:
    """Whether all floats that the node gives are f32."""
    return all(type_.dtype not in FLOATS or type_.dtype == "f32" for type_ in node.types)


def whole(kind: str, op: Op, *weights: int) -> Claim:
    """The claim of a kernel for just this op, whose operands at `weights` (where present) must be weights."""

    def claim(node: Node, users: Users) -> Cluster | None:
        fits = node.op is op and in_f32(node) and all(is_weight(node.inputs[i]) for i in weights if i < len(node.inputs))
        return Cluster(kind, node.inputs, node.values) if fits else None

    return claim


def is_linear(node: Node) -> bool:
    """A product with one weight, without bias."""
    return node.op is LINEAR and in_f32(node) and len(node.inputs) == 2 and is_weight(node.inputs[1])


def linear(node: Node, users: Users) -> Cluster | None:
    return Cluster("linear", node.inputs, node.values) if is_linear(node) else None


def linear_add(node: Node, users: Users) -> Cluster | None:
    """linear(x, w) + residual, of one shape."""
    for product, residual in added(node):
        if is_linear(product.node) and sole(product, users):
            return Cluster("linear_add", (*product.node.inputs, residual), node.values)
    return None


def added(node: Node) -> Sequence[tuple[Value, Value]]:
    """Both orders of an addition that broadcasts nothing."""
    if node.op is not ADD or any(value.type != node.types[0] for value in node.inputs):
        return ()
    return (node.inputs, node.inputs[::-1])  # type: ignore[return-value]


def linear_swiglu(node: Node, users: Users) -> Cluster | None:
    if node.op is not SWIGLU or not is_linear(product := node.inputs[0].node):
        return None
    return Cluster("linear_swiglu", product.inputs, node.values)


def rms_norm(node: Node, users: Users) -> Cluster | None:
    """Over columns of a wider x where those are sliced for it."""
    if node.op is not RMS_NORM or not in_f32(node) or not is_weight(node.inputs[1]):
        return None
    x, w = node.inputs
    part = last_slice(x)
    return Cluster("rms_norm", (part[0] if part and part[3] == 1 else x, w), node.values)


def rotary(node: Node, users: Users) -> Cluster | None:
    if node.op is not ROTARY or not in_f32(node) or node.inputs[0].type.rank != 4:
        return None
    x, cos, sin = node.inputs
    cos, sin = angle(cos), angle(sin)
    return Cluster("rotary", (x, cos, sin), node.values) if cos and sin else None


def angle(value: Value) -> Value | None:
    """The [B,T,f] that cos or sin [B,1,T,f] is a view of."""
    inner = peel(value, RESHAPE)
    return inner if inner.shape == (value.shape[0], *value.shape[2:]) and value.shape[1] == 1 else None


def grouped_swiglu(node: Node, users: Users) -> Cluster | None:
    product = node.inputs[0].node if node.op is SWIGLU else None
    if product is None or not is_grouped(product) or not product.attrs["share"]:
        return None
    return Cluster("grouped_swiglu", product.inputs, node.values)


def is_grouped(node: Node) -> bool:
    """A product of rows with the weights of their experts."""
    return node.op is GROUPED_MATMUL and in_f32(node) and is_weight(node.inputs[3])


def grouped_combine(node: Node, users: Users) -> Cluster | None:
    """The experts' second product, weighted and summed for each token."""
    if node.op is not COMBINE or not in_f32(node):
        return None
    rows, order, weights = node.inputs
    product = rows.node
    if not is_grouped(product) or product.attrs["share"] or product.inputs[1] != order:
        return None
    return Cluster("grouped_combine", (*product.inputs, weights), node.values)


def grouped_combine_add(node: Node, users: Users) -> Cluster | None:
    """The same on top of what the tokens have already."""
    for combined, base in added(node):
        if sole(combined, users) and (inner := grouped_combine(combined.node, users)):
            return Cluster(inner.kind, (*inner.operands, base), node.values)
    return None


def latent_write(node: Node, users: Users) -> Cluster | None:
    """The latent normed and the shared key rotated, both into their caches, from one projection's columns."""
    if node.op is not APPEND:
        return None
    latents, rows, mask = node.inputs
    norm = peel(rows, RESHAPE).node
    part = last_slice(norm.inputs[0]) if norm.op is RMS_NORM and is_weight(norm.inputs[1]) else None
    if part is None or part[3] != 1 or not in_f32(norm):
        return None
    wide, _, end, _ = part
    for write in appended(wide, end, users):
        keys, rows, same = write.inputs
        turned = peel(rows, RESHAPE).node
        cos, sin = map(angle, turned.inputs[1:]) if turned.op is ROTARY else (None, None)
        if cos and sin and same == mask:
            return Cluster("latent_write", (wide, norm.inputs[1], cos, sin, latents, keys, mask), (node[0], write[0]))
    return None


def appended(wide: Value, start: int, users: Users) -> list[Node]:
    """The cache writes of all columns of `wide` from `start` on, whatever is done to them on the way there."""
    found = []
    for user in users.get(wide, ()):
        if user.op is SLICE and last_slice(user[0]) == (wide, start, wide.shape[-1], 1):
            while user.op is not APPEND and len(readers := users.get(user[0], ())) == 1:
                user = readers[0]
            found += [user] if user.op is APPEND else []
    return found


def latent_attention(node: Node, users: Users) -> Cluster | None:
    fits = node.op is LATENT_ATTENTION and in_f32(node) and len(node.inputs) == 7 and is_weight(node.inputs[6])
    return Cluster("latent_attention", node.inputs, node.values) if fits else None


def attention(node: Node, users: Users) -> Cluster | None:
    """Attention over key and value caches, causal over their mask."""
    if node.op is not SDPA or not in_f32(node) or len(node.inputs) != 4:
        return None
    q, keys, values = node.inputs[:3]
    causal = peel(node.inputs[3], EXPAND)
    if not (made_by(keys, FILLED) and made_by(values, FILLED) and made_by(causal, CAUSAL_MASK)):
        return None
    mask = causal.node.inputs[0]
    if not keys.node.inputs[1] == values.node.inputs[1] == mask:
        return None
    return Cluster("attention", (q, keys.node.inputs[0], values.node.inputs[0], mask), node.values)


CLAIMS: tuple[Claim, ...] = (
    latent_write,
    latent_attention,
    attention,
    grouped_combine_add,
    grouped_combine,
    grouped_swiglu,
    linear_swiglu,
    linear_add,
    linear,
    rms_norm,
    rotary,
    whole("top_k_gate", TOP_K_GATE, 1),
    whole("permute", PERMUTE),
    whole("append", APPEND),
)
