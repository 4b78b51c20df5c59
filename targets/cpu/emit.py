"""From a kernel and a schedule to object code: loop nests written in TIR, lowered by TVM, compiled by LLVM.

The functions come out with a plain C interface and nothing undefined, so the library needs no TVM to run. TVM
and LLVM may crash or take minutes on an unlucky schedule: explore in a process that can be killed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ..base import Emitted, Kernel, Schedule, Schedules
from ..regions import BITS
from .isa import Isa
from .kernels import attention, matmul, norm, quantized, rotary, routing
from .table import op_name

# kind -> (kernel, schedule, isa, prefix) -> PrimFuncs, in the order the kind's C++ driver expects them.
Builder = Callable[[Kernel, Schedule, Isa, str], Sequence[Any]]
BUILDERS: Mapping[str, Builder] = {
    **matmul.BUILDERS,
    **attention.BUILDERS,
    **norm.BUILDERS,
    **rotary.BUILDERS,
    **routing.BUILDERS,
}
# The same where weights are stored in few bits.
QUANTIZED: Mapping[str, Builder] = {**BUILDERS, **quantized.BUILDERS}


def emit(kernel: Kernel, schedules: Schedules, isa: Isa) -> Emitted:
    """Object code for one kernel, equal schedules' functions once. Raises ValueError for an unknown kind."""
    if kernel.kind not in BUILDERS:
        raise ValueError(
            f"the cpu target has no {kernel.kind!r} kernel; there are {', '.join(sorted(BUILDERS))}"
        )
    builders = QUANTIZED if kernel.weights in BITS else BUILDERS
    name = op_name(kernel, schedules)
    functions: dict[str, Any] = {}
    symbols: list[tuple[str, ...]] = []
    for schedule in schedules.values():
        same = next(first for first, other in schedules.items() if other == schedule)
        built = builders[kernel.kind](kernel, schedule, isa, f"moec_{name}_{same}")
        symbols.append(tuple(str(function.attrs["global_symbol"]) for function in built))
        functions.update(zip(symbols[-1], built))
    return Emitted(kernel, schedules, object_code(functions, isa), tuple(symbols))


def object_code(functions: Mapping[str, Any], isa: Isa) -> bytes:
    """A relocatable object holding these functions, each under its name."""
    module = compiled(functions, isa)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.o"
        module.write_to_file(str(path), "o")
        return path.read_bytes()


def compiled(functions: Mapping[str, Any], isa: Isa) -> Any:
    """These functions as TVM's module of machine code."""
    target = tvm.target.Target(
        {
            "kind": "llvm",
            "mtriple": isa.triple,
            "mcpu": isa.llvm_cpu,
            "mattr": list(isa.llvm_attributes),
        }
    )
    nests = {name: spilling(nest, isa) for name, nest in lower(functions, target).functions_items()}
    return tvm.get_global_func("target.build.llvm")(tvm.IRModule(nests), target)


def spilling(nest: Any, isa: Isa) -> Any:
    """The function with memory of its own that begins as vectors should, so that LLVM aligns its stack.

    Else registers are spilled to wherever the caller left off, in multiples of 16 bytes, and half of what is
    spilled may cross a cache line: on a Zen 3 quantized tiles of 2 to 12 rows took 1.0 to 1.9 times as long,
    another factor in each process. That somebody asks for it keeps the memory from being optimised away.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("place")
        place = T.alloc_buffer((1,), f"float32x{isa.lanes}", scope="global")
        T.evaluate(matmul.prefetch(place[0]))
    return nest.with_body(tirx.SeqStmt([*builder.get().body.seq, nest.body]))


def lower(functions: Mapping[str, Any], target: Any) -> Any:
    """TVM's own sequence for CPUs without the steps that would call TVM's runtime."""
    steps = [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        tirx.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        s_tir.transform.LoopPartition(),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.StorageRewrite(),
        s_tir.transform.HoistIfThenElse(),
        tirx.transform.UnrollLoop(),
        s_tir.transform.RenormalizeSplitPattern(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.CommonSubexprElim(),
        tirx.transform.VerifyMemory(),
        tirx.transform.LowerIntrin(),
    ]
    plain = {
        name: function.with_attr("target", target).with_attr("calling_conv", 0)
        for name, function in functions.items()
    }
    return tvm.ir.transform.Sequential(steps)(tvm.IRModule(plain))
