"""Run passes one after the other: time them, count what they made, write graphs down, check the numbers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import sympy

from .interpret import WeightSource, input_name, interpret
from .ir import DTYPES, FLOATS, Array, Graph, Miss, plain
from .text import show

Pass = Callable[[Graph, list[Miss]], Graph]


@dataclass(frozen=True, slots=True)
class PassReport:
    """What one pass did. fired: how many ops of its own it made, or nodes it took away where it has none."""

    name: str
    fired: int
    seconds: float
    nodes_before: int
    nodes_after: int


@dataclass(frozen=True, slots=True)
class Check:
    """Feeds on which a pass must not move the numbers by more than `tolerance` of the largest, in float64."""

    weights: WeightSource
    feeds: Mapping[str, Array]
    tolerance: float = 1e-10


class PassMovedNumbers(RuntimeError):
    """A pass changed what the graph computes; the text names the pass, the output and how far it moved."""


def run(
    graph: Graph,
    passes: Sequence[Pass],
    *,
    misses: list[Miss] | None = None,
    watch: Path | None = None,
    check: Check | None = None,
    progress: Callable[[PassReport], None] | None = None,
) -> tuple[Graph, tuple[PassReport, ...]]:
    """The graph after all passes, and what each of them did.

    misses: gets why patterns that nearly matched were not taken. watch: a folder that gets the graph as text
    before the first pass and after each, as NN-name.txt. check: raises PassMovedNumbers at the first pass
    that moves the numbers, but for passes that say that they round; a pass that changes inputs says how it is
    `fed` then. progress: called after each pass.
    """
    misses = [] if misses is None else misses
    reports: list[PassReport] = []
    written(watch, 0, "traced", graph)
    expected = numbers(graph, check)
    for position, step in enumerate(passes, 1):
        started, before = time.perf_counter(), graph
        graph = step(graph, misses)
        seconds = time.perf_counter() - started
        if check and hasattr(step, "fed"):
            check = replace(check, feeds=step.fed(before, check.feeds))
        name = name_of(step)
        reports.append(PassReport(name, fired(step, before, graph), seconds, len(before), len(graph)))
        written(watch, position, name, graph)
        if check:
            found = numbers(graph, check)
            if getattr(step, "rounds", False):
                expected = found
            compare(name, expected, found, check.tolerance)
        if progress:
            progress(reports[-1])
    return graph, tuple(reports)


def name_of(step: Pass) -> str:
    """A function's name; of a pass with options its class's, as it would be written as a function."""
    return str(getattr(step, "__name__", type(step).__name__.lower()))


def fired(step: Pass, before: Graph, after: Graph) -> int:
    """By the ops that the pass's module says it MAKES; where it names none, by the nodes that are gone."""
    makes = getattr(sys.modules[step.__module__], "MAKES", ())
    if not makes:
        return max(0, len(before) - len(after))
    return sum(node.op in makes for node in after) - sum(node.op in makes for node in before)


def written(folder: Path | None, position: int, name: str, graph: Graph) -> None:
    """Write the graph as text, where there is a folder for it."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{position:02d}-{name}.txt").write_text(show(graph))


def numbers(graph: Graph, check: Check | None) -> Mapping[str, Array]:
    """The graph's outputs on the check's feeds; none without a check."""
    if check is None:
        return {}
    types = {input_name(value): DTYPES[value.type.dtype] for value in graph.inputs}
    feeds = {name: feed.astype(types[name], copy=False) for name, feed in check.feeds.items()}
    return interpret(graph, feeds, check.weights, double=True)


def compare(name: str, expected: Mapping[str, Array], found: Mapping[str, Array], tolerance: float) -> None:
    """Raises PassMovedNumbers where an output differs by more than `tolerance` of its largest value."""
    for output, array in expected.items():
        wanted = array.astype(np.float64)
        largest = np.max(np.abs(wanted), initial=1e-30)
        moved = float(np.max(np.abs(wanted - found[output]), initial=0) / largest)
        if not moved <= tolerance:
            raise PassMovedNumbers(
                f"pass {name} moved {output} by {moved:.2e} of its largest value, expected at most "
                f"{tolerance:.0e}; compare the graph before and after it with --watch"
            )


def random_feeds(graph: Graph, sizes: Mapping[sympy.Symbol, int], seed: int = 0) -> dict[str, Array]:
    """Arrays for every input at these sizes: normal numbers for floats; for the rest zeros, then ones, which
    is good as ids and as a mask with padding on the left.
    """
    source = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for value in graph.inputs:
        shape = [int(plain(sympy.sympify(dim).subs(sizes))) for dim in value.shape]
        feeds[input_name(value)] = filled(shape, value.type.dtype, source)
    return feeds


def filled(shape: Sequence[int], dtype: str, source: Any) -> Array:
    """One array of random_feeds, from a numpy generator."""
    if dtype in FLOATS:
        return np.asarray(source.standard_normal(shape)).astype(DTYPES[dtype])
    ones = np.sort(source.integers(0, 2, shape), axis=-1)
    ones[..., -1:] = 1
    return np.asarray(ones.astype(DTYPES[dtype]))
