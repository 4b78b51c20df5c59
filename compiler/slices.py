"""Expressions of constants, evaluated some rows at a time: a weight of many experts never exists whole."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import TypeVar

import numpy as np

from .interpret import Observe, Run, WeightSource
from .ir import DTYPES, Array, Graph, Node, Type, Value, walk
from .ops.shape import CONCAT
from .ops.sources import CONSTANT

CHUNK_BYTES = 8 << 20  # what a slice aims at, in the widest of the arrays on its way

Result = TypeVar("Result")
Done = dict[tuple[Node, int, int], Sequence[Array]]  # the rows start..stop of a node's results


def evaluate_rows(value: Value, weights: WeightSource) -> Iterator[Array]:
    """An expression of constants in slices along axis 0 that make up `evaluate(value, weights)`."""
    slices = Slices((value,), weights)
    return (slices.rows(*span)[0] for span in slices.spans)


def in_order(pool: Executor, calls: Iterable[Callable[[], Result]], ahead: int) -> Iterator[Result]:
    """The results of the calls, in their order; only so many are made ahead of the one that is wanted."""
    waiting: deque[Future[Result]] = deque()
    for call in calls:
        waiting.append(pool.submit(call))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def evaluated(
    values: Sequence[Value], weights: WeightSource, observe: Observe | None = None
) -> Iterator[tuple[tuple[Value, ...], Iterator[tuple[Array, ...]]]]:
    """Values that share work, in groups, each with its slices; computed on all cores, a few slices ahead.

    The slices of a group must be taken before the next group is.
    """
    workers = len(os.sched_getaffinity(0))

    def calls() -> Iterator[Callable[[], tuple[tuple[Value, ...], tuple[Array, ...]]]]:
        for group in together(values):
            slices = Slices(group, weights, observe)
            for span in slices.spans:
                yield partial(slices.named, *span)

    with ThreadPoolExecutor(workers) as pool:
        for group, results in groupby(in_order(pool, calls(), workers), key=itemgetter(0)):
            yield group, (arrays for _, arrays in results)


def together(values: Sequence[Value]) -> list[tuple[Value, ...]]:
    """The values in groups that need the results of one node, such as codes and scales of a weight."""
    groups: dict[tuple[Node, int], list[Value]] = {}
    for value in values:
        shared = next((node for node in walk([value]) if len(node.types) > 1), value.node)
        groups.setdefault((shared, rows_of(value.type)), []).append(value)
    return [tuple(group) for group in groups.values()]


class Slices:
    """Values with one leading size, evaluated together a slice at a time; what they share is computed once.

    As far as ops work row by row or join rows, only the rows of a slice are read and computed. Where they do
    not, what they need is computed whole. observe: see Run. Several threads may ask for slices at once.
    """

    def __init__(
        self, values: Sequence[Value], weights: WeightSource, observe: Observe | None = None
    ) -> None:
        self.values = tuple(values)
        self._run = Run({}, weights, observe=observe)
        self._whole: dict[Value, Array] = {}
        self._lock = threading.Lock()

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Which rows, start and stop, each slice has."""
        count = rows_of(self.values[0].type)
        widest = max(nbytes(type_) for node in walk(self.values) for type_ in node.types)
        step = max(1, CHUNK_BYTES * count // max(1, widest))
        return [(start, min(start + step, count)) for start in range(0, max(count, 1), step)]

    def rows(self, start: int, stop: int) -> tuple[Array, ...]:
        """Rows start..stop of every value."""
        done: Done = {}
        return tuple(self._read(value, start, stop, done) for value in self.values)

    def named(self, start: int, stop: int) -> tuple[tuple[Value, ...], tuple[Array, ...]]:
        """The values, and their rows start..stop."""
        return self.values, self.rows(start, stop)

    def _read(self, value: Value, start: int, stop: int, done: Done) -> Array:
        node = value.node
        if not value.type.rank:
            return self._complete(value)
        if node.op is CONSTANT:
            return self._run.read(node, start, stop)
        if node.op is CONCAT and node.attrs["axis"] == 0:
            return self._joined(node, start, stop, done)
        if not (ratio := ratio_of(node)):
            return self._complete(value)[start:stop]
        if (node, start, stop) not in done:
            operands = [
                self._read(v, start * ratio, min(stop * ratio, rows_of(v.type)), done)
                if follows(v, node, ratio)
                else self._complete(v)
                for v in node.inputs
            ]
            done[node, start, stop] = self._run.results(node, operands, stop - start)
        return done[node, start, stop][value.index]

    def _joined(self, node: Node, start: int, stop: int, done: Done) -> Array:
        """Rows of tensors one after the other."""
        parts, first = [], 0
        for value in node.inputs:
            last = first + rows_of(value.type)
            low, high = max(start, first), min(stop, last)
            if low < high:
                parts.append(self._read(value, low - first, high - first, done))
            first = last
        if not parts:
            return self._complete(node[0])[start:stop]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _complete(self, value: Value) -> Array:
        with self._lock:
            if value not in self._whole:
                self._whole[value] = self._run.outputs(Graph((), (value,)), [])[0]
            return self._whole[value]


def ratio_of(node: Node) -> int:
    """How many rows of the operands make one row of the results; 0 where it is not a matter of rows."""
    rule, types = node.op.rowwise, [value.type for value in node.inputs]
    ratio = int(rule if isinstance(rule, bool) else rule(*types, **node.attrs))
    return ratio if any(follows(value, node, ratio) for value in node.inputs) else 0


def follows(operand: Value, node: Node, ratio: int) -> bool:
    """Whether the operand is read row by row, rather than broadcast."""
    same_rank = len(node.inputs) == 1 or operand.type.rank == node.types[0].rank
    fits = operand.type.rank > 0 and same_rank and ratio > 0
    return fits and -(-rows_of(operand.type) // ratio) == rows_of(node.types[0])


def rows_of(type_: Type) -> int:
    """The leading size; 1 where there is none."""
    return int(type_.shape[0]) if type_.rank else 1


def nbytes(type_: Type) -> int:
    """Bytes of an array of fixed shape."""
    return int(type_.elements) * int(np.dtype(DTYPES[type_.dtype]).itemsize)
