"""From an exported program to our graph, call by call.

torch writes some tensors in place, and through views (`x[..., :n].copy_(y)`). Here a write gives its tensor a new
value, and the tensors it is a view of too; reading any other view of them afterwards is refused rather than guessed.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from .aten import call
from .aten_math import Put, Unsupported, as_dtype
from .aten_shape import expand, reshape, slice_scatter
from .ir import TypeMismatch, Value

# Where and how a tensor lies in memory is decided later, by others.
PLACEMENT = ("device", "layout", "pin_memory", "memory_format", "non_blocking", "copy", "requires_grad", "implicit")
# Calls that only assert what was true of the example input, or what our types say anyway.
ASSERTIONS = ("aten._assert", "aten.sym_constrain", "aten._guards")


class UnsupportedOp(ValueError):
    """The model does something that the graph can not say; the message names it and the module it is in."""


class Converter:
    """One pass over a program's calls. `values` maps its nodes to what they are here."""

    def __init__(self, inputs: Mapping[Any, Value], prefix: str = "") -> None:
        self.prefix = prefix  # what module paths start with, and should not
        self.values: dict[Any, Any] = dict(inputs)
        self.root: dict[Any, Any] = {}  # a view -> the tensor it shares memory with
        self.written: dict[Any, int] = {}  # tensor -> how many writes it and its views have seen
        self.read_at: dict[Any, int] = {}  # node -> the count of its tensor when its value was made

    def run(self, nodes: Any) -> None:
        """Convert the calls in order. Raises UnsupportedOp at the first that can not be."""
        for node in nodes:
            if node.op == "call_function" and not str(node.target).startswith(ASSERTIONS):
                try:
                    self.values[node] = self.convert(node)
                except (Unsupported, TypeMismatch) as error:
                    raise UnsupportedOp(refusal(node, self.prefix, error)) from None

    def convert(self, node: Any) -> Any:
        """The value of one call."""
        args, kwargs = self.resolved(node.args), {k: self.resolved(v) for k, v in node.kwargs.items() if k not in PLACEMENT}
        name = str(node.target)
        if node.target is operator.getitem:
            if node.args[0] in self.root:
                self._alias(node, node.args[0])
            return args[0][args[1]]
        if name == "aten.sym_size.int":
            return args[0].shape[args[1]]
        if getattr(operator, node.target.__name__, None) is node.target:
            return node.target(*args)
        put = Put(origin(node, self.prefix))
        base, _, overload = name.rpartition(".")
        if base.endswith("_") and not base.endswith("__"):
            return self._write(node, put, call(put, f"{base[:-1]}.{overload}", args, kwargs))
        if _returns_view(node.target):
            self._alias(node, node.args[0])
        return call(put, name, args, kwargs)

    def resolved(self, argument: Any) -> Any:
        """An argument with every node in it replaced by its value."""
        if isinstance(argument, list | tuple):
            return type(argument)(self.resolved(item) for item in argument)
        if not hasattr(argument, "all_input_nodes"):
            return argument
        root = self.root.get(argument, argument)
        if self.read_at.get(argument, 0) != self.written.get(root, 0):
            raise Unsupported("it reads a view of a tensor that was written after the view was taken")
        return self.values[argument]

    def _alias(self, node: Any, of: Any) -> None:
        self.root[node] = self.root.get(of, of)
        self.read_at[node] = self.read_at.get(of, 0)

    def _write(self, node: Any, put: Put, value: Value) -> Value:
        """Give the written tensor, and what it is a view of, their new values."""
        target = node.args[0]
        root = self.root.get(target, target)
        self.written[root] = self.written.get(root, 0) + 1
        old = self.values[target]
        value = as_dtype(put, expand(put, value, old.shape), old.type.dtype)
        self._put_back(target, put, value)
        self.root[node] = root
        self.read_at[node] = self.written[root]
        return value

    def _put_back(self, target: Any, put: Put, value: Value) -> None:
        root = self.root.get(target, target)
        self.values[target] = value
        self.read_at[target] = self.written[root]
        if root.op == "placeholder":
            raise Unsupported("it writes to an input or a weight; return the new value instead")
        if target is root:
            return
        whole = target.args[0]
        base = self.values[whole]
        if str(target.target) == "aten.slice.Tensor":
            self._put_back(whole, put, slice_scatter(put, base, value, *self.resolved(target.args[1:])))
        elif _keeps_order(target) and isinstance(base, Value):
            self._put_back(whole, put, reshape(put, value, base.shape))
        else:
            raise Unsupported(f"it writes through {target.target}; write to the tensor itself")


def _keeps_order(node: Any) -> bool:
    return any(f".{name}." in str(node.target) for name in ("view", "reshape", "unsqueeze", "squeeze", "alias", "detach"))


def _returns_view(target: Any) -> bool:
    """Whether the result may share memory with the first argument."""
    schema = getattr(target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)


def origin(node: Any, prefix: str) -> str:
    """The path of the module whose forward made the call."""
    stack = node.meta.get("nn_module_stack") or {}
    path = f"{list(stack.values())[-1][0]}" if stack else ""
    return "" if path + "." == prefix else path.removeprefix(prefix)


def refusal(node: Any, prefix: str, why: object) -> str:
    """The sentence for a call that can not be converted."""
    tensors = [arg.meta["val"] for arg in node.all_input_nodes if hasattr(arg.meta.get("val"), "dtype")]
    shapes = [f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}" for tensor in tensors]
    return (
        f"{node.target}({', '.join(shapes)}) in {origin(node, prefix) or 'the model'} can not be compiled: {why}. "
        "Express it with other torch operations, or leave that module out of the compiled part"
    )

