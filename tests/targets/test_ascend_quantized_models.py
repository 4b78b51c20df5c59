"""Models with int8 products for Ascend: regions have kernels, the runtime has kinds, weights an error."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layers import apart, decoder, weights_of

from moec.compiler import slices
from moec.compiler.ir import DTYPES, Graph, Node
from moec.compiler.onnx_graph import frontier
from moec.compiler.ops.region import REGION
from moec.compiler.pipeline import Pass, run
from moec.compiler.rounding import Rounding, stored_weights
from moec.compiler.text import show
from moec.passes.caches import NarrowCaches
from moec.passes.precision import Policy, Precision
from moec.targets import bf16
from moec.targets.ascend import soc, space
from moec.targets.ascend.target import Target
from moec.targets.base import Kernel
from moec.targets.bf16 import MATMULS
from moec.targets.cases_bf16 import Sample

from .ascend_models import kernel

MACHINE = Target(soc.SOCS[0])


class Tensor(ctypes.Structure):
    """MoecTensor of the runtime."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 8),
    )


def tensors(arrays: Sequence[Any]) -> Any:
    """Arrays as the runtime takes them."""
    numbers = {"bfloat16": 16, "float16": 10, "float32": 1, "int64": 7, "int8": 3}
    return (Tensor * len(arrays))(
        *(
            Tensor(each.ctypes.data, each.ndim, numbers[each.dtype.name], (ctypes.c_int64 * 8)(*each.shape))
            for each in arrays
        )
    )


@pytest.mark.usefixtures("ascend_toolchain", "home")
def test_the_runtime_launches_them_and_refuses_what_does_not_fit(tmp_path: Path) -> None:
    """Every kind, from the library that an artifact has, simulated."""
    lines = (
        "linear k=33 n=20 wide=1 int8row",
        "linear_add k=33 n=20 wide=0 int8row",
        "linear_swiglu k=33 n=20 wide=0 int8row",
        "grouped_swiglu k=33 n=20 experts=4 share=2 int8row",
        "grouped_combine k=33 n=20 experts=4 share=2 base=2 int8row",
    )
    kernels = [kernel(line) for line in lines]
    made = [MACHINE.emit(one, {1: space.space(one, MACHINE.soc).default}) for one in kernels]
    library = ctypes.CDLL(str(MACHINE.link(made, tmp_path / MACHINE.library)))
    library.moec_launch.restype = ctypes.c_char_p
    for row, one in enumerate(kernels):
        example = Sample(one).example(5)
        y = [np.full(each.shape, np.nan, dtype) for each, dtype in zip(example.results, example.dtypes)]
        assert said(library, row, example.operands, y) == ""
        assert example.wrong(y) is None, str(one)
        scales = next(i for i, each in enumerate(example.operands) if each.dtype == np.float16)
        few = [each[..., :3, :] if i == scales else each for i, each in enumerate(example.operands)]
        assert f"input {scales} holds {few[scales].size} elements" in said(library, row, few, y)


def said(library: Any, row: int, operands: Sequence[Any], results: Sequence[Any]) -> str:
    """What the library says of a call of its kernel `row`: nothing where it was made."""
    x, y = tensors(operands), tensors(results)
    why: bytes | None = library.moec_launch(
        ctypes.c_size_t(row), ctypes.c_size_t(len(x)), x, ctypes.c_size_t(len(y)), y, None
    )
    return (why or b"").decode()


def graphs(quant: str = "int8") -> Sequence[Graph]:
    """Small models after all passes."""
    policy, machine = MACHINE.policies[quant], MACHINE.halved(quant)
    assert isinstance(policy, Policy)
    precision = Precision(policy, machine.formats, machine.widest)
    passes: tuple[Pass, ...] = (NarrowCaches(machine.caches[0]), *machine.passes, precision)
    return [run(graph, passes)[0] for graph in (decoder(2), decoder(2, latent=False), apart())]


def test_regions_have_a_kernel_and_operands_of_its_types() -> None:
    found = {bf16.kernel_of(node): node for graph in graphs() for node in graph if node.op is REGION}
    coded = {one: node for one, node in found.items() if one.weights == "int8row"}
    assert {one.kind for one in coded} == set(MATMULS)
    assert {one.kind for one in found if one.weights == "bf16"} >= {"route", "latent_attention", "embedding"}
    expect_operands(coded)


def expect_operands(found: Mapping[Kernel, Node]) -> None:
    """What kernels are tried on is of the types that their regions have."""
    for one, node in found.items():
        body = node.attrs["body"]
        assert space.known(one) in space.BUILDERS
        example = Sample(one).example(3)
        assert [each.dtype for each in example.operands] == [DTYPES[x.type.dtype] for x in body.inputs]
        assert list(example.dtypes) == [DTYPES[y.type.dtype] for y in body.outputs]


def test_in_f16_nothing_is_bf16() -> None:
    made = graphs("f16")
    found = {bf16.kernel_of(node): node for graph in made for node in graph if node.op is REGION}
    assert {one.kind for one in found if one.half == "bf16"} <= {"angles", "permute", "top_k_gate"}
    assert not any("bf16" in show(graph) for graph in made)
    for one in found:
        steps = space.steps(one, space.space(one, MACHINE.soc).default, MACHINE.soc)
        assert "bf16" not in {given.type for step in steps for given in step.arguments.values()}
    expect_operands(found)


def test_the_error_of_weights_is_measured() -> None:
    graph, rounding = graphs()[0], Rounding()
    weights = {name: array.astype(np.float32) for name, array in weights_of(graph).items()}
    for _, parts in slices.evaluated(frontier(graph), weights, rounding.observe):
        list(parts)
    rows = [each for each in stored_weights(graph, rounding) if each.format == "int8row"]
    assert rows
    for each in rows:
        assert each.error is not None
        assert 0 < each.error < 0.01, each
