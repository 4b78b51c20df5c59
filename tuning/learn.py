"""Fits the heuristics: a small decision tree for each kind of kernel. The only file that knows scikit-learn.

A tree foresees log2 of a schedule's time over the default's from the kernel's dims, the threads, the tokens
and the knobs. It learns from what was measured, and is judged by shapes that it has not seen: each shape in
turn, without all those near it, since a kernel that has neighbours in the log does not ask a tree.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import geometric_mean
from typing import Any

from ..targets.base import Kernel, Schedule, serving
from .heuristic import Heuristic, Tree, features
from .record import Record, spelled
from .transfer import FAR, distance

DEPTH, LEAF = 4, 8  # deeper trees chose worse for shapes held out (tests/benchmarks/transfer.py)
JUDGES = 20  # shapes, about, that a tree is judged by
SHAPES = 3  # with fewer there is nothing to learn about shapes

Key = tuple[str, str, str, str, str]  # the first fields of a Heuristic


class CannotLearn(RuntimeError):
    """scikit-learn is not installed."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One schedule's time over the default's, for calls of a bucket of tokens."""

    kernel: Kernel
    threads: int
    tokens: int
    schedule: Schedule
    ratio: float


def learn(records: Iterable[Record]) -> list[Heuristic]:
    """A heuristic for each kind, dtype, instruction set, generator and profile with enough shapes; of equal
    records, equal ones. Raises CannotLearn.
    """
    groups: dict[Key, list[Record]] = {}
    for record in records:
        if record.status == "ok" and record.ratios and record.schedule:
            groups.setdefault(key_of(record), []).append(record)
    return [_learned(key, groups[key]) for key in sorted(groups) if len(_shapes(groups[key])) >= SHAPES]


def key_of(record: Record) -> Key:
    """What a heuristic that learns from this record is for."""
    kernel, place = record.kernel, record.fingerprint
    return kernel.kind, kernel.dtype, place.isa, place.generator, record.profile


def _learned(key: Key, records: Sequence[Record]) -> Heuristic:
    ordered = {record.line(): record for record in sorted(records, key=Record.line)}
    digest = hashlib.sha256("\n".join(ordered).encode()).hexdigest()[:16]
    records, shapes = list(ordered.values()), _shapes(records)
    heuristic = fitted(key, records)
    heuristic = replace(heuristic, records=len(records), digest=digest, shapes=len(shapes))
    chosen = list(_judged(key, records, shapes))
    if not chosen:
        return heuristic
    return replace(heuristic, judged=len(chosen), ratio=geometric_mean(chosen), worst=max(chosen))


def _shapes(records: Iterable[Record]) -> list[Kernel]:
    return sorted({record.kernel for record in records}, key=str)


def _judged(key: Key, records: Sequence[Record], shapes: Sequence[Kernel]) -> Iterator[float]:
    """For shapes that others are far from: the time over the default's of the schedule that a tree of those
    chooses among all that were tried.
    """
    for shape in shapes[:: 1 + len(shapes) // JUDGES]:
        known = [record for record in records if distance(shape, record.kernel) > FAR]
        tried = [record for record in records if record.kernel == shape and not record.larger]
        if len(_shapes(known)) >= SHAPES and tried:
            heuristic = fitted(key, known)
            best = min(tried, key=lambda record: (_foreseen(heuristic, record), spelled(record.schedules)))
            yield best.ratio or 1.0


def _foreseen(heuristic: Heuristic, record: Record) -> float:
    kernel, threads = record.kernel, record.fingerprint.threads
    return sum(heuristic.foreseen(kernel, threads, first, record.schedule) for first in record.ratios)


def fitted(key: Key, records: Sequence[Record]) -> Heuristic:
    """A tree of these records, not judged. Raises CannotLearn."""
    seen = [each for record in records for each in _seen(record)]
    dims = sorted(dict(seen[0].kernel.dims))
    knobs = sorted({knob for each in seen for knob in each.schedule})
    rows = [features(dims, knobs, s.kernel, s.threads, s.tokens, s.schedule) for s in seen]
    tree = _tree(rows, [math.log2(each.ratio) for each in seen])
    return Heuristic(*key, records=0, digest="", shapes=0, dims=dims, knobs=knobs, tree=tree)


def _seen(record: Record) -> Iterator[Seen]:
    schedules, threads = record.schedules, record.fingerprint.threads
    for first, ratio in record.ratios.items():
        yield Seen(record.kernel, threads, first, schedules[serving(schedules, first)], ratio)


def _tree(rows: Sequence[Sequence[float]], values: Sequence[float]) -> Tree:
    try:
        from sklearn.tree import DecisionTreeRegressor
    except ImportError:
        raise CannotLearn("learning needs scikit-learn; install it with: pip install 'moec[learn]'") from None
    grown: Mapping[str, Any] | Any
    grown = DecisionTreeRegressor(max_depth=DEPTH, min_samples_leaf=LEAF, random_state=0)
    nodes = grown.fit(rows, values).tree_
    return Tree(
        feature=[max(-1, int(feature)) for feature in nodes.feature],
        threshold=[float(threshold) for threshold in nodes.threshold],
        left=[int(node) for node in nodes.children_left],
        right=[int(node) for node in nodes.children_right],
        value=[float(value) for value in nodes.value.reshape(-1)],
    )
