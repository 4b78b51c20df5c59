"""The graph: immutable, typed, and defined by what it returns.

A node that nothing reaches does not exist, so no pass ever deletes one. Nodes are interned: building the same
node twice gives the same object, so equal subgraphs are one and equality of values is identity.
"""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias, cast

import ml_dtypes
import numpy as np
import numpy.typing as npt
import sympy

Dim: TypeAlias = int | sympy.Expr
Array: TypeAlias = npt.NDArray[Any]

# The sizes known only at run time: batch, new tokens, tokens already cached, rows the cache has room for,
# pages of a pool that caches share.
B, T, S, L, P = sympy.symbols("B T S L P", positive=True, integer=True)

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
HALVES = ("bf16", "f16")  # of half the bytes of f32


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
        return f"{self.dtype}[{', '.join(map(shown, self.shape))}]"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def elements(self) -> Dim:
        return plain(math.prod(self.shape))


def plain(dim: Any) -> Dim:
    """An int where the dimension is one, else the expanded expression, so equal sizes compare equal."""
    if isinstance(dim, int):
        return dim
    if isinstance(dim, np.integer) or getattr(dim, "is_Integer", False):
        return int(dim)
    return dim if getattr(dim, "is_Symbol", False) else _expanded(dim)


@cache
def _expanded(dim: sympy.Expr) -> Dim:
    expanded = sympy.expand(dim)
    return int(expanded) if expanded.is_Integer else expanded


@cache
def shown(dim: Dim) -> str:
    """The dimension as text; sympy takes long over it, so each is printed once."""
    return str(dim)


class TypeMismatch(TypeError):
    """An op was given operands it has no meaning for."""


@dataclass(frozen=True, slots=True)
class Op:
    """What a node means.

    infer(*types, **attrs) -> tuple of result types, or TypeMismatch with a sentence.
    reference(*arrays, **attrs) -> the numbers, in numpy: an array, or a tuple for an op of several results.
    expand(*values, **attrs) -> the same results in simpler ops; None where the op is already simple.
    rowwise(*types, **attrs) -> how many rows of the operands row i of the results depends on, so that large
    weights may be done in slices: 1 (True) if on row i only, n if on rows n*i..n*(i+1), 0 (False) if on more.
    An operand that is broadcast does not count. A bool if it never varies.

    Attributes are keyword-only parameters of `infer`; those with a default may be left out of a new node.
    """

    name: str
    infer: Callable[..., tuple[Type, ...]]
    reference: Callable[..., Any]
    expand: Callable[..., Sequence[Value]] | None = None
    rowwise: bool | Callable[..., int] = False

    def __repr__(self) -> str:
        return self.name

    def __call__(self, *inputs: Value, origin: str = "", **attrs: Hashable) -> Value:
        """The first result of a new node; `make` gives the node itself."""
        return make(self, *inputs, origin=origin, **attrs)[0]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Node:
    """One application of an op. `origin` is the module path it came from; it does not tell nodes apart."""

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

    Attributes that are left out take the op's defaults, so a node always has all of them.
    Raises TypeMismatch, with the operand types and the module path, where the op has no meaning for them.
    """
    attrs = {name: _canonical(attr) for name, attr in sorted((defaults(op.infer) | attrs).items())}
    key = (op.name, inputs, tuple((name, _identity(attr)) for name, attr in attrs.items()))
    if (known := _interned.get(key)) is not None:
        return known
    operands = [value.type for value in inputs]
    try:
        _check_call(op.infer, operands, attrs)
        types = op.infer(*operands, **attrs)
    except TypeMismatch as error:
        whence = f"  [from {origin}]" if origin else ""
        raise TypeMismatch(f"{op.name}({', '.join(map(str, operands))}): {error}{whence}") from None
    node = Node(op, inputs, attrs, types, origin)
    _interned[key] = node
    return node


@cache
def _signature(infer: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(infer)


@cache
def defaults(infer: Callable[..., Any]) -> dict[str, Hashable]:
    """The attributes that an op's new nodes need not be given."""
    attrs = (p for p in _signature(infer).parameters.values() if p.kind is p.KEYWORD_ONLY)
    return {p.name: p.default for p in attrs if p.default is not p.empty}


def _check_call(infer: Callable[..., Any], operands: Sequence[Type], attrs: Mapping[str, Any]) -> None:
    try:
        _signature(infer).bind(*operands, **attrs)
    except TypeError as error:
        takes = (str(p.replace(annotation=p.empty)) for p in _signature(infer).parameters.values())
        raise TypeMismatch(f"{error}; the op takes {', '.join(takes)}") from None


def _canonical(attr: Any) -> Hashable:
    """One spelling for each attribute value: plain Python numbers, expanded dims."""
    if isinstance(attr, tuple):
        return tuple(map(_canonical, attr))
    if isinstance(attr, np.generic):
        return cast(Hashable, attr.item())
    return plain(attr) if isinstance(attr, sympy.Basic) else attr


def _identity(attr: Any) -> Hashable:
    """What tells attributes apart: to Python 1, 1.0 and True are equal, so is -0.0 to 0.0; nan is not nan."""
    if isinstance(attr, tuple):
        return tuple(map(_identity, attr))
    return (type(attr), repr(attr)) if isinstance(attr, bool | float) else attr


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
        """Rebuild operands first; `step(node, new operands)` gives its new values, or None to keep it.

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
                    raise TypeMismatch(f"{node!r} is {old.type} and may not become {value.type}")
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
    """Every node the roots need, each once, operands first; replaced values lead on to their replacement.

    Raises ValueError where a replacement is computed from what it replaces.
    """
    swap = replacements or {}
    seen: dict[Node, bool] = {}  # False while the operands are still being walked
    stack = [(swap.get(value, value).node, False) for value in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if ready:
            seen[node] = True
            yield node
        elif node not in seen:
            seen[node] = False
            stack.append((node, True))
            stack.extend((swap.get(value, value).node, False) for value in reversed(node.inputs))
        elif not seen[node]:
            raise ValueError(f"the replacement {node!r} is computed from the value that it replaces")


@dataclass(frozen=True, slots=True)
class Miss:
    """Why a pattern that was nearly there was not taken."""

    origin: str
    reason: str

    def __str__(self) -> str:
        return f"{self.origin or 'graph'}: {self.reason}"
