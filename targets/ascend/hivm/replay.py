"""A block's trace with times put to it: when each pipe is done, and how long it was busy. All simulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....compiler.ir import Array
from .constants import Constants
from .costs import Rates, times
from .trace import MTE1, PIPES, Did, S, Trace

COUNT = len(PIPES)
ISSUE, SET, WAIT, BARRIER, ALL, SEND, RECEIVE, PRODUCT = map(int, Did)


@dataclass(frozen=True, slots=True)
class Replayed:
    """us [variants]: from the first event to the last pipe's end. busy [variants, pipes]: microseconds."""

    us: Array
    busy: Array


def replay(trace: Trace, variants: Sequence[Constants], rates: Sequence[Rates]) -> Replayed:
    """Times of the same events by one or several sets of constants, side by side."""
    found = [times([*trace.works], known, rate) for known, rate in zip(variants, rates)]
    busy, more = (np.stack([each[i] for each in found], axis=1) for i in (0, 1))
    fixed = np.array([costs(known, rate) for known, rate in zip(variants, rates)])
    cores = trace.cores
    if len(variants) == 1:
        ends = run(trace, busy[:, 0].tolist(), more[:, 0].tolist(), fixed[0].tolist(), max)
    else:
        ends = run(trace, list(busy), list(more), list(fixed.T), np.maximum)
    given = np.array([each[1:3] for each in trace.events if each[0] in (ISSUE, PRODUCT)], int).reshape(-1, 2)
    pipes, which = given.T
    spent = [np.bincount(pipes, busy[which, v], cores * COUNT) for v in range(len(variants))]
    return Replayed(np.atleast_1d(np.asarray(ends, float)), np.stack(spent))


def costs(known: Constants, rate: Rates) -> tuple[float, float, float, float]:
    """Of giving work, of one op on numbers, of a flag, and of one between cores."""
    return known.issue_us, known.scalar_cycles / rate.mhz, known.flag_us, known.cross_us


def run(
    trace: Trace,
    busy: Sequence[Any],
    more: Sequence[Any],
    fixed: Sequence[Any],
    larger: Callable[..., Any],
) -> Any:
    """When all pipes are done. Numbers are floats, or arrays of one for each set of constants."""
    issue, single, flag, cross = fixed
    free, usable, begun = ([0.0 * issue] * (trace.cores * COUNT) for _ in range(3))
    told: dict[int, Any] = {}
    for place, (did, pipe, which, scalars) in enumerate(trace.events):
        core = pipe - pipe % COUNT
        scalar = core + S
        free[scalar] = free[scalar] + scalars * single + issue
        if did == ISSUE or did == PRODUCT:
            start = larger(free[pipe], free[scalar])
            if did == PRODUCT:
                start = larger(start, begun[core + MTE1])
            begun[pipe], free[pipe] = start, start + busy[which]
            if did == PRODUCT:
                free[pipe] = larger(free[pipe], usable[core + MTE1])
            usable[pipe] = free[pipe] + more[which]
        elif did == SET or did == SEND:
            ready = larger(larger(free[pipe], usable[pipe]), free[scalar])
            told[place] = ready + (flag if did == SET else cross)
        elif did == WAIT or did == RECEIVE:
            free[pipe] = larger(free[pipe], told[which])
        elif did == BARRIER:
            free[pipe] = larger(free[pipe], usable[pipe])
        else:
            end = free[core]
            for each in range(core, core + COUNT):
                end = larger(larger(end, free[each]), usable[each])
            free[core : core + COUNT] = [end] * COUNT
    end = free[0]
    for each in range(len(free)):
        end = larger(larger(end, free[each]), usable[each])
    return end
