"""A cache in parts, so that few sequences have work for all of the GPU, and how parts become one."""

from typing import Any

import tilelang.language as T

from ...base import Schedule
from ..sm import Sm
from .latent_shared import BF16, F32, LOWEST, PRELUDE, exp2

MOST_SPLITS = 64
COLUMNS = 8  # bf16 of a 16-byte access
# Accesses are within the arrays as they are written; whether one is takes divisions by sizes to tell.
AS_WRITTEN = {"tl.disable_safe_memory_legalize": True}


def parts(schedule: Schedule, heads: int, sm: Sm, batch: Any, tokens: Any, seen: Any) -> Any:
    """Into how many parts the cache is split: as many as give each multiprocessor a block, none too small."""
    blocks = batch * T.ceildiv(tokens * heads, schedule["a_rows"])
    wanted = sm.multiprocessors * schedule["a_waves"] // T.max(blocks, 1)
    return T.max(1, T.min(T.min(wanted, MOST_SPLITS), T.ceildiv(seen, schedule["a_least"])))


def one_part(schedule: Schedule, heads: int, sm: Sm, tokens: str, seen: str) -> str:
    """The C++ condition for parts() to be 1."""
    rows, wanted = int(schedule["a_rows"]), sm.multiprocessors * int(schedule["a_waves"])
    blocks = f"batch * (({tokens} * {heads} + {rows - 1}) / {rows})"
    return f"({wanted} < 2 * ({blocks}) || {seen} <= {schedule['a_least']})"


def combination(latent: int) -> Any:
    """Parts of rows by the weights that `scales` are logarithms of; 0 for a row without keys.

    A block takes a row: four groups of threads take every fourth part each, a thread eight columns.
    """
    groups, across = 4, latent // COLUMNS
    rounds = MOST_SPLITS // groups

    @T.macro
    def body(mixed, scales, out, rows, count):
        with T.Kernel(rows, threads=groups * across, prelude=PRELUDE) as row:
            thread = T.get_thread_binding()
            group, column = thread // across, thread % across * COLUMNS
            weight = T.alloc_shared((MOST_SPLITS,), F32, scope="shared")
            sums = T.alloc_shared((groups, latent), F32)
            part = T.alloc_local((COLUMNS,), BF16)
            sum_ = T.alloc_local((COLUMNS,), F32)
            parts = T.alloc_var("int32")
            low = T.alloc_var(F32, init=-T.infinity(F32))
            high = T.alloc_var(F32, init=-T.infinity(F32))
            top = T.alloc_var(F32, init=LOWEST)
            parts = count  # once: it takes divisions
            T.pdl_sync()
            T.pdl_trigger()
            if thread < 32:
                if thread < parts:
                    low = scales[row * parts + thread]
                if thread + 32 < parts:
                    high = scales[row * parts + thread + 32]
                top = T.max(T.warp_reduce_max(T.max(low, high)), LOWEST)
                low = exp2(low - top)
                high = exp2(high - top)
                top = T.warp_reduce_sum(low + high)
                weight[thread] = T.if_then_else(top > 0, low / top, 0)
                weight[thread + 32] = T.if_then_else(top > 0, high / top, 0)
            T.sync_threads()
            for j in T.unroll(COLUMNS):
                sum_[j] = 0
            for i in T.unroll(rounds):
                if i * groups + group < parts:
                    for j in T.vectorized(COLUMNS):
                        part[j] = mixed[row * parts + i * groups + group, column + j]
                    for j in T.unroll(COLUMNS):
                        sum_[j] += T.cast(part[j], F32) * weight[i * groups + group]
            for j in T.vectorized(COLUMNS):
                sums[group, column + j] = sum_[j]
            T.sync_threads()
            if group == 0:
                for j in T.vectorized(COLUMNS):
                    part[j] = T.cast(
                        sums[0, column + j] + sums[1, column + j] + sums[2, column + j] + sums[3, column + j],
                        BF16,
                    )
                for j in T.vectorized(COLUMNS):
                    out[row, column + j] = part[j]

    return body
