"""The kernel table: C++ source that tells the runtime which kernels a library holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from ..base import Emitted, Kernel, Schedule
from .isa import Isa
from .space import DRIVER_KNOBS


def op_name(kernel: Kernel, schedule: Schedule) -> str:
    """The name of the kernel's onnxruntime operator: readable, and unique per kernel and schedule."""
    text = repr((kernel, sorted(schedule.items())))
    sizes = "".join(f"_{name}{size}" for name, size in kernel.dims if name in ("k", "n", "experts", "heads"))
    return f"{kernel.kind}{sizes}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def table(emitted: Sequence[Emitted], isa: Isa) -> str:
    """The source of table.cc."""
    kinds = sorted({one.kernel.kind for one in emitted})
    return "\n".join(
        (
            '#include "kernel.h"',
            "namespace moec {",
            "extern const char* const isa_name;",
            "extern const char* const isa_features[];",
            "extern const size_t isa_feature_count;",
            f'const char* const isa_name = "{isa}";',
            f"const char* const isa_features[] = {{{joined(quoted(isa.features), 'nullptr')}}};",
            f"const size_t isa_feature_count = {len(isa.features)};",
            *(f"namespace kind {{ extern const Kind {kind}; }}" for kind in kinds),
            *(line for index, one in enumerate(emitted) for line in data(index, one)),
            f"const Row rows[] = {{{joined((row(index, one) for index, one in enumerate(emitted)), '{}')}}};",
            f"const size_t row_count = {len(emitted)};",
            "}  // namespace moec",
            "",
        )
    )


def data(index: int, one: Emitted) -> Iterable[str]:
    """The arrays a row points to. An array of C++ is never empty, so each has a last element nobody reads."""
    knobs = [int(one.schedule[knob]) for knob in DRIVER_KNOBS[one.kernel.kind]]
    sizes = [size for _, size in one.kernel.dims] + knobs
    for symbol in one.symbols:
        yield f'extern "C" __attribute__((visibility("hidden"))) void {symbol}();'
    yield f"static const int64_t dims{index}[] = {{{joined(map(str, sizes), '0')}}};"
    reals = joined((repr(real) for _, real in one.kernel.reals), "0")
    yield f"static const double reals{index}[] = {{{reals}}};"
    functions = (f"reinterpret_cast<void*>({symbol})" for symbol in one.symbols)
    yield f"static void* const functions{index}[] = {{{joined(functions, 'nullptr')}}};"


def row(index: int, one: Emitted) -> str:
    """One element of the table."""
    name = op_name(one.kernel, one.schedule)
    knobs = f"dims{index} + {len(one.kernel.dims)}"
    return f'{{"{name}", &kind::{one.kernel.kind}, dims{index}, reals{index}, {knobs}, functions{index}}}'


def joined(items: Iterable[str], last: str) -> str:
    """A C++ initialiser list with a sentinel."""
    return ", ".join((*items, last))


def quoted(texts: Iterable[str]) -> Iterable[str]:
    """C++ string literals of plain words."""
    return (f'"{text}"' for text in texts)
