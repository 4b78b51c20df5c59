"""Opening a verified artifact in onnxruntime, and memory where its kernels want it.

A target's kernels are custom ops of the CPU, or those of an execution provider with memory of its own: the
manifest says which.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .ir import DTYPES, Array
from .manifest import BadArtifact, Manifest

MODEL = "model.onnx"
# A type of numbers, by numpy's and with onnxruntime's number for it.
ELEMENTS = {
    **{DTYPES["f32"]: 1, DTYPES["u8"]: 2, DTYPES["i8"]: 3},
    **{DTYPES["i64"]: 7, DTYPES["f16"]: 10, DTYPES["bf16"]: 16},
}
CPU = "CPUExecutionProvider"
UNRECORDED = -1  # the number of a run that is neither recorded nor replayed


def open_session(
    folder: Path,
    found: Manifest,
    threads: int | None = None,
    kernels: bool = True,
    profile: Path | None = None,
) -> Any:
    """An onnxruntime.InferenceSession on a verified artifact; weights are mapped, not read.

    threads: of the session's intra-op pool, None for onnxruntime's choice. Without `kernels` the functions
    behind the custom ops run instead: standard ops, slow, and the reference for the kernels.
    profile: how the path begins to which onnxruntime's profile is written when the session ends it.
    """
    options = options_of(folder, found.target if kernels else {}, graph=True, clock=profile is not None)
    if threads is not None:
        options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    # Unpacked ahead of time, weights of few bits would fill the memory.
    unpacked = not kernels and any(each.format.startswith("int") for each in found.weights)
    return session_of(str(folder / MODEL), options, unpacked)


def options_of(folder: Path, facts: Mapping[str, Any], graph: bool = False, clock: bool = False) -> Any:
    """Options of a session with the kernels of a target by the manifest's facts of it, none for none.

    graph: whether runs may be recorded, and replayed; only where every node is a kernel. clock: whether a
    provider is to time its kernels one by one, rather than record any.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    library, provider = facts.get("library"), facts.get("provider")
    if library and provider:
        whole = graph and bool(facts.get("whole"))
        wishes = {"clock": "1"} if clock else {"graph": "1"} if whole else {}
        options.add_provider_for_devices(devices(folder / library), wishes)
        if whole:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    elif library:
        options.register_custom_ops_library(str(folder / library))
    return options


def session_of(model: str | bytes, options: Any, unfolded: bool = False) -> Any:
    """A session on a model, by its path or its bytes. unfolded: leave expressions of weights to each run."""
    disabled = ["ConstantFolding"] if unfolded else None
    if options.has_providers():
        return onnxruntime.InferenceSession(model, options, disabled_optimizers=disabled)
    return onnxruntime.InferenceSession(model, options, providers=[CPU], disabled_optimizers=disabled)


def devices(library: Path) -> Sequence[Any]:
    """The devices that a library's execution provider offers. Raises BadArtifact where it offers none."""
    status = library.stat()
    name = registered(str(library.absolute()), status.st_ino, status.st_mtime_ns)
    every = onnxruntime.get_ep_devices()
    found = [each for each in every if each.ep_metadata.get("registration") == name]
    if not found:
        raise BadArtifact(f"{library} offers onnxruntime no device here: run it where there is one")
    return found[:1]


@cache
def registered(library: str, inode: int, changed: int) -> str:
    """The name under which onnxruntime knows the execution provider of this file, once for a process.

    Raises BadArtifact where it cannot be opened.
    """
    name = "moec." + hashlib.sha256(f"{library} {inode} {changed}".encode()).hexdigest()[:12]
    try:
        onnxruntime.register_execution_provider_library(name, library)
    except Exception as error:  # onnxruntime has a class of its own for each of its codes
        raise BadArtifact(f"onnxruntime cannot open {library}: {str(error).splitlines()[0]}") from None
    return name


def simulated(folder: Path, facts: Mapping[str, Any]) -> str:
    """What stands in for the device of an opened artifact's kernels, in words; nothing where it is there."""
    if "without_npu" not in facts:
        return ""
    asked = ctypes.CDLL(str(folder / facts["library"])).moec_simulated  # of the one that the session has
    return str(facts["without_npu"]) if asked() == 1 else ""


def memory(facts: Mapping[str, Any], shape: Sequence[int], dtype: Any) -> Any:
    """A tensor of undefined contents where the target's kernels read and write."""
    place = facts["provider"]
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(
        list(shape), ELEMENTS[dtype], place["memory"], 0, place["vendor"]
    )


def tensor_of(array: Array) -> Any:
    """An array as onnxruntime has it, without a copy; of types that numpy does not know it has the bits."""
    if array.dtype != DTYPES["bf16"]:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    element = ELEMENTS[array.dtype]
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), element)


def copy(source: Any, target: Any) -> None:
    """Fill a tensor from another of its shape and type, wherever they are. Arrays count as tensors."""
    pair = [tensor_of(each) if isinstance(each, np.ndarray) else each for each in (source, target)]
    onnxruntime.copy_tensors(pair[:1], pair[1:])


def run_options(graph: int | None) -> Any:
    """Options of a run: recorded and then replayed under that number, or as it is."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(UNRECORDED if graph is None else graph))
    return options
