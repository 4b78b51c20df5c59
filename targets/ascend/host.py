"""What the vendor's compiler is given, for this machine's CPU instead: stock MLIR and LLVM, no Ascend code.

The object's function is a block of the kernel. Memory on the chip is got by moec_on_chip(bytes), which the
runtime gives back as a whole when the block is done; copies between memories call memrefCopy.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from ..base import CannotBuild
from .cache import kept
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
LIMIT_S = 300


def object_code(linalg: Linalg) -> bytes:
    """An ELF object for x86-64-v3; from the cache where it was made before. Raises CannotBuild with MLIR's
    words.
    """
    return kept("host", (linalg.text, PASSES, CPU), lambda: compiled(linalg.text))


def compiled(text: str) -> bytes:
    """The object, made from a module's text."""
    made = _run("mlir-opt", PASSES, text.encode())
    made = _run("mlir-translate", ("--mlir-to-llvmir",), made)
    made = _run("opt", ("-O2", f"-mcpu={CPU}"), made)
    return _run("llc", ("-O2", f"-mcpu={CPU}", "-relocation-model=pic", "-filetype=obj"), made)


def _run(tool: str, arguments: Sequence[str], given: bytes) -> bytes:
    found = find()
    libraries = filter(None, (str(found.libraries), os.environ.get("LD_LIBRARY_PATH")))
    environment = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(libraries)}
    command = [str(found.mlir / tool), *arguments]
    try:
        done = subprocess.run(command, input=given, capture_output=True, env=environment, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        raise CannotBuild(f"{tool} did not end within {LIMIT_S} s") from None
    if done.returncode:
        words = done.stderr.decode(errors="replace")[:1500]
        raise CannotBuild(f"{tool} failed with status {done.returncode}: {words}")
    return done.stdout
