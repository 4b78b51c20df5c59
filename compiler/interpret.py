"""Run a graph with the ops' references: the judge of every pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import sympy

from .ir import DTYPES, Array, Dim, Graph, Node, Type, Value, plain
from .ops.sources import CONSTANT, INPUT, LITERAL

Symbols = Mapping[sympy.Symbol, int]
_WIDE = {"f32": "f64", "f16": "f64", "bf16": "f64"}  # what double precision makes of a dtype


class Weights(Protocol):
    """Where constants come from: rows start..stop of axis 0 of the tensor of that name, or all of them."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array: ...


WeightSource = Weights | Mapping[str, Array]
Observe = Callable[[Node, Sequence[Array], Sequence[Array]], None]


class Unfit(ValueError):
    """What was fed or computed does not have the shape or dtype that the graph says."""


def interpret(
    graph: Graph, feeds: Mapping[str, Array], weights: WeightSource, double: bool = False
) -> dict[str, Array]:
    """The graph's outputs by name (out.0, out.1, ... where it has no names).

    double: compute in float64 what the graph has in f32, f16 or bf16; feeds and weights may then be either.
    Raises Unfit where the feeds do not match the graph's inputs, or a result does not match its type.
    """
    run = Run(bind(graph, feeds), weights, double)
    arrays = run.outputs(graph, [run.checked(v.node, v.type, feeds[input_name(v)]) for v in graph.inputs])
    return dict(zip(output_names(graph), arrays))


def input_name(value: Value) -> str:
    """The name under which a graph input is fed."""
    return str(value.node.attrs["name"])


def output_names(graph: Graph) -> tuple[str, ...]:
    """The names under which the outputs are returned."""
    return graph.names or tuple(f"out.{i}" for i in range(len(graph.outputs)))


def evaluate(value: Value, weights: WeightSource, double: bool = False) -> Array:
    """The array of an expression of constants."""
    return Run({}, weights, double).outputs(Graph((), (value,)), [])[0]


def bind(graph: Graph, feeds: Mapping[str, Array]) -> dict[sympy.Symbol, int]:
    """The sizes of this run, solved from the shapes of the feeds.

    Raises Unfit where a feed is missing or unknown, or where its shape contradicts its type or another feed.
    """
    names = [input_name(value) for value in graph.inputs]
    if missing := [name for name in names if name not in feeds]:
        raise Unfit(f"no feed for {', '.join(missing)}; the graph takes {', '.join(names)}")
    if unknown := [name for name in feeds if name not in names]:
        raise Unfit(f"the graph has no input {', '.join(unknown)}; it takes {', '.join(names) or 'nothing'}")
    equations: list[tuple[str, Dim, int]] = []
    for value in graph.inputs:
        name, shape = input_name(value), np.shape(feeds[input_name(value)])
        if len(shape) != value.type.rank:
            raise Unfit(f"{name} was fed {list(shape)}, but is {value.type}")
        equations += [(f"axis {i} of {name}", *sizes) for i, sizes in enumerate(zip(value.shape, shape))]
    return _solve(equations)


def _solve(equations: list[tuple[str, Dim, int]]) -> dict[sympy.Symbol, int]:
    """Each round settles what has no unknown left, or just one."""
    symbols: dict[sympy.Symbol, int] = {}
    while equations:
        later: list[tuple[str, Dim, int]] = []
        for where, dim, size in equations:
            left = dim if isinstance(dim, int) else plain(dim.subs(symbols))
            if isinstance(left, int):
                _agree(where, dim, left, size, symbols)
            elif len(left.free_symbols) == 1:
                symbol = next(iter(left.free_symbols))
                symbols[symbol] = _root(where, left, symbol, size)
            else:
                later.append((where, dim, size))
        if len(later) == len(equations):
            return symbols
        equations = later
    return symbols


def _agree(where: str, dim: Dim, expected: int, size: int, symbols: Symbols) -> None:
    if expected == size:
        return
    if isinstance(dim, int):
        raise Unfit(f"{where} is {size}, but must be {dim}")
    known = ", ".join(f"{symbol} = {value}" for symbol, value in symbols.items() if dim.has(symbol))
    raise Unfit(f"{where} is {size}, but must be {dim} = {expected}, as other inputs say {known}")


def _root(where: str, dim: sympy.Expr, symbol: sympy.Symbol, size: int) -> int:
    """The symbol's value that makes the dim, linear in it, the size."""
    slope, offset = dim.coeff(symbol, 1), dim.coeff(symbol, 0)
    solution = plain((size - offset) / slope)
    if not isinstance(solution, int) or solution < 0:
        raise Unfit(f"{where} is {size}, but must be {dim} for some size {symbol}")
    return solution


class Run:
    """One execution: sizes, weights and precision are the same for all nodes, those in region bodies too.

    observe is called with every node that is computed, what it got and what it gave.
    """

    def __init__(
        self,
        symbols: Symbols,
        weights: WeightSource,
        double: bool = False,
        observe: Observe | None = None,
    ) -> None:
        self.symbols = symbols
        self.weights = weights
        self.double = double
        self.observe = observe
        self._known: dict[Any, Any] = {}

    def outputs(self, graph: Graph, feeds: Sequence[Array]) -> tuple[Array, ...]:
        """The graph's outputs; an array is dropped when its last reader has run."""
        readers = Counter(value for node in graph for value in node.inputs)
        readers.update(graph.outputs)
        arrays = dict(zip(graph.inputs, feeds))
        for node in graph:
            if node[0] in arrays:
                continue
            results = self.node(node, [arrays[value] for value in node.inputs])
            arrays.update((value, array) for value, array in zip(node.values, results) if readers[value])
            readers.subtract(node.inputs)
            for value in node.inputs:
                if not readers[value]:
                    arrays.pop(value, None)
        return tuple(arrays[value] for value in graph.outputs)

    def node(self, node: Node, operands: Sequence[Array]) -> list[Array]:
        """The node's results, checked against its types."""
        if node.op is CONSTANT:
            return [self.checked(node, node.types[0], self.read(node))]
        if node.op is INPUT:
            raise Unfit(f"input {node.attrs['name']} is read, but is not among the graph's inputs")
        results = self.results(node, operands)
        return [self.checked(node, type_, array) for type_, array in zip(node.types, results, strict=True)]

    def results(self, node: Node, operands: Sequence[Array], rows: int | None = None) -> tuple[Array, ...]:
        """What the reference gives; for operands of so many rows, where they are a part of the node's."""
        attrs = self.attrs(node)
        if rows is not None and "shape" in attrs:
            attrs["shape"] = (rows, *attrs["shape"][1:])
        with np.errstate(all="ignore"):
            results = node.op.reference(*operands, **attrs)
        results = results if isinstance(results, tuple) else (results,)
        if self.observe:
            self.observe(node, operands, results)
        return results

    def read(self, node: Node, start: int = 0, stop: int | None = None) -> Array:
        """The named weight, or some of its rows."""
        name = node.attrs["name"]
        if not isinstance(self.weights, Mapping):
            return self.weights.read(name) if stop is None else self.weights.read(name, start, stop)
        if name not in self.weights:
            raise Unfit(f"no weight {name}; {len(self.weights)} others were given")
        return self.weights[name] if stop is None else self.weights[name][start:stop]

    def checked(self, node: Node, type_: Type, array: Array) -> Array:
        """The array, data widened for double precision. Raises Unfit where it is not of that type."""
        array = np.asarray(array)
        dtype = DTYPES[self.dtype(type_.dtype)]
        if node.op in (INPUT, CONSTANT, LITERAL) and array.dtype == DTYPES[type_.dtype]:
            array = array.astype(dtype, copy=False)
        shape = tuple(self.size(dim) for dim in type_.shape)
        if array.shape != shape or array.dtype != dtype:
            what = node.attrs["name"] if node.op in (INPUT, CONSTANT) else f"the result of {node.op.name}"
            seen, expected = f"{array.dtype}{list(array.shape)}", f"{dtype}{list(shape)}"
            whence = f"  [from {node.origin}]" if node.origin else ""
            raise Unfit(f"{what} is {seen}, but must be {expected}{whence}")
        return array

    def dtype(self, name: str) -> str:
        return _WIDE.get(name, name) if self.double else name

    def attrs(self, node: Node) -> dict[str, Any]:
        """The attributes as references take them: sizes filled in, bodies as functions."""
        attrs = {name: self.filled(attr) for name, attr in node.attrs.items()}
        if "dtype" in attrs and node.op is not LITERAL:
            attrs["dtype"] = self.dtype(attrs["dtype"])
        return attrs

    def filled(self, attr: Any) -> Any:
        if isinstance(attr, tuple):
            return tuple(map(self.filled, attr))
        if isinstance(attr, Graph):
            return self.function(attr)
        return self.size(attr) if isinstance(attr, sympy.Expr) else attr

    def function(self, body: Graph) -> Callable[..., tuple[Array, ...]]:
        return lambda *operands: self.outputs(body, operands)

    def size(self, dim: Dim) -> int:
        """The dim as a number in this run."""
        if isinstance(dim, int):
            return dim
        if dim not in self._known:
            size = plain(dim.subs(self.symbols))
            if not isinstance(size, int):
                raise Unfit(f"the size {dim} is not fixed by the shape of any input")
            self._known[dim] = size
        return int(self._known[dim])
