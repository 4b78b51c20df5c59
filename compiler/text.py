"""Graphs as text: one line a node, and back.

    graph(%x: f32[B, 8]) {
      %w = constant() : f32[4, 8]
      %0 = linear(%x, %w) : f32[B, 4]  # model.layers.0.proj
      return %0 as "y"
    }

Inputs and constants go by their names, other values by number. Attributes follow a semicolon; those that have
their op's default are left out. What is read need not be trusted: it is parsed, never evaluated.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from .grammar import Parser, TextError
from .ir import DTYPES, FLOATS, Graph, Node, Type, TypeMismatch, Value, defaults, make
from .ops.sources import CONSTANT, INPUT, LITERAL
from .ops.vocabulary import OPS

SHORT = 16  # literals of up to so many elements are shown as numbers


def show(graph: Graph) -> str:
    """The graph as text that `read` takes back to the same graph."""
    return "\n".join(_lines(graph))


def read(text: str) -> Graph:
    """The graph that a text describes.

    Raises TextError, with the line, where it describes none.
    """
    parser = _Reader(text)
    graph = parser.graph()
    parser.expect("end of text")
    return graph


def _lines(graph: Graph) -> Iterator[str]:
    names = _labels(graph)
    heads = [f"{names[v]}{_alias(v, names)}: {v.type}" for v in graph.inputs]
    yield f"graph({', '.join(heads)}) {{"
    inputs = set(graph.inputs)
    for node in graph:
        if node[0] not in inputs:
            yield from _node_lines(node, names)
    ends = [names[v] for v in graph.outputs]
    ends = [f"{end} as {json.dumps(name)}" for end, name in zip(ends, graph.names)] if graph.names else ends
    yield f"  return {', '.join(ends)}"
    yield "}"


def _node_lines(node: Node, names: dict[Value, str]) -> Iterator[str]:
    results = ", ".join(names[value] for value in node.values)
    types = ", ".join(str(type_) for type_ in node.types)
    origin = f"  # {' '.join(node.origin.split())}" if node.origin else ""
    shown = "; ".join(filter(None, (", ".join(names[v] for v in node.inputs), _attrs(node, names))))
    separator = "" if node.inputs or not shown else "; "
    call = f"{results} = {node.op.name}({separator}{shown}) : {types}{origin}"
    yield from (f"  {line}" for line in call.split("\n"))


def _labels(graph: Graph) -> dict[Value, str]:
    """Sources by name unless the name is taken, the others by number."""
    labels: dict[Value, str] = {}
    count, taken = 0, set[str]()
    for node in graph:
        label = _quoted(node.attrs["name"]) if node.op in (INPUT, CONSTANT) else ""
        for value in node.values:
            if not label or label in taken:
                label, count = f"%{count}", count + 1
            labels[value] = label
            taken.add(label)
            label = ""
    return labels


def _quoted(name: str) -> str:
    """A source's label; one that looks like a number is quoted, as numbers are for other values."""
    return f"%{name}" if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", name) else f"%{json.dumps(name)}"


def _alias(value: Value, names: dict[Value, str]) -> str:
    if value.op is not INPUT:
        raise ValueError(f"a graph's inputs are input nodes, but here is {value}")
    name = value.node.attrs["name"]
    return "" if names[value] == _quoted(name) else f" = {json.dumps(name)}"


def _attrs(node: Node, names: dict[Value, str]) -> str:
    shown = {name: attr for name, attr in node.attrs.items() if repr(attr) != repr(_defaults(node).get(name))}
    if node.op is LITERAL:
        return f"data={_data(node)}"
    if node.op in (INPUT, CONSTANT):
        shown = {} if names[node[0]] == _quoted(node.attrs["name"]) else {"name": node.attrs["name"]}
    return ", ".join(f"{name}={_attr(attr)}" for name, attr in shown.items())


def _defaults(node: Node) -> dict[str, Any]:
    return defaults(node.op.infer)


def _attr(attr: Any) -> str:
    if isinstance(attr, Graph):
        return show(attr)
    if isinstance(attr, tuple):
        return f"[{', '.join(map(_attr, attr))}]"
    if isinstance(attr, bytes):
        return f'b64"{base64.b64encode(attr).decode()}"'
    if isinstance(attr, bool | str):
        return json.dumps(attr)
    return str(attr)


def _data(node: Node) -> str:
    """A short literal as numbers, if these give its bytes exactly."""
    data, dtype = node.attrs["data"], node.attrs["dtype"]
    array = np.frombuffer(data, DTYPES[dtype])
    if array.size <= SHORT:
        values = [float(str(x)) if dtype in FLOATS else x.item() for x in array]  # 0.1, not 0.10000000149
        if np.array(values, DTYPES[dtype]).tobytes() == data:
            return _attr(tuple(values))
    return _attr(data)


class _Reader(Parser):
    """Takes a text back to the graph that it shows."""

    def graph(self) -> Graph:
        self.nested()
        self.expect("graph")
        self.expect("(")
        values: dict[str, Value] = {}
        inputs = self.sequence(lambda: self.input(values), ")")
        self.expect("{")
        while not self.accept("return"):
            self.node(values)
        outputs = self.sequence(lambda: self.output(values), "}")
        names = tuple(name for _, name in outputs if name)
        self.depth -= 1
        try:
            return Graph(tuple(inputs), tuple(value for value, _ in outputs), names)
        except TypeMismatch as error:
            raise self.error(str(error)) from None

    def input(self, values: dict[str, Value]) -> Value:
        label = self.expect("label")
        name = self.string() if self.accept("=") else self.name_of(label)
        self.expect(":")
        type_ = self.type()
        values[label] = INPUT(name=name, dtype=type_.dtype, shape=type_.shape)
        return values[label]

    def name_of(self, label: str) -> str:
        return self.unquoted(label[1:]) if label.startswith('%"') else label[1:]

    def output(self, values: dict[str, Value]) -> tuple[Value, str]:
        value = self.value(values)
        return value, self.string() if self.accept("as") else ""

    def value(self, values: dict[str, Value]) -> Value:
        label = self.expect("label")
        if label not in values:
            raise self.error(f"{label} is used before it is computed")
        return values[label]

    def node(self, values: dict[str, Value]) -> None:
        labels = [self.expect("label")]
        while self.accept(","):
            labels.append(self.expect("label"))
        self.expect("=")
        line, name = self.next.line, self.expect("word")
        if name not in OPS:
            raise TextError(f"line {line}: no op is called {name}")
        self.expect("(")
        operands, attrs = self.operands(values), self.attrs()
        self.expect(":")
        types = [self.type()]
        while self.accept(","):
            types.append(self.type())
        origin = self.accept("origin").removeprefix("#").strip()
        try:
            self.complete(attrs, name, labels[0], types[0])
            node = make(OPS[name], *operands, origin=origin, **attrs)
        except TypeMismatch as error:
            raise TextError(f"line {line}: {error}") from None
        except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
            raise TextError(f"line {line}: {name}: {error}") from None  # attributes of a wrong kind
        if list(node.types) != types or len(labels) != len(types):
            raise TextError(f"line {line}: {name} gives {', '.join(map(str, node.types))}")
        values.update(zip(labels, node.values))

    def operands(self, values: dict[str, Value]) -> list[Value]:
        operands: list[Value] = []
        while self.at("label"):
            operands.append(self.value(values))
            if not self.at(";", ")"):
                self.expect(",")
        return operands

    def attrs(self) -> dict[str, Any]:
        if self.accept(")"):
            return {}
        self.expect(";")
        return dict(self.sequence(self.attr, ")"))

    def attr(self) -> tuple[str, Any]:
        name = self.expect("word")
        self.expect("=")
        return name, self.anything()

    def complete(self, attrs: dict[str, Any], name: str, label: str, type_: Type) -> None:
        """The attributes of sources that the label and the type already say."""
        if OPS[name] not in (INPUT, CONSTANT, LITERAL):
            return
        attrs.update(dtype=type_.dtype, shape=type_.shape)
        if OPS[name] is not LITERAL:
            attrs.setdefault("name", self.name_of(label))
        elif isinstance(attrs.get("data"), tuple):
            attrs["data"] = np.array(attrs["data"], DTYPES[type_.dtype]).tobytes()

    def anything(self) -> Any:
        """An attribute's value."""
        if self.accept("["):
            self.nested()
            items = tuple(self.sequence(self.anything, "]"))
            self.depth -= 1
            return items
        if self.at("graph"):
            return self.graph()
        if self.at("string"):
            return self.string()
        if self.at("data"):
            return self.bytes()
        return self.flag() if self.at("true", "false") else self.number()
