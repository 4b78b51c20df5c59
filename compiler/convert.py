"""From an exported program to our graph, call by call.

torch writes some tensors in place, and through views (`x[..., :n].copy_(y)`). Here a write gives its tensor a
new value, and the tensors it is a view of too; to read another view of them later is refused, not guessed.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from .aten import call
from .aten_math import Put, Unsupported, as_dtype
from .aten_shape import expand, reshape, select_scatter, slice_scatter
from .ir import TypeMismatch, Value

# Where and how a tensor lies in memory is decided later, by others.
PLACEMENT = ("device", "layout", "pin_memory", "memory_format", "non_blocking", "copy", "requires_grad")
# Calls that only assert what was true of the example input, or what our types say anyway.
ASSERTIONS = ("aten._assert", "aten.sym_constrain", "aten._guards")
# Views that have the elements of what they view, in the same order.
SAME_ORDER = tuple(f"aten.{n}." for n in ("view", "reshape", "unsqueeze", "squeeze", "alias", "detach"))


class UnsupportedOp(ValueError):
    """The model does something that the graph can not say; the message names it and the module it is in."""


class Converter:
    """One pass over a program's calls; `values` are those of its placeholders."""

    def __init__(self, values: Mapping[Any, Value], prefix: str = "") -> None:
        self.prefix = prefix  # what module paths start with, and should not
        self.values: dict[Any, Any] = dict(values)  # node of the program -> what it is here
        self.root: dict[Any, Any] = {}  # a view -> the tensor it shares memory with
        self.writes: dict[Any, int] = {}  # a tensor -> how many writes it and its views have seen
        self.seen: dict[Any, int] = {}  # node -> how many of them its value has

    def run(self, nodes: Sequence[Any]) -> tuple[Value, ...]:
        """Convert the calls in order; returns the program's results.

        Raises UnsupportedOp at the first call that can not be converted.
        """
        for node in nodes:
            try:
                if node.op == "output":
                    return self._results(node.args[0])
                if node.op == "call_function" and not str(node.target).startswith(ASSERTIONS):
                    self.values[node] = self._call(node)
            except (Unsupported, TypeMismatch) as error:
                raise UnsupportedOp(self._refusal(node, error)) from None
        return ()

    def _results(self, argument: Any) -> tuple[Value, ...]:
        values = tuple(self._resolved(argument))
        if other := [value for value in values if not isinstance(value, Value)]:
            raise Unsupported(f"it returns {other[0]!r}, and only tensors can be returned")
        return values

    def _call(self, node: Any) -> Any:
        """What the result of a call is."""
        args = self._resolved(node.args)
        kwargs = {key: self._resolved(arg) for key, arg in node.kwargs.items() if key not in PLACEMENT}
        name = str(node.target)
        if node.target is operator.getitem and node.args[0] in self.root:
            self._alias(node)
        if name == "aten.sym_size.int":
            return args[0].shape[args[1]]
        if node.target.__module__ in ("_operator", "math"):  # arithmetic on sizes
            return node.target(*args)
        put = Put(self._origin(node))
        base, _, overload = name.rpartition(".")
        if base.endswith("_") and not base.endswith("__"):
            return self._write(node, put, call(put, f"{base[:-1]}.{overload}", args, kwargs))
        if _returns_view(node.target):
            self._alias(node)
        return call(put, name, args, kwargs)

    def _resolved(self, argument: Any) -> Any:
        """An argument with every node in it replaced by its value."""
        if isinstance(argument, list | tuple):
            return type(argument)(self._resolved(item) for item in argument)
        if not hasattr(argument, "all_input_nodes"):
            return argument
        if self.seen.get(argument, 0) != self.writes.get(self.root.get(argument, argument), 0):
            raise Unsupported("it reads a view of a tensor that was written after the view was taken")
        return self.values[argument]

    def _alias(self, node: Any) -> None:
        of = node.args[0]
        self.root[node] = self.root.get(of, of)
        self.seen[node] = self.seen.get(of, 0)

    def _write(self, node: Any, put: Put, value: Value) -> Value:
        """Give the written tensor, and what it is a view of, their new values."""
        target = node.args[0]
        root = self.root.get(target, target)
        if root.op == "placeholder":
            raise Unsupported("it writes to an input or a weight; return the new value instead")
        old = self.values[target]
        value = as_dtype(put, expand(put, value, old.shape), old.type.dtype)
        self.writes[root] = self.writes.get(root, 0) + 1
        self._put_back(target, root, put, value)
        self.root[node], self.seen[node] = root, self.writes[root]
        return value

    def _put_back(self, target: Any, root: Any, put: Put, value: Value) -> None:
        self.values[target] = value
        self.seen[target] = self.writes[root]
        if target is root:
            return
        whole, name = target.args[0], str(target.target)
        base = self.values[whole]
        if name == "aten.slice.Tensor":
            base = slice_scatter(put, base, value, *self._resolved(target.args[1:]))
        elif name == "aten.select.int":
            base = select_scatter(put, base, value, *self._resolved(target.args[1:]))
        elif name.startswith(SAME_ORDER):
            base = reshape(put, value, base.shape)
        else:
            raise Unsupported(f"it writes through {target.target}; write to the tensor itself")
        self._put_back(whole, root, put, base)

    def _origin(self, node: Any) -> str:
        """The path of the module whose forward made the call."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = str(stack[-1][0]) if stack else ""
        return "" if f"{path}." == self.prefix else path.removeprefix(self.prefix)

    def _refusal(self, node: Any, why: object) -> str:
        """The sentence for a call that can not be converted."""
        tensors = [arg.meta["val"] for arg in node.all_input_nodes if hasattr(arg.meta.get("val"), "dtype")]
        shown = (f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}" for tensor in tensors)
        return (
            f"{node.target}({', '.join(shown)}) in {self._origin(node) or 'the model'} can not be compiled: "
            f"{why}; write it with other torch operations, or compile the modules around it"
        )


def _returns_view(target: Any) -> bool:
    """Whether the result may share memory with the first argument."""
    schema = getattr(target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)
