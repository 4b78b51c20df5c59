"""How much each knob of a schedule matters to a kernel's time, from what was tried."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from .record import Record

FEWEST = 8  # trials


def importance(records: Iterable[Record]) -> dict[str, float]:
    """Knob -> the share, 0 to 1, of the variance of the time's logarithm that its value alone explains.

    It is what a one-way analysis of variance calls epsilon squared: adjusted, so that a knob of many values
    does not seem to matter by luck. Knobs may explain the same variance, or only several together, so shares
    do not add up to 1. A search tries good schedules more often: this is said of what it tried. The largest
    comes first; empty where too few schedules, each for calls of any size, were timed.
    """
    tried = [record for record in records if record.ratio is not None and not record.larger]
    if len(tried) < FEWEST:
        return {}
    logs = [math.log(record.ratio or 1.0) for record in tried]
    shares = {}
    for knob in tried[0].schedule:
        groups: dict[object, list[float]] = {}
        for record, value in zip(tried, logs):
            groups.setdefault(record.schedule.get(knob), []).append(value)
        if len(groups) > 1:
            shares[knob] = _explained(groups, logs)
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _explained(groups: Mapping[object, Sequence[float]], all: Sequence[float]) -> float:
    """The share of the variance of all numbers that is between their groups, less what luck explains."""
    whole = sum((value - fmean(all)) ** 2 for value in all)
    within = sum((value - fmean(group)) ** 2 for group in groups.values() for value in group)
    free = len(all) - len(groups)
    if not whole or free < 1:
        return 0.0
    by_luck = (len(groups) - 1) * within / free
    return max(0.0, (whole - within - by_luck) / whole)
