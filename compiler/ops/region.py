"""A part of a graph that one kernel computes; its body says what the kernel means."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..ir import Array, Graph, Op, Type, TypeMismatch, Value, renew


def _region_type(*operands: Type, kind: str, body: Graph) -> tuple[Type, ...]:
    wanted = tuple(value.type for value in body.inputs)
    if operands != wanted:
        raise TypeMismatch(f"the body of {kind} takes ({', '.join(map(str, wanted))})")
    return tuple(value.type for value in body.outputs)


def _region(*operands: Array, kind: str, body: Callable[..., tuple[Array, ...]]) -> tuple[Array, ...]:
    """The interpreter hands the body over as a function, with the sizes of the whole graph filled in."""
    return body(*operands)


def _inline(*operands: Value, kind: str, body: Graph) -> Sequence[Value]:
    return inline(body, operands)


def inline(body: Graph, operands: Sequence[Value]) -> tuple[Value, ...]:
    """The body's outputs with its inputs replaced by the operands, in order.

    Raises TypeMismatch where the operands are not of the inputs' types.
    """
    _region_type(*(value.type for value in operands), kind="the graph", body=body)
    new: dict[Value, Value] = dict(zip(body.inputs, operands))
    for node in body:
        if node[0] not in new:
            new.update(zip(node.values, renew(node, tuple(new[value] for value in node.inputs)).values))
    return tuple(new[value] for value in body.outputs)


REGION: Op = Op("region", _region_type, _region, _inline)
