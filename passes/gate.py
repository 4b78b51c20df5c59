"""Finds the gate of a mixture-of-experts layer: how a token's scores become its experts and their weights.

M tokens, E experts, k chosen by each token, G groups of E/G experts.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..compiler.ir import Graph, Miss, Node, Value, make
from ..compiler.ops import elementwise, index, reduce, shape
from ..compiler.ops.routing import TOP_K_GATE
from .match import VIEWS, Near, fuse, made_by, need, number, operands, orders, over_last, peel

MAKES = (TOP_K_GATE,)

Users = Mapping[Value, list[Node]]
_LOWEST = float(np.finfo(np.float32).min)
_RANKED = (reduce.MAX, reduce.SUM, reduce.TOP_K)  # what ranks groups, not experts


@dataclass(frozen=True, slots=True)
class _Groups:
    """The choice before masking, and which groups of it stay."""

    choice: Value
    groups: int
    keep: int
    group_score: str
    masked: float


def fuse_gate(graph: Graph, misses: list[Miss]) -> Graph:
    """Make one op of a gate: scores, perhaps a bias and groups, the choice, and the weights of the chosen.

    p = softmax(logits[M,E]) | sigmoid(logits);  c = p [+ bias[E]]  [outside the best groups: -inf or 0]
    ids[M,k] = top_k(c);  w[M,k] = p at ids  [/ (sum(w) [+ eps])]  [* scale]
    top_k(logits) then softmax over the k is the same as softmax, top_k and dividing by the sum.

      ->  ids, w = top_k_gate(logits, bias; scores, k, groups, keep, group_score, normalise, eps, scale)
    """
    return fuse(graph, misses, (reduce.TOP_K,), partial(_gate, graph.users()))


def _gate(users: Users, node: Node) -> Mapping[Value, Value]:
    choice = node.inputs[0]
    flat = choice.type.rank == 2 and isinstance(choice.shape[1], int)
    if not flat or made_by(peel(choice, *VIEWS), *_RANKED):
        return {}
    if weights := _softmax_of_chosen(users, node):
        return _found(node, choice, weights, scores="softmax", normalise=True, eps=0.0, scale=1.0)
    limited = _groups(choice)
    p, bias = _biased(limited.choice if limited else choice)
    odd = f"a top-k takes its scores from {p.op.name}, neither softmax nor sigmoid"
    scores, logits = need(_scores(p), odd)
    weights = _chosen(users, node, p, biased=bias is not None)
    weights, normalise, eps = _normalised(users, weights)
    weights, scale = _scaled(users, weights)
    limits = _checked(limited, node.attrs["k"], biased=bias is not None) if limited else {}
    biases = [] if bias is None else [bias]
    return _found(
        node, logits, weights, *biases, scores=scores, normalise=normalise, eps=eps, scale=scale, **limits
    )


def _found(
    node: Node, logits: Value, weights: Value, *bias: Value, **attrs: Hashable
) -> Mapping[Value, Value]:
    """The gate in place of the choice and the weights it led to."""
    if logits.type.rank != 2:
        logits = shape.RESHAPE(logits, shape=node.inputs[0].shape)
    dtype = logits.type.dtype
    if weights.type.dtype != dtype or any(b.type.dtype != dtype for b in bias):
        raise Near(f"a gate of {dtype} logits has weights or a bias in another dtype")
    gate = make(TOP_K_GATE, logits, *bias, k=node.attrs["k"], origin=node.origin, **attrs)
    return {node[1]: gate[0], weights: gate[1]}


def _softmax_of_chosen(users: Users, node: Node) -> Value | None:
    """The softmax over the k values chosen, where that is all that is done with them."""
    if [user.op.name for user in users.get(node[0], ())] != [reduce.SOFTMAX.name]:
        return None
    (softmax,) = users[node[0]]
    return softmax[0] if over_last(softmax) else None


def _scores(value: Value) -> tuple[str, Value] | None:
    """(how, logits) where the value is a score for each expert."""
    value = peel(value, elementwise.CAST)
    if made_by(value, reduce.SOFTMAX):
        if not over_last(value.node):
            raise Near("the softmax is not over the experts")
        return "softmax", value.node.inputs[0]
    inside = operands(value, elementwise.SIGMOID)
    return ("sigmoid", inside[0]) if inside else None


def _biased(value: Value) -> tuple[Value, Value | None]:
    """(scores, bias) where the value is scores + bias, else itself alone."""
    for p, bias in orders(value, elementwise.ADD):
        if _scores(peel(p, shape.RESHAPE)) is None:
            continue
        vector = bias if bias.type.rank == 1 else peel(bias, shape.RESHAPE, shape.EXPAND)
        if vector.shape != p.shape[-1:]:
            raise Near(f"the scores are biased by {bias.type}, not by one number for each expert")
        return peel(p, shape.RESHAPE), vector
    return value, None


def _groups(choice: Value) -> _Groups | None:
    """The choice before `where(its group is kept, choice, masked)`."""
    masked = peel(choice, shape.RESHAPE)
    if not made_by(masked, elementwise.WHERE):
        return None
    condition, yes, no = masked.node.inputs
    inner, fill, kept_where = (yes, no, True) if number(no) is not None else (no, yes, False)
    value = need(number(fill), "experts are masked with scores that are not one number")
    inner = peel(inner, shape.RESHAPE)
    chosen, groups, per_group = _kept_groups(condition, kept_where, choice)
    unranked = "groups are ranked by neither their best nor their best two"
    ranked, group_score = need(_ranked(chosen.inputs[0]), unranked)
    if ranked.shape != (choice.shape[0], groups, per_group) or peel(ranked, shape.RESHAPE) != inner:
        raise Near("groups are ranked by other scores than those that choose experts")
    return _Groups(inner, groups, chosen.attrs["k"], group_score, value)


def _kept_groups(mask: Value, kept_where: bool, choice: Value) -> tuple[Node, int, int]:
    """(the top-k over groups, G, E/G) where the mask holds for every expert of the groups chosen."""
    spread = []
    while made_by(mask, *VIEWS, elementwise.LOGICAL_NOT):
        kept_where ^= made_by(mask, elementwise.LOGICAL_NOT)
        spread.append(mask.shape)
        (mask,) = mask.node.inputs
    tokens, experts = choice.shape
    other = "experts are masked by something else than the groups chosen"
    if not made_by(mask, index.SCATTER_ALONG) or not kept_where or mask.type.rank != 2:
        raise Near(other)
    none, chosen, one = mask.node.inputs
    groups = mask.shape[1]
    marked = number(none) == 0 and number(one) not in (None, 0.0)
    if not marked or chosen.index != 1 or not made_by(chosen, reduce.TOP_K):
        raise Near(other)
    if not isinstance(groups, int) or experts % groups or (tokens, groups, 1) not in spread:
        raise Near(f"a mask of {mask.type} does not spread over {experts} experts group by group")
    return chosen.node, groups, experts // groups


def _ranked(strength: Value) -> tuple[Value, str] | None:
    """(choice in groups [M,G,E/G], how a group is ranked)."""
    strength = peel(strength, shape.RESHAPE, elementwise.CAST)
    if made_by(strength, reduce.MAX) and over_last(strength.node):
        return strength.node.inputs[0], "max"
    best, wanted, name = strength, 1, "max"
    if made_by(strength, reduce.SUM) and over_last(strength.node):
        best, wanted, name = strength.node.inputs[0], 2, "top2"
    taken = made_by(best, reduce.TOP_K) and best.index == 0 and best.node.attrs["k"] == wanted
    return (best.node.inputs[0], name) if taken else None


def _checked(limited: _Groups, k: int, biased: bool) -> dict[str, str | int]:
    """The attributes of the groups, where a masked expert is sure never to be chosen."""
    per_group = limited.choice.shape[-1] // limited.groups
    if limited.keep * per_group < k:
        raise Near(f"{limited.keep} groups of {per_group} experts are fewer than the {k} to choose")
    if limited.masked > _LOWEST and (biased or limited.masked != 0):
        raise Near(f"masked experts score {limited.masked:g}, and others may score less")
    if limited.keep == limited.groups:
        return {}
    return {"groups": limited.groups, "keep": limited.keep, "group_score": limited.group_score}


def _chosen(users: Users, node: Node, p: Value, biased: bool) -> Value:
    """The scores p of the chosen experts: gathered, or the values chosen by where no bias is in them."""
    for user in users.get(node[1], ()):
        if user.op.name == index.GATHER_ALONG.name and user.inputs[1] == node[1]:
            source = user.inputs[0]
            if peel(source, shape.RESHAPE) != p and (biased or source != node.inputs[0]):
                raise Near("the weights are gathered from other scores than those that choose")
            return user[0]
    if biased:
        raise Near("the weights of the chosen experts have the bias in them")
    return node[0]


def _normalised(users: Users, weights: Value) -> tuple[Value, bool, float]:
    """(weights / (their sum + eps), True, eps) where that is what becomes of them."""
    for user in users.get(weights, ()):
        if user.op.name != elementwise.DIV.name or user.inputs[0] != weights:
            continue
        total = peel(user.inputs[1], shape.RESHAPE, shape.EXPAND)
        for whole, eps in [(total, 0.0), *((a, number(b)) for a, b in orders(total, elementwise.ADD))]:
            whole = peel(whole, shape.RESHAPE, shape.EXPAND)
            if eps is not None and operands(whole, reduce.SUM) == (weights,) and over_last(whole.node):
                return user[0], True, eps
        raise Near(f"the weights are divided by {total.op.name}, not by their sum")
    return weights, False, 0.0


def _scaled(users: Users, weights: Value) -> tuple[Value, float]:
    followers = users.get(weights, ())
    if len(followers) == 1:
        for same, factor in orders(followers[0][0], elementwise.MUL):
            if same == weights and (scale := number(factor)) is not None:
                return followers[0][0], scale
    return weights, 1.0
