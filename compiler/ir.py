"""The graph: immutable, typed, and defined by what it returns.

A node that nothing reaches does not exist, so no pass ever deletes one. Nodes are interned: building the same
node twice gives the same object, so equal subgraphs are one and equality of values is identity.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import sympy

Dim = int | sympy.Expr

# The sizes known only at run time: batch, new tokens, tokens already cached, rows the cache has room for.
B, T, S, L = sympy.symbols("B T S L", positive=True, integer=True)

DTYPES: Mapping[str, Any] = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f8e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "i64": np.dtype(np.int64),
    "i32": np.dtype(np.int32),
    "i8": np.dtype(np.int8),
    "u8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}
FLOATS = ("f64", "f32", "f16", "bf16", "f8e4m3")


@dataclass(frozen=True, slots=True)
class Type:
    """A dtype (a key of DTYPES) and a shape of ints and sympy expressions over the symbols above."""

    dtype: str
    shape: tuple[Dim, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise TypeMismatch(f"unknown dtype {self.dtype!r}; known: {', '.join(DTYPES)}")
        object.__setattr__(self, "shape", tuple(plain(dim) for dim in self.shape))

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def elements(self) -> Dim:
        return plain(sympy.prod(self.shape))


def plain(dim: Any) -> Dim:
    """An int where the dimension is one, else the expanded expression, so equal sizes compare equal."""
    if isinstance(dim, int):
        return dim
    if isinstance(dim, np.integer) or getattr(dim, "is_Integer", False):
        return int(dim)
    if getattr(dim, "is_Symbol", False):
        return dim
    expanded = sympy.expand(dim)
    return int(expanded) if expanded.is_Integer else expanded


class TypeMismatch(TypeError):
    """An op was given operands it has no meaning for."""


@dataclass(frozen=True, slots=True)
class Op:
    """What a node means.

    infer(*types, **attrs) -> tuple of result types, or TypeMismatch with a sentence.
    reference(*arrays, **attrs) -> the numbers, in numpy: an array, or a tuple where the op has several results.
    expand(*values, **attrs) -> the same results in simpler ops; None where the op is already simple.
    rowwise: row i of the result depends on row i of each operand only, so large weights may be done in slices.
    """

    name: str
    infer: Callable[..., tuple[Type, ...]]
    reference: Callable[..., Any]
    expand: Callable[..., Sequence[Value]] | None = None
    rowwise: bool = False

    def __repr__(self) -> str:
        return self.name

    def __call__(self, *inputs: Value, origin: str = "", **attrs: Hashable) -> Value:
        """The first result of a new node; `make` gives the node itself."""
        return make(self, *inputs, origin=origin, **attrs)[0]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Node:
    """One application of an op. `origin` is the module path it came from; it names, it does not distinguish."""

    op: Op
    inputs: tuple[Value, ...]
    attrs: Mapping[str, Any]
    types: tuple[Type, ...]
    origin: str = ""

    def __getitem__(self, index: int) -> Value:
        return Value(self, index)

    def __repr__(self) -> str:
        return f"{self.op.name}({', '.join(str(v.type) for v in self.inputs)})"

    @property
    def values(self) -> tuple[Value, ...]:
        return tuple(Value(self, i) for i in range(len(self.types)))


@dataclass(frozen=True, slots=True)
class Value:
    """One result of a node."""

    node: Node
    index: int = 0

    @property
    def type(self) -> Type:
        return self.node.types[self.index]

    @property
    def op(self) -> Op:
        return self.node.op

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.type.shape

    def __repr__(self) -> str:
        return f"{self.node!r}[{self.index}]: {self.type}"


_interned: weakref.WeakValueDictionary[Hashable, Node] = weakref.WeakValueDictionary()


def make(op: Op, *inputs: Value, origin: str = "", **attrs: Hashable) -> Node:
    """The only way a node comes to be; an ill-typed one never does.

    Raises TypeMismatch, with the operand types and the module path, where the op has no meaning for its operands.
    """
    key = (op.name, inputs, tuple(sorted(attrs.items())))
    if (known := _interned.get(key)) is not None:
        return known
    try:
        types = op.infer(*(value.type for value in inputs), **attrs)
    except TypeMismatch as error:
        operands = ", ".join(str(value.type) for value in inputs)
        whence = f"  [from {origin}]" if origin else ""
        raise TypeMismatch(f"{op.name}({operands}): {error}{whence}") from None
    node = Node(op, inputs, attrs, types, origin)
    _interned[key] = node
    return node


Step = Callable[[Node, tuple[Value, ...]], Sequence[Value] | None]


@dataclass(frozen=True, slots=True)
class Graph:
    """What a model takes and what it returns; the nodes are whatever lies between, operands first."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    names: tuple[str, ...] = ()
    _order: tuple[Node, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.names and len(self.names) != len(self.outputs):
            raise TypeMismatch(f"{len(self.outputs)} outputs, but {len(self.names)} names for them")
        object.__setattr__(self, "_order", tuple(walk((*self.inputs, *self.outputs))))

    def __iter__(self) -> Iterator[Node]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def users(self) -> dict[Value, list[Node]]:
        """Who reads each value; a graph output that no node reads is not in it."""
        users: dict[Value, list[Node]] = {}
        for node in self:
            for value in dict.fromkeys(node.inputs):
                users.setdefault(value, []).append(node)
        return users

    def rewrite(self, step: Step) -> Graph:
        """Rebuild operands first; `step(node, new operands)` gives a node's replacement values, or None to keep it.

        Raises TypeMismatch where a replacement has another type than what it replaces.
        """
        new: dict[Value, Value] = {}
        for node in self:
            inputs = tuple(new[value] for value in node.inputs)
            values = step(node, inputs)
            if values is None:
                values = renew(node, inputs).values
            for old, value in zip(node.values, values, strict=True):
                if value.type != old.type:
                    raise TypeMismatch(f"{node.op.name} of {old.type} may not become {value.op.name} of {value.type}")
                new[old] = value
        return Graph(tuple(new[v] for v in self.inputs), tuple(new[v] for v in self.outputs), self.names)

    def replace(self, replacements: Mapping[Value, Value]) -> Graph:
        """The graph with some values computed otherwise; the replacements may use original values."""
        done: dict[Value, Value] = {}
        roots = (*self.inputs, *self.outputs)
        for node in walk(roots, replacements):
            inputs = tuple(done[replacements.get(v, v)] for v in node.inputs)
            done.update(zip(node.values, renew(node, inputs).values))
        inputs = tuple(done[replacements.get(v, v)] for v in self.inputs)
        return Graph(inputs, tuple(done[replacements.get(v, v)] for v in self.outputs), self.names)


def renew(node: Node, inputs: tuple[Value, ...]) -> Node:
    """The node on other operands, or itself where they are the same."""
    return node if inputs == node.inputs else make(node.op, *inputs, origin=node.origin, **node.attrs)


def walk(roots: Sequence[Value], replacements: Mapping[Value, Value] | None = None) -> Iterator[Node]:
    """Every node the roots need, each once, operands first; replaced values are followed to their replacement."""
    swap = replacements or {}
    seen: set[Node] = set()
    stack = [(swap.get(value, value).node, False) for value in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if node in seen:
            continue
        if ready:
            seen.add(node)
            yield node
        else:
            stack.append((node, True))
            stack.extend((swap.get(value, value).node, False) for value in reversed(node.inputs))


@dataclass(frozen=True, slots=True)
class Miss:
    """Why a pattern that was nearly there was not taken."""

    origin: str
    reason: str

    def __str__(self) -> str:
        return f"{self.origin or 'graph'}: {self.reason}"
