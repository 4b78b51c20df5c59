"""What was learned from the log: a decision tree for each kind of kernel, as data beside the log.

The file is one JSON object, {"schema": 1, "heuristics": [...]}, and each heuristic has these fields:

    kind, dtype      of the kernels it is for
    isa, generator, profile   of the records it was learned from: it says nothing about any other
    records, digest  how many those were, and the first 16 hex digits of the SHA-256 of their sorted lines
    shapes           how many kernels they were of
    dims, knobs      what the tree asks about, in this order: log2 of one plus a size or value (features());
                     between the two stand the threads and the tokens
    tree             {feature, threshold, left, right, value}: a row for each node. A node goes left where its
                     feature is at most its threshold, else right, always to a later row; a leaf has feature
                     -1, and its value is log2 of the time over the default's
    judged, ratio, worst   see Heuristic

It is parsed as JSON and checked field by field. What it suggests is only used if the kernel's Space admits
it.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..targets.base import BUCKETS, Kernel, Schedule, Schedules, Space, merged
from .fingerprint import Fingerprint
from .measure import LEAST_GAIN
from .record import spelled

SCHEMA = 1
MANY = 3  # shapes that it must have been judged by
SLACK = 0.02  # what it may have lost at the worst of them


class BadHeuristics(ValueError):
    """A file that holds no heuristics of this schema; the text says which field and what was expected."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A decision tree by columns, a row a node; see above."""

    feature: Sequence[int]
    threshold: Sequence[float]
    left: Sequence[int]
    right: Sequence[int]
    value: Sequence[float]

    def __call__(self, x: Sequence[float]) -> float:
        """The value of the leaf that features x lead to."""
        node = 0
        while self.feature[node] >= 0:
            low = x[self.feature[node]] <= self.threshold[node]
            node = (self.left if low else self.right)[node]
        return self.value[node]


@dataclass(frozen=True, slots=True)
class Heuristic:
    """A tree for kernels of one kind and dtype on one instruction set, called as one profile says.

    It was judged by shapes unlike all those that it was then learned from: ratio is the time over the
    default's of what it chose for them, on the mean; worst, at the worst of them.
    """

    kind: str
    dtype: str
    isa: str
    generator: str
    profile: str
    records: int
    digest: str
    shapes: int
    dims: Sequence[str]
    knobs: Sequence[str]
    tree: Tree
    judged: int = 0
    ratio: float = 1.0
    worst: float = 1.0

    @property
    def sound(self) -> bool:
        """Whether its choices may be used unmeasured: faster on the mean, and hardly slower at the worst."""
        return self.judged >= MANY and self.ratio < 1 - LEAST_GAIN and self.worst <= 1 + SLACK

    def __str__(self) -> str:
        judged = f", judged by {self.judged}" if self.judged else ""
        return f"learned from {self.records} records of {self.shapes} shapes{judged}"

    def fits(self, kernel: Kernel, fingerprint: Fingerprint, profile: str) -> bool:
        """Whether it is for such kernels on such machines, called so."""
        mine = (self.kind, self.dtype, self.isa, self.generator, self.profile)
        its = (kernel.kind, kernel.dtype, fingerprint.isa, fingerprint.generator, profile)
        return mine == its and set(self.dims) == set(dict(kernel.dims))

    def choose(self, kernel: Kernel, space: Space, threads: int) -> tuple[Schedules, float]:
        """The schedules with the best time that the tree foresees, and that time over the default's."""
        layouts: dict[Any, list[Schedule]] = {}
        for schedule in self._candidates(space):
            layouts.setdefault(space.layout_of(schedule), []).append(schedule)
        found = [self._served(kernel, some, space, threads) for some in layouts.values()]
        cost, schedules = min(found, key=lambda each: (each[0], spelled(each[1])))
        return merged(schedules), 2**cost

    def _candidates(self, space: Space) -> Iterator[Schedule]:
        """The default, and it with other values of the knobs that the tree asks about."""
        asked = {self.knobs[i - len(self.dims) - 2] for i in self.tree.feature if i >= len(self.dims) + 2}
        varied = [knob for knob in space.choices if knob in asked]
        yield space.default
        for values in itertools.product(*(space.choices[knob] for knob in varied)):
            schedule = {**space.default, **dict(zip(varied, values))}
            if space.objection(schedule) is None:
                yield schedule

    def _served(
        self, kernel: Kernel, some: Sequence[Schedule], space: Space, threads: int
    ) -> tuple[float, Schedules]:
        """The best of some schedules of one layout for each bucket, and the mean of what the tree says."""

        def cost(schedule: Schedule, tokens: int) -> tuple[float, int]:
            changed = sum(schedule[knob] != value for knob, value in space.default.items())
            return self.foreseen(kernel, threads, tokens, schedule), changed

        best = {first: min((*cost(one, first), n) for n, one in enumerate(some)) for first in BUCKETS}
        mean = sum(cost for cost, _, _ in best.values()) / len(best)
        return mean, {first: some[n] for first, (_, _, n) in best.items()}

    def foreseen(self, kernel: Kernel, threads: int, tokens: int, schedule: Schedule) -> float:
        """log2 of the time over the default's, in the bucket that begins at so many tokens."""
        return self.tree(features(self.dims, self.knobs, kernel, threads, tokens, schedule))


def features(
    dims: Iterable[str], knobs: Iterable[str], kernel: Kernel, threads: int, tokens: int, schedule: Schedule
) -> list[float]:
    """What a tree asks about, as numbers; a knob whose value is a name, or that is missing, counts as 0."""
    sizes = [*map(dict(kernel.dims).__getitem__, dims), threads, tokens]
    values = [value if isinstance(value := schedule.get(knob), int) else 0 for knob in knobs]
    return [math.log2(1 + max(0, number)) for number in (*sizes, *values)]


def beside(log: Path) -> Path:
    """Where what was learned from a log lies."""
    return log.with_name(f"{log.stem}.learned.json")


def write(path: Path, heuristics: Iterable[Heuristic]) -> None:
    """The heuristics as a file, which appears whole or not at all; equal ones are equal bytes."""
    data = {"schema": SCHEMA, "heuristics": [asdict(each) for each in heuristics]}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(data, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def read(path: Path) -> list[Heuristic]:
    """The heuristics in a file; none if there is no file. Raises BadHeuristics."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        _expect(type(data) is dict, f"it is {type(data).__name__}, expected a JSON object")
        _expect(data.get("schema") == SCHEMA, f"schema {data.get('schema')!r}, this moec reads {SCHEMA}")
        return [_heuristic(each) for each in _get(data, "heuristics", list)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as bad:
        raise BadHeuristics(
            f"{path} holds no heuristics ({bad}); delete it, or write it anew with `moec log learn`"
        ) from None


def _heuristic(data: Any) -> Heuristic:
    _expect(type(data) is dict, f"a heuristic is {type(data).__name__}, expected an object")
    words = {
        name: _get(data, name, str) for name in ("kind", "dtype", "isa", "generator", "profile", "digest")
    }
    counts = {name: _get(data, name, int) for name in ("records", "shapes", "judged")}
    ratios = {name: _get(data, name, float) for name in ("ratio", "worst")}
    names: dict[str, Any] = {name: _column(data, name, str) for name in ("dims", "knobs")}
    _expect(min(ratios.values()) > 0, "ratio or worst is not positive")
    tree = _tree(_get(data, "tree", dict), len(names["dims"]) + 2 + len(names["knobs"]))
    return Heuristic(**words, **counts, **ratios, **names, tree=tree)


def _tree(data: Mapping[str, Any], features: int) -> Tree:
    """A tree that ends: every step goes to a later row."""
    feature, left, right = (_column(data, name, int) for name in ("feature", "left", "right"))
    threshold, value = (_column(data, name, float) for name in ("threshold", "value"))
    rows = list(zip(feature, left, right))
    lengths = {len(column) for column in (feature, threshold, left, right, value)}
    _expect(lengths == {len(rows)} and rows, "the tree's columns are not of one length, or empty")
    for node, (asked, *after) in enumerate(rows):
        _expect(-1 <= asked < features, f"node {node} asks about feature {asked} of {features}")
        onward = asked < 0 or all(node < each < len(rows) for each in after)
        _expect(onward, f"node {node} goes to {after}, expected later rows of {len(rows)}")
    return Tree(feature, threshold, left, right, value)


def _column(data: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    column: list[Any] = _get(data, name, list)
    _expect(all(type(each) is kind for each in column), f"{name} holds another type than {kind.__name__}")
    return column


def _get(data: Mapping[str, Any], name: str, kind: type) -> Any:
    value = data.get(name)
    found = f"{name} is {type(value).__name__}" if name in data else f"no field {name}"
    _expect(type(value) is kind, f"{found}, expected {kind.__name__}")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _expect(holds: object, sentence: str) -> None:
    if not holds:
        raise BadHeuristics(sentence)
