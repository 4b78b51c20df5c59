"""Which columns of a tensor a view of it shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..compiler.ir import Node, Value
from ..compiler.ops import index, shape, sources
from .match import made_by

_VIEWS = (shape.SLICE, shape.RESHAPE, shape.TRANSPOSE, index.TAKE)


def views(value: Value) -> Iterator[Value]:
    """The value, what it is a view of, what that is a view of, and so on."""
    yield value
    while made_by(value, *_VIEWS):
        value = value.node.inputs[0]
        yield value


def columns(value: Value, base: Value) -> Any:
    """The columns of the last axis of `base` that `value` shows, as an array of the axes made from that axis.

    The axes before it must be the same in both. None where they are not, or the value is no view of the base.
    """
    if value == base:
        return np.arange(base.shape[-1]) if isinstance(base.shape[-1], int) else None
    if not made_by(value, *_VIEWS):
        return None
    shown = columns(value.node.inputs[0], base)
    return None if shown is None else _seen_through(value.node, shown, base.type.rank - 1)


def _seen_through(node: Node, shown: Any, lead: int) -> Any:
    """What one more view leaves of the columns `shown`; `lead` axes come before theirs."""
    source, result, attrs = node.inputs[0], node[0], node.attrs
    if node.op.name == shape.RESHAPE.name:
        tail = result.shape[lead:]
        kept = result.shape[:lead] == source.shape[:lead] and all(isinstance(dim, int) for dim in tail)
        return shown.reshape(tail) if kept else None
    if node.op.name == shape.TRANSPOSE.name:
        perm = [axis % source.type.rank for axis in attrs["perm"]]
        kept = perm[:lead] == [*range(lead)]
        return shown.transpose([axis - lead for axis in perm[lead:]]) if kept else None
    axis = attrs["axis"] % source.type.rank - lead
    if axis < 0:
        return None
    if node.op.name == index.TAKE.name:
        chosen = sources.array_of(node.inputs[1])
        return None if chosen is None else np.take(shown, chosen, axis=axis)
    bounds = slice(attrs["start"], attrs["stop"], attrs.get("step", 1))
    return shown[(slice(None),) * axis + (bounds,)]
