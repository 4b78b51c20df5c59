"""Which parts of a graph a kernel takes, on any target; operands and results in the kernels' order.

Where two claims want one node, the order of CLAIMS decides: the kernel that does more comes first.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..compiler.ir import FLOATS, HALVES, Node, Op, Value
from ..compiler.ops.attention import SDPA
from ..compiler.ops.cache import APPEND, CAUSAL_MASK, FILLED
from ..compiler.ops.coded import DECODE_ROWS, ENCODE_ROWS
from ..compiler.ops.dense import LINEAR
from ..compiler.ops.elementwise import ADD, CAST
from ..compiler.ops.latent import LATENT_ATTENTION
from ..compiler.ops.norm import RMS_NORM, ROTARY
from ..compiler.ops.routing import COMBINE, GROUPED_MATMUL, PERMUTE, SWIGLU, TOP_K_GATE
from ..compiler.ops.shape import EXPAND, RESHAPE
from ..passes.layout import is_weight
from ..passes.match import last_slice, made_by, peel
from ..passes.partition import Claim, Cluster, Users


def sole(value: Value, users: Users) -> bool:
    """Whether just one node reads the value."""
    return len(users.get(value, ())) == 1


def in_f32(node: Node) -> bool:
    """Whether all floats that the node gives are f32."""
    return all(type_.dtype not in FLOATS or type_.dtype == "f32" for type_ in node.types)


def alone(op: Op) -> Claim:
    """The claim of a kernel for just this op, of the same name."""

    def claim(node: Node, users: Users) -> Cluster | None:
        return Cluster(op.name, node.inputs, node.values) if node.op is op and in_f32(node) else None

    return claim


def is_linear(node: Node) -> bool:
    """A product with one weight, without bias."""
    return node.op is LINEAR and in_f32(node) and len(node.inputs) == 2 and is_weight(node.inputs[1])


def linear(node: Node, users: Users) -> Cluster | None:
    """x @ w.T for any rank of x."""
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
    """The gate and up projections in one, gated."""
    if node.op is not SWIGLU or not is_linear(product := node.inputs[0].node):
        return None
    return Cluster("linear_swiglu", product.inputs, node.values)


def rms_norm(node: Node, users: Users) -> Cluster | None:
    """Over columns of a wider x where those are sliced for it."""
    if node.op is not RMS_NORM or not in_f32(node) or not is_weight(node.inputs[1]):
        return None
    x, w = node.inputs
    return Cluster("rms_norm", (columns_of(x), w), node.values)


def columns_of(x: Value) -> Value:
    """What x is some neighbouring columns of, or itself."""
    part = last_slice(x)
    return part[0] if part and part[3] == 1 else x


def rotary(node: Node, users: Users) -> Cluster | None:
    """Heads first: x [B,N,T,r]."""
    cos, sin = angles(node)
    return Cluster("rotary", (node.inputs[0], cos, sin), node.values) if cos and sin else None


def angles(node: Node) -> tuple[Value | None, Value | None]:
    """The [B,T,f] that cos and sin [B,1,T,f] of a rotation are views of; None where they are not."""
    if node.op is not ROTARY or not in_f32(node) or node.inputs[0].type.rank != 4:
        return None, None
    batch, _, new, width = node.inputs[0].shape
    cos, sin = (peel(value, RESHAPE) for value in node.inputs[1:])
    fits = node.inputs[1].shape[:2] == (batch, 1) and cos.shape == sin.shape == (batch, new, width // 2)
    return (cos, sin) if fits else (None, None)


def top_k_gate(node: Node, users: Users) -> Cluster | None:
    """With or without a bias for each expert."""
    fits = node.op is TOP_K_GATE and in_f32(node) and all(map(is_weight, node.inputs[1:]))
    return Cluster("top_k_gate", node.inputs, node.values) if fits else None


def route(node: Node, users: Users) -> Cluster | None:
    """From tokens to rows by expert: the router's product, its gate, and the choices sorted."""
    gate = node.inputs[0].node if node.op is PERMUTE else None
    if gate is None or not top_k_gate(gate, users) or node.inputs[0] != gate[0]:
        return None
    logits, *bias = gate.inputs
    if not is_linear(logits.node):
        return None
    return Cluster("route", (*logits.node.inputs, *bias), (*node.values, gate[1]))


def grouped_swiglu(node: Node, users: Users) -> Cluster | None:
    """The experts' first product, of tokens gathered by expert, gated."""
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


def grouped_combine_in_place(node: Node, users: Users) -> Cluster | None:
    """The same in the shape that the tokens have, such as [B,T,H]."""
    total = node.inputs[0] if node.op is RESHAPE and sole(node.inputs[0], users) else None
    if total is None or not (inner := grouped_combine_add(total.node, users)):
        return None
    *operands, base = inner.operands
    base = peel(base, RESHAPE)
    return Cluster(inner.kind, (*operands, base), node.values) if base.type == node.types[0] else None


def latent_write(node: Node, users: Users, op: Op = APPEND) -> Cluster | None:
    """The latent normed and the shared key rotated, into their caches, from columns of one projection.

    op: how rows get there; what it has behind them is the same for all. Where latents become codes, the cache
    of their scales goes behind the mask.
    """
    if node.op is not op or node.inputs[0].shape[1] != 1:
        return None
    latents, rows, *where = node.inputs
    coded = scales_of(node, users)
    if not (coded or is_append(node, op)):
        return None
    norm = peel(rows.node.inputs[0] if coded else rows, RESHAPE, CAST).node
    if norm.op is not RMS_NORM or not in_f32(norm) or not is_weight(norm.inputs[1]):
        return None
    part = last_slice(norm.inputs[0])
    if part is None or part[3] != 1:
        return None
    wide, _, end, _ = part
    for write in appended(wide, end, users, op):
        keys, rows, *same = write.inputs
        turned = peel(rows, RESHAPE, CAST).node
        cos, sin = angles(turned)
        if (
            cos
            and sin
            and same == where
            and keys.type.dtype == ("bf16" if coded else latents.type.dtype)
            and keys.shape[1] == 1
            and starts_at(turned.inputs[0], wide, end)
        ):
            mask, *table = where
            scales = [each.inputs[0] for each in coded]
            operands = (wide, norm.inputs[1], cos, sin, latents, keys, mask, *scales, *table)
            return Cluster("latent_write", operands, (node[0], write[0], *(each[0] for each in coded)))
    return None


def scales_of(node: Node, users: Users) -> list[Node]:
    """Beside a write of codes, that of their scales, to the same place; none where it writes no codes."""
    rows = node.inputs[1]
    if not made_by(rows, ENCODE_ROWS) or rows.index:
        return []
    writes = users.get(rows.node[1], ())
    return [each for each in writes if each.op is node.op and each.inputs[2:] == node.inputs[2:]][:1]


def appended(wide: Value, start: int, users: Users, op: Op) -> list[Node]:
    """The cache writes of columns of `wide` from `start` on, whatever is done to them on the way there."""
    found = []
    for user in users.get(wide, ()):
        if starts_at(user[0], wide, start):
            while user.op is not op and len(readers := users.get(user[0], ())) == 1:
                user = readers[0]
            found += [user] if user.op is op else []
    return found


def starts_at(value: Value, wide: Value, start: int) -> bool:
    """Whether the value is columns of `wide` from `start` on."""
    part = last_slice(peel(value, RESHAPE))
    return part is not None and (*part[:2], part[3]) == (wide, start, 1)


def latent_attention(node: Node, users: Users) -> Cluster | None:
    """With rotation only; queries may be columns of something wider."""
    if node.op is not LATENT_ATTENTION or not in_f32(node) or node.attrs["pairs_in"] == "none":
        return None
    q, cos, sin, latents, keys, mask, w = node.inputs
    coded, keys = made_by(latents, DECODE_ROWS), in_cache(keys)
    codes, *scales = latents.node.inputs if coded else (in_cache(latents),)
    if not is_weight(w) or keys.type.dtype != ("bf16" if coded else codes.type.dtype):
        return None
    operands = (columns_of(q), cos, sin, codes, keys, mask, w, *scales)
    return Cluster("latent_attention", operands, node.values)


def in_cache(value: Value) -> Value:
    """A value as a cache stores it, which may be in half the bytes."""
    stored = value.node.inputs[0] if made_by(value, CAST) else value
    return stored if stored.type.dtype in HALVES else value


def is_append(node: Node, op: Op = APPEND) -> bool:
    """New rows in f32 for a cache of f32 or of half the bytes."""
    if node.op is not op:
        return False
    rows = node.inputs[1]
    return in_f32(node) or (
        rows.type.dtype in HALVES and made_by(rows, CAST) and in_f32(rows.node.inputs[0].node)
    )


def append(node: Node, users: Users) -> Cluster | None:
    """Any new rows; a narrow cache rounds them."""
    if not is_append(node):
        return None
    past, rows, mask = node.inputs
    return Cluster("append", (past, rows if in_f32(node) else rows.node.inputs[0], mask), node.values)


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
    caches = in_cache(keys.node.inputs[0]), in_cache(values.node.inputs[0])
    return Cluster("attention", (q, *caches, mask), node.values)


CLAIMS: tuple[Claim, ...] = (
    latent_write,
    latent_attention,
    attention,
    grouped_combine_in_place,
    grouped_combine_add,
    grouped_combine,
    route,
    grouped_swiglu,
    linear_swiglu,
    linear_add,
    linear,
    rms_norm,
    rotary,
    top_k_gate,
    alone(PERMUTE),
    append,
)
