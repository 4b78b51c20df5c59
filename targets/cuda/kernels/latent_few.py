"""Out of the space of latents for a few tokens whose latents are in parts: combine and project at once.

Every block adds up the parts of a head for itself, and multiplies them with 16 value rows of w, which lie in
registers by then (see gemv_stream.py).
"""

import tilelang.language as T

from ...base import Kernel, Schedule
from ..program import Step
from ..sm import Sm
from .gemv_stream import STEP, Plan, added, registers, share_sums, step, streams
from .latent_parts import MOST_SPLITS, parts
from .latent_shared import BF16, F32, I64, LOWEST, PRELUDE, exp2, sizes

FEW = 1  # tokens up to which this is taken; it was not timed with more in a model
WARPS, LANES = 4, 32
MOVE = """
__device__ __forceinline__ void moec_move128(void* to, const void* from) {
  *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
}
"""


def plan_of(kernel: Kernel) -> Plan:
    """A warp takes a quarter of the latents, all at once."""
    latent, value = kernel["latent"], kernel["value"]
    ones = dict.fromkeys(("tiles", "columns", "groups", "depth", "fit"), 1)
    return Plan(latent, value, False, split=WARPS, unroll=latent // (WARPS * STEP), **ones)


def project_parts(kernel: Kernel, schedule: Schedule, sm: Sm) -> Step:
    """y0 [m, heads*value] from s2 and s3, as latent_parts.combination has them."""
    heads, nope, latent, value = (kernel[n] for n in ("heads", "nope", "latent", "value"))
    plan, own = plan_of(kernel), latent // LANES  # columns of a lane
    vector = 8 if own % 8 == 0 else 4
    rounds = MOST_SPLITS // WARPS
    batch, tokens, seen, _, m = sizes()
    count = parts(schedule, heads, sm, batch, tokens, seen)
    weights_, _, multiply, _ = streams(plan)

    @T.macro
    def weigh(scales, row, count, lane, weights):
        """weights [2]: those of parts `lane` and `lane + 32` of a row; 0 for a row without keys."""
        top = T.alloc_var(F32)
        for half in T.unroll(2):
            weights[half] = -T.infinity(F32)
            if lane + half * LANES < count:
                weights[half] = scales[row * count + lane + half * LANES]
        top = T.max(T.warp_reduce_max(T.max(weights[0], weights[1])), LOWEST)
        for half in T.unroll(2):
            weights[half] = exp2(weights[half] - top)
        top = T.warp_reduce_sum(weights[0] + weights[1])
        for half in T.unroll(2):
            weights[half] = T.if_then_else(top > 0, weights[half] / top, 0)

    @T.macro
    def add_parts(s2, s3, row, count, warp, lane, part, sums):
        """sums [own]: of every fourth part of a row, a lane's columns."""
        weights, weight = T.alloc_local((2,), F32), T.alloc_var(F32)
        for i in T.unroll(rounds):
            if i * WARPS + warp < count:
                for v in T.unroll(own // vector):
                    for j in T.vectorized(vector):
                        part[i, v * vector + j] = s2[
                            row * count + i * WARPS + warp, (v * LANES + lane) * vector + j
                        ]
        weigh(s3, row, count, lane, weights)
        for j in T.unroll(own):
            sums[j] = 0
        for i in T.unroll(rounds):
            weight = T.shfl_sync(weights[i * WARPS // LANES], (i * WARPS + warp) % LANES)
            if i * WARPS + warp < count:
                for j in T.unroll(own):
                    sums[j] += T.cast(part[i, j], F32) * weight

    @T.prim_func
    def latent_project_parts(
        x1: T.Tensor((batch, tokens, kernel["rope"] // 2), F32),
        x5: T.Tensor((batch, seen), I64),
        x7: T.Tensor((heads * (nope + value), latent), BF16),
        y0: T.Tensor((m, heads * value), BF16),  # before s2, for it says what m is
        s2: T.Tensor((m * heads * count, latent), BF16),
        s3: T.Tensor((m * heads * count,), F32),
    ):
        with T.Kernel(plan.blocks, heads, threads=plan.threads, prelude=PRELUDE + MOVE) as (c, h):
            thread = T.get_thread_binding(0)
            warp, lane = thread // LANES, thread % LANES
            sums, ws, xs, a = registers(plan)
            part, own_ = T.alloc_local((rounds, own), BF16), T.alloc_local((own,), F32)
            result, many = T.alloc_local((1,), F32), T.alloc_local((1,), "int32")
            shared = T.alloc_shared((WARPS, plan.sums * LANES), F32)
            sums_ = T.alloc_shared((WARPS, latent), F32)
            mixed = T.alloc_shared((plan.tokens, latent + 8), BF16)
            T.pdl_trigger()  # already here: what follows asks for its weights while parts are added up
            weights_(ws, x7, h * (nope + value) + nope, c, warp, lane, 0, 0, True)
            many[0] = parts(schedule, heads, sm, batch, tokens, seen)  # once: it takes divisions
            T.clear(sums)
            T.pdl_sync()
            for token in T.serial(m):
                add_parts(s2, s3, token * heads + h, many[0], warp, lane, part, own_)
                for v in T.unroll(own // vector):
                    for j in T.unroll(vector):
                        sums_[warp, (v * LANES + lane) * vector + j] = own_[v * vector + j]
                T.sync_threads()
                for j in T.unroll(latent // plan.threads):
                    added(result, sums_, j * plan.threads + thread, WARPS)
                    mixed[token, j * plan.threads + thread] = T.cast(result[0], BF16)
                T.sync_threads()
            for u in T.unroll(plan.unroll):
                T.evaluate(
                    T.call_extern(
                        *("handle", "moec_move128", T.address_of(xs[u * 4])),
                        T.address_of(mixed[lane // 4, plan.at(0, u, warp, lane)]),
                    )
                )
            multiply(sums, ws, xs, a, 0)
            share_sums(shared, sums, warp, lane, plan.sums)
            at, column, token = plan.place(thread)
            if token < m:
                added(result, shared, at, WARPS)
                y0[token, h * value + c * plan.block + column] = T.cast(result[0], BF16)

    return step(latent_project_parts)
