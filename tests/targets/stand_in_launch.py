"""A kernel's library called without onnxruntime, over the stand-in for ACL or simulated.

    python -m tests.targets.stand_in_launch LIBRARY npu|cpu rms_norm n=64 width=80 start=16 eps=1e-6

calls its only kernel for all that is compared with the float64 reference, and prints what is wrong as JSON.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import numpy as np

from moec.compiler.ir import DTYPES
from moec.targets.cases_bf16 import Example, Sample
from moec.targets.checks import checked
from moec.targets.sample import unwritten

from .ascend import kernel_of
from .stand_in_session import Cpu, Npu, Tensor

TYPES = {np.dtype(DTYPES[name]): number for name, number in (("f32", 1), ("i64", 7), ("bf16", 16))}


def tensor(device: Any, array: Any) -> Tensor:
    """A copy in the device's memory."""
    return Tensor(device.placed(array), array.ndim, TYPES[array.dtype], (ctypes.c_int64 * 8)(*array.shape))


def called(launch: Any, device: Any, example: Example) -> str | None:
    """What is wrong with a call, or None."""
    x = [tensor(device, each) for each in example.operands]
    made = [unwritten(like.astype(dtype)) for like, dtype in zip(example.results, example.dtypes)]
    y = [
        x[example.in_place[i]] if i in example.in_place else tensor(device, each)
        for i, each in enumerate(made)
    ]
    inputs, outputs = (Tensor * len(x))(*x), (Tensor * len(y))(*y)
    sizes = ctypes.c_size_t(len(x)), ctypes.c_size_t(len(y))
    if said := launch(ctypes.c_size_t(0), sizes[0], inputs, sizes[1], outputs, device.stream):
        return str(said.decode())
    for each, result in zip(y, made):
        device.fetch(result, each.data)
    return example.wrong(made)


def main() -> None:
    """All calls of the kernel that the command line names."""
    library, place, kind, *words = sys.argv[1:]
    numbers = {name: float(number) for name, _, number in (word.partition("=") for word in words)}
    kernel = kernel_of(kind, numbers)
    device, launch = {"npu": Npu, "cpu": Cpu}[place](), ctypes.CDLL(library).moec_launch
    launch.restype = ctypes.c_char_p
    sample, calls = Sample(kernel), checked(kernel, {1: {}})
    wrong = {name: called(launch, device, sample.example(**options)) for name, options in calls.items()}
    print(json.dumps(wrong))


if __name__ == "__main__":
    main()
