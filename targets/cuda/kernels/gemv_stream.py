"""What the products for few tokens are made of: every weight is read once, straight into registers.

A warp takes 16 rows of the weight at a time as the M side of an mma, and 8 or 16 tokens as its N side. The
contraction's index may be permuted as long as both sides agree: a lane's 16 bytes of a row are its share of
two mmas, and its 16 bytes of a token are the matching share, so that no operand passes shared memory. Warps
of a block split k (and, for grouped_combine, the experts); their sums meet in shared memory.
"""

from dataclasses import dataclass
from typing import Any

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Step
from .plain import silu

BF16, F32, I32, I64, U32 = "bfloat16", "float32", "int32", "int64", "uint32"
STEP = 32  # of k: what four lanes read of a row, 16 bytes each
VECTOR = 8  # numbers in 16 bytes
# Every barrier stands in these files: those that TileLang would add part writes that never meet. It would
# also check every index, and let arrays share memory, which takes more barriers.
AS_WRITTEN = {
    "tl.disable_thread_storage_sync": True,
    "tl.disable_shared_memory_reuse": True,
    "tl.disable_safe_memory_legalize": True,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes that a kernel's code is unrolled by.

    tiles: of 16 rows of the weight, that a warp multiplies at once; columns: of 8 tokens; split: warps that
    share k; groups: warps that share experts; unroll: steps of k in a batch; depth: batches under way; fit:
    blocks that a multiprocessor has registers for, at least.
    """

    k: int
    n: int
    paired: bool
    tiles: int
    columns: int
    split: int
    groups: int
    unroll: int
    depth: int
    fit: int

    @property
    def batches(self) -> int:
        """Of one warp, to get through k."""
        return -(-self.k // (STEP * self.unroll * self.split))

    @property
    def exact(self) -> bool:
        """Whether every step of every warp lies within k."""
        return self.k % (STEP * self.unroll * self.split) == 0

    @property
    def slots(self) -> int:
        """Batches that there are registers for."""
        return min(self.depth, self.batches)

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.split * self.groups

    @property
    def tokens(self) -> int:
        """That a block takes at once."""
        return 8 * self.columns

    @property
    def width(self) -> int:
        """Columns of the result."""
        return self.n // 2 if self.paired else self.n

    @property
    def block(self) -> int:
        """Columns of the result in a block."""
        return self.tiles * (8 if self.paired else 16)

    @property
    def blocks(self) -> int:
        """That cover the result's columns."""
        return -(-self.width // self.block)

    @property
    def sums(self) -> int:
        """Accumulators of a lane."""
        return self.tiles * self.columns * 4

    @property
    def results(self) -> int:
        """Numbers of the result in a block; two sums make one where gate and up are paired."""
        return self.sums * 32 // (2 if self.paired else 1)

    @property
    def turns(self) -> int:
        """Results of one thread."""
        return -(-self.results // self.threads)

    def at(self, batch: Any, u: Any, part: Any, lane: Any) -> Any:
        """Where in k a lane's 16 bytes begin."""
        return ((batch * self.split + part) * self.unroll + u) * STEP + lane % 4 * VECTOR

    def low(self, block: Any, r: Any, lane: Any) -> Any:
        """The weight's row that is row lane // 4 of the mma's tile r; one past the end reads the last."""
        first = block * self.block + r * (8 if self.paired else 16) + lane // 4
        return T.min(first, self.width - 1)

    def high(self, block: Any, r: Any, lane: Any) -> Any:
        """The weight's row that is row lane // 4 + 8 of the mma's tile r: of up where there is a gate."""
        if self.paired:
            return self.width + self.low(block, r, lane)
        return T.min(block * self.block + r * 16 + lane // 4 + 8, self.width - 1)

    def place(self, e: Any) -> tuple[Any, Any, Any]:
        """Of a block's result e: its first sum (times 32 lanes), its column and its token in the block."""
        lane, i = e % 32, e // 32
        if self.paired:
            sum_, c = i // 2 * 4 + i % 2, i % 2
            return sum_ * 32 + lane, i // 2 // self.columns * 8 + lane // 4, self.token(i // 2, lane, c)
        c = i % 4
        column = i // 4 // self.columns * 16 + c // 2 * 8 + lane // 4
        return e, column, self.token(i // 4, lane, c % 2)

    def token(self, tile: Any, lane: Any, c: Any) -> Any:
        """The token of sum c of the mma's tile."""
        return tile % self.columns * 8 + lane % 4 * 2 + c


def plan_of(kernel: Kernel, schedule: Schedule) -> Plan:
    """What a schedule means for a kernel."""
    knobs = ("v_tiles", "v_columns", "v_split", "v_groups", "v_unroll", "v_depth", "v_blocks")
    values = [int(schedule[knob]) if knob in schedule else 1 for knob in knobs]
    return Plan(kernel["k"], kernel["n"], kernel.kind.endswith("swiglu"), *values)


def streams(plan: Plan) -> tuple[Any, Any, Any, Any]:
    """Macros that all functions here are made of: ask for weights, for tokens, multiply, and all batches."""
    k, unroll, tiles, columns, slots = plan.k, plan.unroll, plan.tiles, plan.columns, plan.slots

    def within(wanted, at):
        return wanted if plan.exact else T.And(wanted, at < k)

    @T.macro
    def weights(ws, w, base, block, part, lane, batch, slot, wanted):
        """This warp's batch of the block's rows of w, from row `base` on, into a slot."""
        for u in T.unroll(unroll):
            for r in T.unroll(tiles):
                at = plan.at(batch, u, part, lane)
                to = ((slot * unroll + u) * tiles + r) * 8
                low = T.ldg128(w[base + plan.low(block, r, lane), at], within(wanted, at))
                ws[to : to + 4] = low
                high = T.ldg128(w[base + plan.high(block, r, lane), at], within(wanted, at))
                ws[to + 4 : to + 8] = high

    @T.macro
    def tokens(xs, x, rows, part, lane, batch, slot):
        """This warp's batch of the rows of x, zeros for those that are negative, into a slot."""
        for u in T.unroll(unroll):
            for q in T.unroll(columns):
                at = plan.at(batch, u, part, lane)
                to = ((slot * unroll + u) * columns + q) * 4
                xs[to : to + 4] = T.ldg128(x[T.max(rows[q], 0), at], within(rows[q] >= 0, at))

    @T.macro
    def multiply(sums, ws, xs, a, slot):
        """Adds a slot's products to the sums."""
        for u in T.unroll(unroll):
            for r in T.unroll(tiles):
                for half in T.unroll(2):
                    w = ((slot * unroll + u) * tiles + r) * 8 + half * 2
                    a[0] = ws[w]
                    a[1] = ws[w + 4]
                    a[2] = ws[w + 1]
                    a[3] = ws[w + 5]
                    for q in T.unroll(columns):
                        T.ptx_mma(
                            *(F32, "m16n8k16", "row", "col", "bf16", "bf16", "fp32"),
                            *(a.data, 0),
                            *(xs.data, ((slot * unroll + u) * columns + q) * 4 + half * 2),
                            *(sums.data, (r * columns + q) * 4),
                            T.bool(False),
                        )

    @T.macro
    def through(sums, ws, xs, a, w, base, x, rows, block, part, lane):
        """All of k; the first slots' weights are under way."""
        for batch in T.unroll(slots):
            tokens(xs, x, rows, part, lane, batch, batch)
        for batch in T.unroll(plan.batches):
            multiply(sums, ws, xs, a, batch % slots)
            if batch + slots < plan.batches:
                weights(ws, w, base, block, part, lane, batch + slots, batch % slots, True)
                tokens(xs, x, rows, part, lane, batch + slots, batch % slots)

    return weights, tokens, multiply, through


def step(function: Any) -> Step:
    """The function as it is written, beginning before what comes before it is done."""
    return Step(function.with_attr("tilelang_pass_configs", AS_WRITTEN), overlap=True)


def registers(plan: Plan) -> tuple[Any, Any, Any, Any]:
    """A thread's sums, weights, tokens, and the mma's side of weights."""
    steps = plan.slots * plan.unroll
    return (
        T.alloc_local((plan.sums,), F32),
        T.alloc_local((steps * plan.tiles * 8,), U32),
        T.alloc_local((steps * plan.columns * 4,), U32),
        T.alloc_local((4,), U32),
    )


def below(lane: Any) -> Any:
    """The lanes before this one, as bits."""
    return (T.uint32(1) << T.cast(lane, U32)) - T.uint32(1)


@T.macro
def share_sums(shared, sums, warp, lane, count):
    """Every warp's sums, for all to see."""
    for i in T.unroll(count):
        shared[warp, i * 32 + lane] = sums[i]
    T.sync_threads()


@T.macro
def added(total, shared, i, warps):
    """total[0]: one sum over all warps."""
    total[0] = 0.0
    for warp in T.unroll(warps):
        total[0] += shared[warp, i]


@T.macro
def finished(result, shared, first, warps, paired):
    """result[0]: a number of the result, from its sums."""
    added(result, shared, first, warps)
    if paired:
        up = T.alloc_local((1,), F32)
        added(up, shared, first + 64, warps)
        result[0] = silu(result[0]) * up[0]
