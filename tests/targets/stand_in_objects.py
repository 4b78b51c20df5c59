"""Kernels' objects for the stand-in for ACL: code for this CPU, called as Triton's driver calls an NPU's.

Such a NAME.o is a library that says what a launch must be like, and runs all blocks of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moec.targets import native

ANY_CORE, VECTOR_CORES = 0x43554245, 0x41415246
MEMREF = "void*, void*, int64_t, int64_t, int64_t"
# By the letters of a signature: in C++, its alignment, how MLIR's function takes it, and how it is given.
TYPES = {
    "p": ("void*", 8, MEMREF, "{0}, {0}, 0, 0, 1"),
    "i": ("int32_t", 4, "int32_t", "{0}"),
    "f": ("float", 4, "float", "{0}"),
}


@dataclass(frozen=True)
class Function:
    """A kernel's function. types: a letter for each argument: p memory, i an i32, f an f32.

    workspace: bytes of device memory for each block; locks: how many there are.
    """

    name: str
    types: str
    mixed: bool = False
    workspace: int = 0
    locks: int = 0


def source(function: Function) -> str:
    """C++ of what the stand-in calls."""
    types = [TYPES[letter] for letter in function.types]
    fields = "\n".join(
        f"  {cpp} a{i} __attribute__((aligned({align})));" for i, (cpp, align, *_) in enumerate(types)
    )
    declared = ", ".join([MEMREF, MEMREF, *(mlir for *_, mlir, _ in types), *["int32_t"] * 6])
    given = ", ".join(
        [
            *["nullptr, nullptr, 0, 0, 1"] * 2,
            *(how.format(f"g.a{i}") for i, (*_, how) in enumerate(types)),
            *("g.x", "g.y", "g.z", "x", "y", "z"),
        ]
    )
    memory = [f"offsetof(Given, a{i})" for i, letter in enumerate(function.types) if letter == "p"]
    magic = ANY_CORE if function.mixed else VECTOR_CORES
    return f"""
#include <cstddef>
#include <cstdint>
struct __attribute__((packed)) Given {{
  void* sync __attribute__((aligned(8)));
  void* locks __attribute__((aligned(8)));
  void* workspace __attribute__((aligned(8)));
{fields}
  int32_t x __attribute__((aligned(4)));
  int32_t y __attribute__((aligned(4)));
  int32_t z __attribute__((aligned(4)));
}};
extern "C" {{
void {function.name}({declared});
void moec_block_done();
extern const size_t moec_memory[];
const size_t moec_memory[] = {{{", ".join([*memory, "0"])}}};
struct Plan {{
  const char* name;
  uint32_t magic;
  size_t bytes, workspace, locks;
  const size_t* memory;
  size_t memories;
}};
extern const Plan moec_plan;
const Plan moec_plan = {{"{function.name}", {magic:#x}, sizeof(Given), {function.workspace}, {function.locks},
                        moec_memory, {len(memory)}}};
const char* moec_run(const void* given, uint32_t blocks) {{
  const Given& g = *static_cast<const Given*>(given);
  if (int64_t(g.x) * g.y * g.z != blocks) return "the grid has not as many blocks as were launched";
  for (int32_t z = 0; z < g.z; ++z)
    for (int32_t y = 0; y < g.y; ++y)
      for (int32_t x = 0; x < g.x; ++x) {{
        {function.name}({given});
        moec_block_done();
      }}
  return nullptr;
}}
}}
"""


def write(function: Function, code: Sequence[str | Path], folder: Path) -> None:
    """NAME.o in a folder: the function is in some C++ sources or objects."""
    (folder / f"{function.name}.cc").write_text(source(function))
    flags = ("-std=c++17", "-O1", "-shared", "-fPIC", "-Wl,-Bsymbolic", "-Wl,--no-undefined")
    out = folder / f"{function.name}.o"
    native.run(
        native.find_compiler(), *flags, folder / f"{function.name}.cc", *code, "-x", "none", "-lm", "-o", out
    )
