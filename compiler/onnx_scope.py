"""One ONNX graph or function while it is written: its nodes, and the name of every value in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .ir import DTYPES, Dim, Type, Value
from .onnx_sizes import Sizes


class Scope:
    """Collects nodes. `inputs` are the values it starts from and `names` their names in ONNX."""

    def __init__(self, inputs: Mapping[Value, str], sized: Mapping[str, Type], prefix: str = "") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.names: dict[Value, str] = dict(inputs)
        self.sizes = Sizes(self.op, self.constant, sized)
        self.origin = ""
        self._prefix = prefix
        self._count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def fresh(self, stem: str) -> str:
        """A name not yet used in this scope."""
        self._count += 1
        return f"{self._prefix}{stem}_{self._count}"

    def op(self, kind: str, *inputs: str, **attrs: Any) -> str:
        """One node with one result; gives the result's name."""
        return self.ops(kind, *inputs, count=1, **attrs)[0]

    def ops(self, kind: str, *inputs: str, count: int, **attrs: Any) -> list[str]:
        """One node with `count` results; gives their names."""
        name = self.fresh(kind)
        outputs = [name] if count == 1 else [f"{name}.{i}" for i in range(count)]
        self.call(kind, inputs, outputs, **attrs)
        return outputs

    def call(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attrs: Any
    ) -> None:
        """One node whose results already have names."""
        label = f"{self.origin}/{outputs[0]}" if self.origin else outputs[0]
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=label, domain=domain, **attrs))

    def constant(self, data: Any, dtype: str = "i64") -> str:
        """A small array in the graph itself; equal arrays are one."""
        array = np.asarray(data, DTYPES[dtype])
        key = (dtype, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.op("Constant", value=numpy_helper.from_array(array))
        return self._constants[key]

    def shape(self, dims: Sequence[Dim]) -> str:
        """A one-dimensional i64 tensor of sizes."""
        if all(isinstance(dim, int) for dim in dims):
            return self.constant(list(dims))
        parts = [self.sizes(dim) for dim in dims]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def loop(
        self, trips: str, carried: str, step: Callable[[Scope, str, str], str], rank: int, element: int
    ) -> str:
        """ONNX Loop with one carried tensor: `step(scope, trip number, carried) -> carried`, `trips` times.

        The body may use names of this scope; it must not write constants of this scope, only of its own.
        """
        body = Scope({}, {}, prefix=f"{self.fresh('body')}.")
        trip, going, before = (body.fresh(stem) for stem in ("trip", "going", "carried"))
        after, still = step(body, trip, before), body.op("Identity", going)
        anything = [None] * rank
        graph = helper.make_graph(
            body.nodes,
            "body",
            [
                helper.make_tensor_value_info(trip, onnx.TensorProto.INT64, []),
                helper.make_tensor_value_info(going, onnx.TensorProto.BOOL, []),
                helper.make_tensor_value_info(before, element, anything),
            ],
            [
                helper.make_tensor_value_info(still, onnx.TensorProto.BOOL, []),
                helper.make_tensor_value_info(after, element, anything),
            ],
        )
        return self.op("Loop", trips, "", carried, body=graph)


def onnx_dtype(dtype: str) -> int:
    """ONNX's number for one of our dtypes."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(DTYPES[dtype])))
