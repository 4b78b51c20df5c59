"""Small graphs of onnxruntime's own operators, as peers of single kernels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnxruntime as ort
from onnx import TensorProto, helper

from moec.targets.cpu.device import places

TYPES = {"f": TensorProto.FLOAT, "u": TensorProto.UINT8}


def alone(threads: int) -> ort.SessionOptions:
    """Options of a session whose threads rest between calls, as a Bench's do: spinning, they slow others.

    Each has a processor of its own, and the first is left to the caller (kernels.placed).
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if others := places(threads):
        options.add_session_config_entry("session.intra_op_thread_affinities", others)
    return options


def session(
    nodes: Sequence[Any],
    weights: Mapping[str, Any],
    inputs: Iterable[str],
    outputs: Iterable[str],
    threads: int,
) -> ort.InferenceSession:
    """A session on these nodes; weights by name are its own, inputs and outputs are float32."""
    stored = [
        helper.make_tensor(name, TYPES[array.dtype.kind], array.shape, array.tobytes(), raw=True)
        for name, array in weights.items()
    ]
    graph = helper.make_graph(
        nodes,
        "peer",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        stored,
    )
    domains = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(graph, opset_imports=domains, ir_version=10)
    options = alone(threads)
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
