"""Which experts each token takes: the router's product, the gate, and the choices sorted by expert.

A warp gates a token: lane l holds experts l, l + 32, .. Scores compare as integers of the same order, which a
warp reduces in one instruction; among equals the lowest expert wins, as the op says.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Step
from ..sm import Sm
from ..widths import LANES
from . import order, router

GATE_WARPS = 4  # of a block that gates and neither counts nor sorts
TAKEN = -(1 << 31)  # a key below that of any number


@dataclass(frozen=True)
class Gate:
    """What a gate does, as in GATE of targets/regions.py."""

    experts: int
    chosen: int
    groups: int
    keep: int
    sigmoid: bool
    top2: bool
    normalise: bool
    bias: bool
    shared: int

    @property
    def share(self) -> int:
        """Experts of a token."""
        return self.chosen + self.shared

    @property
    def bins(self) -> int:
        """Experts that have rows, the shared ones last."""
        return self.experts + self.shared

    @property
    def group(self) -> int:
        """Experts of a group."""
        return self.experts // self.groups

    @property
    def slots(self) -> int:
        """Experts that a lane holds."""
        return -(-self.experts // LANES)


def gate_of(kernel: Kernel) -> Gate:
    """The gate of a route or top_k_gate kernel. Raises ValueError for one that a warp cannot hold."""
    experts, chosen = ("n", "chosen") if kernel.kind == "route" else ("experts", "k")
    flags: dict[str, Any] = {name: bool(kernel[name]) for name in ("sigmoid", "top2", "normalise", "bias")}
    counts: dict[str, Any] = {name: kernel[name] for name in ("groups", "keep", "shared")}
    gate = Gate(experts=kernel[experts], chosen=kernel[chosen], **flags, **counts)
    if gate.share > LANES or gate.groups > LANES:
        raise ValueError(f"{kernel}: {gate.share} experts a token, {gate.groups} groups; at most {LANES}")
    return gate


def gate_macro(gate: Gate) -> Any:
    """A macro (parts, logits [parts, m, experts], bias, token, lane, warp, probabilities [warps, experts],
    scores [warps, experts], eps, scale, ids, weights): lane j gets id and weight of the token's slot j.

    Logits are the sum over their first axis. probabilities and scores are shared memory, a row a warp; bias
    [slots], ids [1] and weights [1] are the lane's own.
    """
    experts, slots, lowest = gate.experts, gate.slots, -T.infinity("float32")

    @T.macro
    def softmax(p):
        top = T.alloc_var("float32", init=lowest)
        total = T.alloc_var("float32", init=0.0)
        for j in T.unroll(slots):
            top = T.max(top, p[j])
        top = T.warp_reduce_max(top)
        for j in T.unroll(slots):
            p[j] = T.exp(p[j] - top)
            total += p[j]
        total = T.warp_reduce_sum(total)
        for j in T.unroll(slots):
            p[j] = p[j] / total

    @T.macro
    def groups_kept(lane, warp, scores, kept):
        """kept [1]: a bit for each group that the token may choose from."""
        first = T.alloc_var("float32", init=lowest)
        second = T.alloc_var("float32", init=lowest)
        above = T.alloc_var("int32", init=0)
        score = T.alloc_var("float32")
        if lane < gate.groups:
            for i in T.serial(gate.group):
                # Each lane begins elsewhere in its group, so that lanes read different banks.
                score = scores[warp, lane * gate.group + (i + lane) % gate.group]
                second = T.max(second, T.min(first, score))
                first = T.max(first, score)
        if gate.top2 and gate.group > 1:
            first = first + second
        for g in T.unroll(gate.groups):
            score = T.shfl_sync(first, g)
            above += T.if_then_else(score > first or (score == first and g < lane), 1, 0)
        kept[0] = T.cast(T.ballot(T.if_then_else(lane < gate.groups and above < gate.keep, 1, 0)), "int32")

    @T.macro
    def take(lane, keys, ids):
        """ids [1]: lane r gets the expert of the r-th highest key."""
        top = T.alloc_var("int32")
        winner = T.alloc_var("int32")
        for r in T.unroll(gate.chosen):
            top = keys[0]
            for j in T.unroll(1, slots):
                top = T.max(top, keys[j])
            top = T.warp_reduce_max(top)
            winner = experts - 1
            for j in T.unroll(slots):
                at = (slots - 1 - j) * LANES + lane
                winner = T.if_then_else(keys[slots - 1 - j] == top and at < experts, at, winner)
            winner = T.warp_reduce_min(winner)
            for j in T.unroll(slots):
                keys[j] = T.if_then_else(j * LANES + lane == winner, TAKEN, keys[j])
            ids[0] = T.if_then_else(lane == r, winner, ids[0])

    @T.macro
    def choose(parts, logits, bias, token, lane, warp, probabilities, scores, eps, scale, ids, weights):
        p = T.alloc_local((slots,), "float32")
        keys = T.alloc_local((slots,), "int32")
        kept = T.alloc_local((1,), "int32")
        total = T.alloc_var("float32")
        for j in T.unroll(slots):
            p[j] = lowest
            if j * LANES + lane < experts:
                p[j] = logits[0, token, j * LANES + lane]
                for part in T.unroll(1, parts):
                    p[j] += logits[part, token, j * LANES + lane]
        if gate.sigmoid:
            for j in T.unroll(slots):
                p[j] = 1.0 / (1.0 + T.exp(-p[j]))
        else:
            softmax(p)
        kept[0] = 1
        for j in T.unroll(slots):
            if j * LANES + lane < experts:
                probabilities[warp, j * LANES + lane] = p[j]
                if gate.groups > 1:
                    scores[warp, j * LANES + lane] = p[j] + bias[j]
        T.sync_warp()
        if gate.groups > 1:
            groups_kept(lane, warp, scores, kept)
        for j in T.unroll(slots):
            bits = T.reinterpret(p[j] + bias[j], "int32")
            ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
            free = (kept[0] >> ((j * LANES + lane) // gate.group)) & 1
            keys[j] = T.if_then_else(j * LANES + lane < experts and free == 1, ordered, TAKEN)
        ids[0] = experts + lane - gate.chosen
        take(lane, keys, ids)
        weights[0] = 1.0
        if lane < gate.chosen:
            weights[0] = probabilities[warp, ids[0]]
        total = T.warp_reduce_sum(T.if_then_else(lane < gate.chosen, weights[0], 0.0))
        if gate.normalise:
            total = scale / (total + eps)
        else:
            total = scale
        weights[0] = T.if_then_else(lane < gate.chosen, weights[0] * total, 1.0)
        # The next token's probabilities take the place of these.
        T.sync_warp()

    return choose


@T.macro
def own_bias(gate, x, lane, bias):
    """bias [slots]: that of the lane's experts, 0 where there is none.

    Then x is not read, so it is no argument of the launch either.
    """
    for j in T.unroll(gate.slots):
        bias[j] = 0.0
    if gate.bias:
        for j in T.unroll(gate.slots):
            if j * LANES + lane < gate.experts:
                bias[j] = x[j * LANES + lane]


def top_k_gate(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """ids and weights of each token, a warp a token."""
    gate = gate_of(kernel)
    choose, experts, share, warps = gate_macro(gate), gate.experts, gate.share, GATE_WARPS
    m = T.dynamic("m")

    @T.prim_func
    def gate_kernel(
        x0: T.Tensor((1, m, experts), "float32"),
        x1: T.Tensor((experts,), "float32"),
        y0: T.Tensor((m, share), "int64"),
        y1: T.Tensor((m, share), "float32"),
        eps: T.float32,
        scale: T.float32,
    ):
        with T.Kernel(T.ceildiv(m, warps), threads=warps * LANES) as block:
            lane = T.get_thread_binding(0) % LANES
            warp = T.get_thread_binding(0) // LANES
            chances = T.alloc_shared((warps, experts), "float32")
            scores = T.alloc_shared((warps, experts), "float32")
            bias = T.alloc_local((gate.slots,), "float32")
            ids = T.alloc_local((1,), "int32")
            weights = T.alloc_local((1,), "float32")
            own_bias(gate, x1, lane, bias)
            T.pdl_trigger()
            T.pdl_sync()
            token = block * warps + warp
            if token < m:
                choose(1, x0, bias, token, lane, warp, chances, scores, eps, scale, ids, weights)
                if lane < share:
                    y0[token, lane] = T.cast(ids[0], "int64")
                    y1[token, lane] = weights[0]

    return [Step(gate_kernel, overlap=True)]


def route(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """The product, then gate and sort in one block for few tokens, by pieces for many."""
    gate, parts = gate_of(kernel), router.parts_of(kernel, schedule)
    few = f"m <= {order.FEW // gate.share}"
    return [
        router.product(kernel, schedule),
        Step(gate_and_sort(gate, parts), when=few, overlap=True),
        Step(gate_and_count(gate, parts), when=f"!({few})", overlap=True),
        order.spread(gate.share, gate.bins, "s1"),
    ]


def gate_and_sort(gate: Gate, parts: int) -> Any:
    """One block for all tokens: each warp takes every 16th."""
    choose, share, threads = gate_macro(gate), gate.share, order.BLOCK
    sort = order.sort_macro(gate.bins, threads)
    experts, warps = gate.experts, threads // LANES
    m = T.dynamic("m")

    @T.prim_func
    def gate_and_sort_kernel(
        s0: T.Tensor((parts, m, experts), "float32"),
        x2: T.Tensor((experts,), "float32"),
        y0: T.Tensor((m * share,), "int64"),
        y1: T.Tensor((gate.bins,), "int64"),
        y2: T.Tensor((m, share), "float32"),
        eps: T.float32,
        scale: T.float32,
    ):
        with T.Kernel(1, threads=threads):
            t = T.get_thread_binding(0)
            lane = t % LANES
            warp = t // LANES
            found = T.alloc_shared((order.FEW,), "int32")
            chances = T.alloc_shared((warps, experts), "float32")
            scores = T.alloc_shared((warps, experts), "float32")
            bias = T.alloc_local((gate.slots,), "float32")
            ids = T.alloc_local((1,), "int32")
            weights = T.alloc_local((1,), "float32")
            own_bias(gate, x2, lane, bias)
            T.pdl_trigger()
            T.pdl_sync()
            for i in T.serial(T.ceildiv(m, warps)):
                token = i * warps + warp
                if token < m:
                    choose(parts, s0, bias, token, lane, warp, chances, scores, eps, scale, ids, weights)
                    if lane < share:
                        found[token * share + lane] = ids[0]
                        y2[token, lane] = weights[0]
            T.sync_threads()
            sort(found, m * share, t, y0, y1)

    return gate_and_sort_kernel


def gate_and_count(gate: Gate, parts: int) -> Any:
    """A block for each piece of tokens, whose choices it counts."""
    choose, share, experts, bins = gate_macro(gate), gate.share, gate.experts, gate.bins
    threads, piece_tokens = order.BLOCK, order.PIECE
    warps = threads // LANES
    m = T.dynamic("m")

    @T.prim_func
    def gate_and_count_kernel(
        s0: T.Tensor((parts, m, experts), "float32"),
        x2: T.Tensor((experts,), "float32"),
        s1: T.Tensor((m * share,), "int32"),
        s2: T.Tensor((T.ceildiv(m, piece_tokens), bins), "int32"),
        y2: T.Tensor((m, share), "float32"),
        eps: T.float32,
        scale: T.float32,
    ):
        with T.Kernel(T.ceildiv(m, piece_tokens), threads=threads) as piece:
            t = T.get_thread_binding(0)
            lane = t % LANES
            warp = t // LANES
            counts = T.alloc_shared((bins,), "int32")
            chances = T.alloc_shared((warps, experts), "float32")
            scores = T.alloc_shared((warps, experts), "float32")
            bias = T.alloc_local((gate.slots,), "float32")
            ids = T.alloc_local((1,), "int32")
            weights = T.alloc_local((1,), "float32")
            own_bias(gate, x2, lane, bias)
            order.clear(counts, bins, t, threads)
            T.pdl_trigger()
            T.pdl_sync()
            T.sync_threads()
            for i in T.serial(piece_tokens // warps):
                token = piece * piece_tokens + i * warps + warp
                if token < m:
                    choose(parts, s0, bias, token, lane, warp, chances, scores, eps, scale, ids, weights)
                    if lane < share:
                        s1[token * share + lane] = ids[0]
                        y2[token, lane] = weights[0]
                        T.atomic_add(counts[ids[0]], 1)
            T.sync_threads()
            order.write(counts, s2, piece, bins, t, threads)

    return gate_and_count_kernel


BUILDERS: Mapping[str, Callable[[Kernel, Schedule, Sm], Sequence[Step]]] = {
    "top_k_gate": top_k_gate,
    "permute": order.permute,
    "route": route,
}
