"""A graph in ONNX: standard ops, and each region as a custom op with a function of the same name behind it.

With the kernel library registered, onnxruntime runs the kernel; without it, the function's body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

from .ir import Graph, Node, Type, Value
from .onnx_experts import SPELLINGS, expanded, keep_packed
from .onnx_scope import Scope, onnx_dtype
from .ops import sources

OPSET = 22
IR_VERSION = 10
DOMAIN = "moec"

Naming = Callable[[Node], str | None]


@dataclass(frozen=True, slots=True)
class Stored:
    """Where an initializer's bytes lie: a file beside the model, and the span in it, in bytes."""

    name: str
    file: str
    offset: int
    length: int


def to_onnx(graph: Graph, stored: Mapping[Value, Stored], naming: Naming) -> onnx.ModelProto:
    """The model; `naming` gives a region's op name, or None to spell the region's body out in place.

    stored holds every expression of weights that the graph reads (`frontier`), already written to files.
    Raises ValueError for an op or a size that ONNX cannot express, naming it and the module it came from.
    """
    leaves = {
        value: sources.INPUT(name=at.name, dtype=value.type.dtype, shape=value.shape)
        for value, at in stored.items()
    }
    main = lowered(graph.replace(leaves), naming)
    named = {value: str(value.node.attrs["name"]) for value in (*main.inputs, *leaves.values())}
    scope = Scope(named, {named[value]: value.type for value in main.inputs})
    functions = _write(scope, main, naming)
    for value, name in zip(main.outputs, main.names, strict=True):
        if scope.names[value] != name:
            scope.call("Identity", [scope.names[value]], [name])
    return _model(main, scope.nodes, functions, [_tensor(at, value.type) for value, at in stored.items()])


def frontier(graph: Graph) -> list[Value]:
    """The expressions of weights the graph reads: what depends on no input, where it meets what does."""
    fixed: set[Node] = set()
    edge: dict[Value, None] = {}
    for node in graph:
        source = node.op.name in ("constant", "literal")
        if source or (node.inputs and all(value.node in fixed for value in node.inputs)):
            fixed.add(node)
        else:
            edge.update((value, None) for value in node.inputs if value.node in fixed)
    edge.update((value, None) for value in graph.outputs if value.node in fixed)
    return [value for value in edge if value.op.name != "literal"]


def lowered(graph: Graph, naming: Naming) -> Graph:
    """Every op as ops that have an ONNX spelling; regions with a name stay."""

    def keeps(node: Node) -> bool:
        kept = node.op.name == "region" and naming(node) is not None
        return kept or node.op.name == "input" or node.op.name in SPELLINGS

    return expanded(keep_packed(graph), keeps)


def _write(scope: Scope, graph: Graph, naming: Naming) -> dict[str, onnx.FunctionProto]:
    """Append every node of the graph; gives the functions that its regions call."""
    functions: dict[str, onnx.FunctionProto] = {}
    final = dict(zip(graph.outputs, graph.names))
    for node in graph:
        if node.op.name == "input":
            continue
        scope.origin = node.origin
        inputs = [scope.names[value] for value in node.inputs]
        if node.op.name == "region":
            name = str(naming(node))
            results = [final.get(value) or scope.fresh(name) for value in node.values]
            scope.call(name, inputs, results, domain=DOMAIN)
            _define(functions, name, node)
        else:
            spelled = SPELLINGS[node.op.name](scope, node, *inputs)
            results = [spelled] if isinstance(spelled, str) else list(spelled)
        scope.names.update(zip(node.values, results, strict=True))
    return functions


def _define(functions: dict[str, onnx.FunctionProto], name: str, node: Node) -> None:
    """Add the function a region calls, unless an earlier region with the same kernel has."""
    function = function_of(name, node.attrs["body"])
    if functions.setdefault(name, function) != function:
        raise ValueError(f"two regions with different meanings share the kernel {name}  [from {node.origin}]")


def function_of(name: str, body: Graph) -> onnx.FunctionProto:
    """The region's body in standard ops, every size taken from its own inputs."""
    body = lowered(body, lambda region: None)
    inputs = {value: f"in_{i}" for i, value in enumerate(body.inputs)}
    outputs = [f"out_{i}" for i in range(len(body.outputs))]
    scope = Scope(inputs, {inputs[value]: value.type for value in body.inputs})
    _write(scope, Graph(body.inputs, body.outputs), lambda region: None)
    for value, output in zip(body.outputs, outputs):
        scope.call("Identity", [scope.names[value]], [output])
    for node in scope.nodes:
        node.name = ""
    return helper.make_function(
        DOMAIN, name, list(inputs.values()), outputs, scope.nodes, [helper.make_opsetid("", OPSET)]
    )


def _model(
    graph: Graph,
    nodes: Sequence[onnx.NodeProto],
    functions: Mapping[str, onnx.FunctionProto],
    weights: Sequence[onnx.TensorProto],
) -> onnx.ModelProto:
    inputs = [_info(str(value.node.attrs["name"]), value.type) for value in graph.inputs]
    outputs = [_info(name, value.type) for value, name in zip(graph.outputs, graph.names)]
    return helper.make_model(
        helper.make_graph(nodes, "moec", inputs, outputs, initializer=weights),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        functions=list(functions.values()),
        ir_version=IR_VERSION,
        producer_name="moec",
    )


def _info(name: str, type: Type) -> onnx.ValueInfoProto:
    shape = [dim if isinstance(dim, int) else str(dim) for dim in type.shape]
    return helper.make_tensor_value_info(name, onnx_dtype(type.dtype), shape)


def _tensor(at: Stored, type: Type) -> onnx.TensorProto:
    """An initializer whose bytes stay in their file."""
    dims = [int(dim) for dim in type.shape]
    tensor = onnx.TensorProto(name=at.name, data_type=onnx_dtype(type.dtype), dims=dims)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", at.file), ("offset", at.offset), ("length", at.length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
