"""Multi-head latent attention: from keys and values expanded for every head back to the cache of latents.

B batch, T new tokens, S cached tokens, Z = S+T, L rows of the cache, N heads, C latent, D unrotated and
R rotated part of a head, V values of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..compiler.ir import Graph, Miss, Node, Value
from ..compiler.ops.attention import SDPA
from ..compiler.ops.cache import CAUSAL_MASK, FILLED
from ..compiler.ops.dense import LINEAR
from ..compiler.ops.latent import LATENT_ATTENTION
from ..compiler.ops.norm import ROTARY
from ..compiler.ops.shape import CONCAT, EXPAND, RESHAPE, TRANSPOSE
from .layout import is_weight
from .match import Near, fuse, last_slice, made_by, operands, peel

MAKES = (LATENT_ATTENTION,)

HEADS_FIRST = (0, 2, 1, 3)


def fuse_mla(graph: Graph, misses: list[Miss]) -> Graph:
    """Attention whose keys and values are one projection of a cached latent becomes latent_attention.

        before   kv_BNZ(D+V) = linear(filled(latent_B1LC, mask_BZ), w_kvb);  k_BNZD, v_BNZV = slices of kv
                 k = concat(k, expand(filled(key_B1LR, mask)))
                 sdpa(concat(q_BNTD, rotary(q_BNTR)), k, v, causal_mask(mask))
        after    latent_attention(q_BTN(D+R), cos, sin, latent, key, mask, w_kvb)

    Only the latent and the one rotated key of a token are ever kept: C+R numbers and not N*(D+R+V).
    """
    return fuse(graph, misses, (SDPA,), latent_attention)


def latent_attention(node: Node) -> Mapping[Value, Value]:
    """The replacement of one sdpa; none where its keys are not a projection beside a key all heads share."""
    q, keys, values = node.inputs[:3]
    k_nope, shared = [*operands(keys, CONCAT), None, None][:2]
    if k_nope is None or shared is None or not made_by(shared, EXPAND) or shared.node.inputs[0].shape[1] != 1:
        return {}
    kv, nope, value = projection(k_nope, values)
    latent, w = projected(kv)
    rotary_keys, mask = cached(shared.node.inputs[0])
    latent, latent_mask = cached(latent)
    if latent_mask != mask:
        raise Near("latent and rotated key are masked differently")
    require_causal(node.inputs[3:], mask)
    flat, angles, pairs = query(q, nope)
    batch, heads, new, _ = q.shape
    result = LATENT_ATTENTION(
        flat, *angles, latent, rotary_keys, mask, w,
        heads=heads, nope=nope, value=value, scale=node.attrs["scale"], **pairs, origin=node.origin,
    )  # fmt: skip
    return {node[0]: TRANSPOSE(RESHAPE(result, shape=(batch, new, heads, value)), perm=HEADS_FIRST)}


def projection(k_nope: Value, values: Value) -> tuple[Value, int, int]:
    """The tensor [B,N,Z,D+V] that keys and values are cut from, D and V."""
    key_part, value_part = last_slice(k_nope), last_slice(values)
    if key_part is None or value_part is None or key_part[0] != value_part[0]:
        raise Near("keys and values are not slices of one projection")
    kv, start, nope, _ = key_part
    if start != 0 or value_part[1:] != (nope, kv.shape[-1], 1):
        raise Near("a head of the projection is not its keys, then its values")
    return kv, nope, kv.shape[-1] - nope


def projected(kv: Value) -> tuple[Value, Value]:
    """The rows and the weight that the per-head tensor [B,N,Z,d] is the product of."""
    if not made_by(kv, TRANSPOSE) or kv.node.attrs["perm"] != HEADS_FIRST:
        raise Near("keys and values are not laid out by head")
    product = peel(kv, TRANSPOSE, RESHAPE)
    if not made_by(product, LINEAR) or len(product.node.inputs) != 2:
        raise Near(f"keys and values come from {product.op.name}, not from a projection without bias")
    rows, w = product.node.inputs
    if not is_weight(w):
        raise Near("the projection to keys and values has a computed weight")
    return peel(rows, RESHAPE), w


def cached(rows: Value) -> tuple[Value, Value]:
    """The cache [B,1,L,d] that these rows are the filled part of, and its mask."""
    if not made_by(rows, FILLED):
        raise Near(f"expected the rows of a cache, found {rows.op.name}")
    cache, mask = rows.node.inputs
    if cache.shape[1] != 1:
        raise Near(f"the cache has {cache.shape[1]} heads, expected one")
    return cache, mask


def require_causal(masks: Sequence[Value], mask: Value) -> None:
    """Attention must see what a causal model sees, and nothing else."""
    causal = peel(masks[0], EXPAND) if masks else None
    if causal is None or not made_by(causal, CAUSAL_MASK) or causal.node.inputs[0] != mask:
        raise Near("attention is not causal over the cache's own mask")


def query(q: Value, nope: int) -> tuple[Value, tuple[Value, ...], Mapping[str, str]]:
    """Queries [B,T,N*(D+R)] before rotation, cos and sin [B,T,R/2], and how the pairs lie."""
    if parts := operands(q, CONCAT):
        plain, turned = last_slice(parts[0]), parts[1]
        rotated = last_slice(turned.node.inputs[0]) if made_by(turned, ROTARY) else None
        if plain is None or rotated is None or len(parts) != 2:
            raise Near("the query's second part is not a rotated slice")
        whole, start, stop, _ = plain
        if rotated != (whole, nope, q.shape[-1], 1) or (start, stop) != (0, nope):
            raise Near("the query's parts do not meet where the keys' do")
        angles = tuple(angle(value, q) for value in turned.node.inputs[1:])
        return by_token(whole), angles, dict(turned.node.attrs)
    if made_by(q, ROTARY):
        raise Near("the whole query is rotated")
    return by_token(q), (), {"pairs_in": "none", "pairs_out": "none"}


def by_token(q: Value) -> Value:
    """[B,N,T,d] as [B,T,N*d]."""
    batch, heads, new, width = q.shape
    return RESHAPE(TRANSPOSE(q, perm=HEADS_FIRST), shape=(batch, new, heads * width))


def angle(value: Value, q: Value) -> Value:
    """cos or sin [B|1,1,T|1,R/2] as [B,T,R/2]."""
    (batch, _, new, _), pairs = q.shape, value.shape[-1]
    if value.type.rank != 4 or value.shape[1] != 1:
        raise Near(f"heads turn by angles of their own: {value.type}")
    return RESHAPE(EXPAND(value, shape=(batch, 1, new, pairs)), shape=(batch, new, pairs))
