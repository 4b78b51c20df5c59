"""Lowers the experts of a mixture-of-experts layer to grouped matrix products over the chosen ones only.

M tokens, k chosen by each token, R = M*k rows, E experts, H hidden, I expert width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from ..compiler.ir import Dim, Graph, Miss, Node, Value, make, plain
from ..compiler.ops import dense, elementwise, index, reduce, shape
from ..compiler.ops.routing import COMBINE, GROUPED_MATMUL, PERMUTE, SWIGLU
from .experts import gated, halves_of
from .gate import fuse_gate
from .match import VIEWS, Near, fuse, made_by, need, number, operands, orders, peel

__all__ = ["fuse_gate", "lower_routing"]

MAKES = (COMBINE,)

Users = Mapping[Value, list[Node]]


@dataclass(frozen=True, slots=True)
class _Product:
    """Each row times its expert's matrix: rows [R,K], weights [E,N,K].

    `groups` says which expert a row has: where each expert's rows end if rows lie in expert order, else the
    expert of each row, [R].
    """

    rows: Value
    weights: Value
    groups: Value
    in_order: bool


def lower_routing(graph: Graph, misses: list[Miss]) -> Graph:
    """Make grouped products of the experts, from rows sorted by expert or from a matrix fetched for each row.

    order = argsort(ids);  y = grouped_mm(silu(g) * u, Wd),  [g|u] = grouped_mm(x[order // k], Wgu)
    out = sum((y * w[order])[inverse of order] as [M,k,H], 1)
    or: y = matmul(Wd[ids], silu(g) * u),  [g|u] = matmul(Wgu[ids], x repeated k times);  out = sum(y * w, 1)

      ->  order, ends = permute(ids[M,k])
          h[R,2I] = grouped_matmul(x[M,H], order, ends, Wgu[E,2I,H]; share=k)
          out[M,H] = combine(grouped_matmul(swiglu(h), order, ends, Wd[E,H,I]; share=0), order, w[M,k])
    """
    return fuse(graph, misses, (dense.GROUPED_MM, dense.MATMUL), partial(_experts, graph.users()))


def _experts(users: Users, node: Node) -> Mapping[Value, Value]:
    down = _product(node)
    if down is None or _tokens(down.rows) is not None:
        return {}
    pair = need(gated(_bare(down.rows)), "between the experts' products is no silu(gate) * up")
    up, weights = _gate_up(*pair)
    if (up.groups, up.in_order) != (down.groups, down.in_order):
        raise Near("the experts' two products group their rows differently")
    x, order = need(_tokens(up.rows), "the experts' rows are not tokens, each as often as it chose experts")
    slots = _slots(up)
    if order != (make(reduce.SORT, slots)[1] if up.in_order else None):
        raise Near("the experts' rows do not lie in the order of their experts")
    total = _sum_over_chosen(users, node)
    slotwise = total.node.inputs[0]
    y, scales = need(_weighted(slotwise, order), "the experts' results are not weighted and put back")
    if _bare(y).node is not node:
        raise Near("the rows summed are not the experts' results")
    ids, scales = (_as_matrix(value, slotwise.shape[:2]) for value in (slots, scales))
    return {total: _lowered(x, ids, _cast(scales, total.type.dtype), weights, down.weights, node.origin)}


def _lowered(x: Value, ids: Value, scales: Value, gate_up: Value, down: Value, origin: str) -> Value:
    order, ends = make(PERMUTE, _cast(ids, "i64"), experts=down.shape[0], origin=origin).values
    h = GROUPED_MATMUL(x, order, ends, gate_up, share=ids.shape[1], origin=origin)
    y = GROUPED_MATMUL(SWIGLU(h, origin=origin), order, ends, down, share=0, origin=origin)
    return COMBINE(_cast(y, scales.type.dtype), order, scales, origin=origin)


def _product(node: Node) -> _Product | None:
    """The product of rows with their experts' matrices that the node is."""
    if made_by(node[0], dense.GROUPED_MM):
        rows, weights, ends = node.inputs
        return _Product(rows, _swapped(weights), ends, in_order=True)
    if not made_by(node[0], dense.MATMUL):
        return None
    for fetched, rows in (node.inputs, node.inputs[::-1]):
        taken = operands(fetched, index.TAKE)
        if taken and fetched.node.attrs["axis"] == 0 and (taken[0].type.rank, taken[1].type.rank) == (3, 1):
            weights = taken[0] if fetched == node.inputs[0] else _swapped(taken[0])
            return _Product(rows, weights, taken[1], in_order=False)
    return None


def _gate_up(gate: Value, up: Value) -> tuple[_Product, Value]:
    """The product that gives gate and up, and its weights [E,2I,H]."""
    unknown = "the experts' gate and up come from no product over experts"
    if (merged := halves_of(gate, up)) is not None:
        product = need(_product(_bare(merged).node), unknown)
        return product, product.weights
    both = _product(_bare(gate).node), _product(_bare(up).node)
    if both[0] is None or both[1] is None:
        raise Near(unknown)
    if (both[0].rows, both[0].groups) != (both[1].rows, both[1].groups):
        raise Near("the experts' gate and up products take different rows")
    return both[0], shape.CONCAT(both[0].weights, both[1].weights, axis=1)


def _tokens(rows: Value) -> tuple[Value, Value | None] | None:
    """(x, order) where the rows are tokens of x, each as often as it chose experts; order None: by slot."""
    rows = _bare(rows)
    if source := operands(rows, shape.EXPAND):
        x = peel(source[0], shape.RESHAPE)
        repeated = source[0].shape == (x.shape[0], 1, x.shape[-1]) and x.type.rank == 2
        return (x, None) if repeated and rows.type.rank == 3 else None
    if not made_by(rows, index.TAKE) or rows.node.attrs["axis"] != 0 or rows.type.rank != 2:
        return None
    x, chosen = rows.node.inputs
    slots, order = _slot_of_each(chosen, x.shape[0])
    return (x, order) if slots else None


def _slot_of_each(token: Value, tokens: Dim) -> tuple[bool, Value | None]:
    """(whether the value is the token of every slot, the order of the slots where they have one)."""
    token = _bare(token)
    if division := operands(token, elementwise.FLOOR_DIVIDE):
        slot, k = _bare(division[0]), number(division[1])
        known = k is not None and plain(tokens * int(k)) == slot.type.elements
        return known, None if made_by(slot, shape.IOTA) else slot
    if repeated := operands(token, shape.EXPAND):
        every = repeated[0].shape == (tokens, 1) and made_by(peel(repeated[0], shape.RESHAPE), shape.IOTA)
        return every, None
    if (taken := operands(token, index.TAKE)) and not made_by(_bare(taken[0]), index.TAKE):
        return _slot_of_each(taken[0], tokens)[0], taken[1]
    return False, None


def _slots(product: _Product) -> Value:
    """The expert of every slot, [R]."""
    if not product.in_order:
        return product.groups
    counts = operands(_bare(product.groups), reduce.CUMSUM)
    counted = operands(_bare(counts[0]), index.BINCOUNT) if counts else ()
    if not counted:
        raise Near("where each expert's rows end is no running sum of how many rows it has")
    ids = peel(counted[0], elementwise.CAST)
    return ids.node.inputs[0] if made_by(ids, reduce.SORT) and ids.index == 0 else ids


def _sum_over_chosen(users: Users, node: Node) -> Value:
    """The sum over a token's experts that the product's results end in."""
    followed = (*VIEWS, elementwise.MUL, index.TAKE)
    while True:
        followers = users.get(node[0], ())
        if len(followers) != 1:
            raise Near(f"the experts' results are used {len(followers)} times, not summed over the chosen")
        (node,) = followers
        if made_by(node[0], reduce.SUM):
            break
        if not made_by(node[0], *followed):
            raise Near(f"the experts' results go to {node.op.name}, not to a sum over the chosen")
    if node.attrs["axes"] != (1,) or node.attrs["keepdims"] or node.inputs[0].type.rank != 3:
        raise Near(f"the experts' results {node.inputs[0].type} are not summed over the chosen")
    return node[0]


def _weighted(slots: Value, order: Value | None) -> tuple[Value, Value] | None:
    """(rows in `order`, a weight for each slot) where the value is the weighted rows, back slot by slot."""
    slots = _bare(slots)
    for y, scale in orders(slots, elementwise.MUL):
        if scale.shape[-1:] == (1,) and (rows := _put_back(y, order)):
            return rows, _bare(scale)
    if order is None or (scaled := _put_back(slots, order)) is None:
        return None
    for y, scale in orders(scaled, elementwise.MUL):
        taken = operands(_bare(scale), index.TAKE)
        if scale.shape[-1:] == (1,) and len(taken) == 2 and taken[1] == order:
            return y, taken[0]
    return None


def _put_back(value: Value, order: Value | None) -> Value | None:
    """The rows in `order` that the value has slot by slot."""
    if order is None:
        return value
    taken = operands(_bare(value), index.TAKE)
    return taken[0] if taken and _inverts(taken[1], order) else None


def _inverts(value: Value, order: Value) -> bool:
    if scattered := operands(value, index.SCATTER_ROWS):
        return scattered[1] == order and made_by(scattered[2], shape.IOTA)
    return value == make(reduce.SORT, order)[1]


def _bare(value: Value) -> Value:
    return peel(value, elementwise.CAST, shape.RESHAPE)


def _swapped(weights: Value) -> Value:
    """Weights [E,N,K] from [E,K,N]; two transposes cancel."""
    if made_by(weights, shape.TRANSPOSE) and weights.node.attrs["perm"] == (0, 2, 1):
        return weights.node.inputs[0]
    return shape.TRANSPOSE(weights, perm=(0, 2, 1))


def _as_matrix(value: Value, wanted: tuple[Dim, ...]) -> Value:
    inner = _bare(value)
    if inner.shape == wanted:
        return inner
    if value.type.elements != plain(wanted[0] * wanted[1]):
        raise Near(f"{value.type} does not hold one number for each of the {wanted[1]} experts of a token")
    return shape.RESHAPE(value, shape=wanted)


def _cast(value: Value, dtype: str) -> Value:
    return value if value.type.dtype == dtype else elementwise.CAST(value, dtype=dtype)
