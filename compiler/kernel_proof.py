"""Whether each kernel of an artifact computes what the standard ops behind it do, given the same operands.

The artifact runs with its kernels, and all that goes into them and comes out of them is kept. Then each node
runs once more by itself, without the kernel library, on what went into it. So where a kernel rounds the other
way what lies in the middle, that moves its own results only.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from .ir import DTYPES, Array
from .manifest import Manifest
from .onnx_graph import DOMAIN
from .onnx_scope import onnx_dtype
from .session import MODEL, options_of, session_of, tensor_of

OWN = ".own"  # what the results of standard ops are called


def kernel_errors(folder: Path, found: Manifest, feeds: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    """The largest and the mean error of each kernel, by its name, relative to the largest value of a result.

    Where several nodes have one kernel, those of the worst. feeds: of the whole artifact.
    """
    model = onnx.load(folder / MODEL, load_external_data=False)
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    stored = {tensor.name for tensor in model.graph.initializer}
    operands = [name for name in names_of(node.input for node in nodes) if name not in stored]
    given = {name: tensor_of(array) for name, array in feeds.items()}
    wanted = names_of([*(node.output for node in nodes), operands])
    got = given | results(folder, shown(model, wanted), given, found.target)
    own = results(folder, apart(model, nodes, {name: got[name] for name in operands}), got, {})
    errors: dict[str, dict[str, float]] = {}
    for node in nodes:
        worst = errors.setdefault(node.op_type, {"max_error": 0.0, "mean_error": 0.0})
        for name in node.output:
            for measure, error in zip(worst, differences(array_of(got[name]), array_of(own[name + OWN]))):
                worst[measure] = float(np.maximum(worst[measure], error))
    return errors


def alone(folder: Path, found: Manifest, feeds: Mapping[str, Array], told: Callable[[str], Any]) -> None:
    """Each kernel run by itself, on what standard ops give before it; told: called with its name before."""
    model = onnx.load(folder / MODEL, load_external_data=False)
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    stored = {tensor.name for tensor in model.graph.initializer}
    operands = [[name for name in names_of([node.input]) if name not in stored] for node in nodes]
    given = {name: tensor_of(array) for name, array in feeds.items()}
    got = given | results(folder, shown(model, names_of(operands)), given, {})
    for node, names in zip(nodes, operands):
        told(node.op_type)
        results(folder, apart(model, [node], {name: got[name] for name in names}), got, found.target)


def names_of(lists: Iterable[Sequence[str]]) -> list[str]:
    """Each name once; those that are left out are empty."""
    return [name for name in dict.fromkeys(name for names in lists for name in names) if name]


def shown(model: Any, names: Sequence[str]) -> Any:
    """The model with these values among its results; what it is fed is none."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    known = {each.name for each in (*model.graph.input, *model.graph.output)}
    result.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    return result


def apart(model: Any, nodes: Sequence[Any], operands: Mapping[str, Any]) -> Any:
    """A model of these nodes alone, each on operands that it is fed."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for field in ("node", "input", "output", "value_info"):
        result.graph.ClearField(field)
    for node in nodes:
        own = result.graph.node.add()
        own.CopyFrom(node)
        own.output[:] = [name + OWN for name in node.output]
        result.graph.output.extend(onnx.ValueInfoProto(name=name) for name in own.output)
    for name, value in operands.items():
        info = helper.make_tensor_value_info(name, value.element_type(), value.shape())
        result.graph.input.append(info)
    return result


def results(folder: Path, model: Any, feeds: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """All tensors that a model of the artifact's weights gives, with a target's kernels or none."""
    options = options_of(folder, facts)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    # Weights unpacked ahead of time would fill the memory.
    session = session_of(model.SerializeToString(), options, unfolded=True)
    given = {each.name: feeds[each.name] for each in session.get_inputs()}
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run_with_ort_values(names, given)))


def array_of(tensor: Any) -> Array:
    """A tensor of onnxruntime as an array, also where numpy does not know its type."""
    if tensor.element_type() != onnx_dtype("bf16"):
        array: Array = tensor.numpy()
        return array
    raw = (ctypes.c_uint16 * math.prod(tensor.shape())).from_address(tensor.data_ptr())
    return np.frombuffer(raw, DTYPES["bf16"]).reshape(tensor.shape())


def differences(got: Array, wanted: Array) -> tuple[float, float]:
    """The largest and the mean difference of two arrays, relative to the largest value of the second."""
    if not wanted.size:
        return 0.0, 0.0
    exact = wanted.astype(np.float64)
    off = np.abs(got.astype(np.float64) - exact) / max(float(np.abs(exact).max()), 1e-30)
    return float(off.max()), float(off.mean())
