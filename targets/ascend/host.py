"""What the vendor's compiler is given, for this machine's CPU instead: stock MLIR and LLVM, no Ascend code.

The object's function is a block of the kernel. Memory on the chip is got by moec_on_chip(bytes), which the
runtime gives back as a whole when the block is done; copies between memories call memrefCopy.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..base import CannotBuild
from .lowering import Linalg
from .toolchain import find

PASSES = (
    "--allow-unregistered-dialect",
    "--convert-elementwise-to-linalg",
    "--linalg-fuse-elementwise-ops",
    "--canonicalize",
    "--cse",
    "--eliminate-empty-tensors",
    "--empty-tensor-to-alloc-tensor",
    "--one-shot-bufferize=allow-return-allocs-from-loops=true",
    "--canonicalize",
    "--cse",
    "--buffer-hoisting",
    "--convert-linalg-to-loops",
    "--fold-memref-alias-ops",
    "--expand-strided-metadata",
    "--lower-affine",
    "--convert-scf-to-cf",
    "--arith-expand=include-bf16=true",
    "--memref-expand",
    "--convert-math-to-llvm",
    "--convert-math-to-libm",
    "--convert-complex-to-llvm",
    "--convert-vector-to-llvm",
    "--convert-index-to-llvm",
    "--finalize-memref-to-llvm=use-generic-functions=true",
    "--convert-arith-to-llvm",
    "--convert-func-to-llvm",
    "--convert-cf-to-llvm",
    "--reconcile-unrealized-casts",
)
CPU = "x86-64-v3"


def object_code(linalg: Linalg) -> bytes:
    """An ELF object for x86-64-v3. Raises CannotBuild with MLIR's words."""
    made = _run("mlir-opt", PASSES, linalg.text.encode())
    made = _run("mlir-translate", ("--mlir-to-llvmir",), made)
    made = _run("opt", ("-O2", f"-mcpu={CPU}"), made)
    return _run("llc", ("-O2", f"-mcpu={CPU}", "-relocation-model=pic", "-filetype=obj"), made)


def _run(tool: str, arguments: Sequence[str], given: bytes) -> bytes:
    found = find()
    environment = os.environ | {"LD_LIBRARY_PATH": str(found.libraries)}
    done = subprocess.run(
        [Path(found.mlir / tool), *arguments], input=given, capture_output=True, env=environment
    )
    if done.returncode:
        raise CannotBuild(f"{tool} failed: {done.stderr.decode(errors='replace')[:1500]}")
    return done.stdout
