"""The kernel table: C++ source that tells the runtime which kernels a library holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from ..base import Emitted, Kernel, Schedule, Schedules
from .isa import Isa
from .space import DRIVER_KNOBS, ROWS_OF_A_TOKEN


def op_name(kernel: Kernel, schedules: Schedules) -> str:
    """The name of the kernel's onnxruntime operator: readable, and unique per kernel and schedules."""
    text = repr(
        (kernel, [(first, sorted(schedule.items())) for first, schedule in sorted(schedules.items())])
    )
    sizes = "".join(f"_{name}{size}" for name, size in kernel.dims if name in ("k", "n", "experts", "heads"))
    return f"{kind_of(kernel)}{sizes}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def kind_of(kernel: Kernel) -> str:
    """The kernel's Kind in C++: its kind, and how weights and cache are stored where that is not f32."""
    weights = "" if kernel.weights == "f32" else f"_{kernel.weights}"
    return kernel.kind + weights + ("" if kernel.cache == "f32" else f"_over_{kernel.cache}")


def table(emitted: Sequence[Emitted], isa: Isa) -> str:
    """The source of table.cc."""
    kinds = sorted({kind_of(one.kernel) for one in emitted})
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
    sizes = joined((str(size) for _, size in one.kernel.dims), "0")
    yield f"static const int64_t dims{index}[] = {{{sizes}}};"
    reals = joined((repr(real) for _, real in one.kernel.reals), "0")
    yield f"static const double reals{index}[] = {{{reals}}};"
    firsts, served = list(one.schedules), []
    for first, after, symbols in zip(firsts, [*firsts[1:], None], one.symbols):
        yield from variant(f"{index}_{first}", one.kernel, one.schedules[first], symbols)
        most = "INT64_MAX" if after is None else after - 1
        served.append(f"{{{most}, knobs{index}_{first}, functions{index}_{first}}}")
    yield f"static const Variant variants{index}[] = {{{', '.join(served)}}};"


def variant(name: str, kernel: Kernel, schedule: Schedule, symbols: Sequence[str]) -> Iterable[str]:
    """The arrays that one way to serve calls points to."""
    for symbol in symbols:
        yield f'extern "C" __attribute__((visibility("hidden"))) void {symbol}();'
    knobs = joined((str(schedule[knob]) for knob in DRIVER_KNOBS[kernel.kind]), "0")
    yield f"static const int64_t knobs{name}[] = {{{knobs}}};"
    functions = joined((f"reinterpret_cast<void*>({symbol})" for symbol in symbols), "nullptr")
    yield f"static void* const functions{name}[] = {{{functions}}};"


def row(index: int, one: Emitted) -> str:
    """One element of the table."""
    name, kind, sizes = op_name(one.kernel, one.schedules), kind_of(one.kernel), dict(one.kernel.dims)
    rows = sizes.get(ROWS_OF_A_TOKEN.get(one.kernel.kind, ""), 1)
    return f'{{"{name}", &kind::{kind}, dims{index}, reals{index}, {rows}, variants{index}}}'


def joined(items: Iterable[str], last: str) -> str:
    """A C++ initialiser list with a sentinel."""
    return ", ".join((*items, last))


def quoted(texts: Iterable[str]) -> Iterable[str]:
    """C++ string literals of plain words."""
    return (f'"{text}"' for text in texts)
