"""The kernel table: C++ source with every launch spelled out, and the cubins beside it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..base import Emitted, Kernel, Schedules
from .bundle import Argument, Bundle, Launch, TensorMap, from_bytes
from .program import SIZES
from .sm import Sm

ROWS_OF_A_TOKEN = {"grouped_combine": "share"}  # of operand 0, as a dim of the kernel; else one
PREAMBLE = """#include "launch.h"
namespace moec {
[[maybe_unused]] static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
[[maybe_unused]] static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
[[maybe_unused]] static const int64_t no_knobs[] = {0};"""


def op_name(kernel: Kernel, schedules: Schedules) -> str:
    """The name of the kernel's onnxruntime operator: readable, and unique per kernel and schedules."""
    text = repr(
        (kernel, [(first, sorted(schedule.items())) for first, schedule in sorted(schedules.items())])
    )
    sizes = "".join(f"_{name}{size}" for name, size in kernel.dims if name in ("k", "n", "experts", "heads"))
    return f"{kernel.kind}{sizes}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def kind_of(kernel: Kernel) -> str:
    """The kernel's Kind in C++: its kind, and what else changes the types of operands or results."""
    return kernel.kind + ("_wide" if dict(kernel.dims).get("wide") else "")


def images(emitted: Sequence[Emitted]) -> Mapping[str, bytes]:
    """The cubins as files, and an assembly file that makes them part of the library."""
    files, lines = {}, ['.section .rodata, "a"']
    for index, one in enumerate(emitted):
        for number, image in enumerate(from_bytes(one.object_code).images):
            name = f"moec_cubin_{index}_{number}"
            files[f"{name}.cubin"] = image
            lines += [f".globl {name}", f".hidden {name}", ".balign 64", f'{name}: .incbin "{name}.cubin"']
    lines.append('.section .note.GNU-stack, "", @progbits')
    return {**files, "images.S": "\n".join([*lines, ""]).encode()}


def table(emitted: Sequence[Emitted], sm: Sm) -> str:
    """The source of table.cc."""
    bundles = [from_bytes(one.object_code) for one in emitted]
    kinds = sorted({kind_of(one.kernel) for one in emitted})
    rows = (row(index, one) for index, one in enumerate(emitted))
    return "\n".join(
        (
            PREAMBLE,
            "extern const char* const sm_name;",
            "extern const int sm_major, sm_minor;",
            f'const char* const sm_name = "{sm.name}";',
            f"const int sm_major = {sm.major}, sm_minor = {sm.minor};",
            *(f"namespace kind {{ extern const Kind {kind}; }}" for kind in kinds),
            *(line for index, one in enumerate(emitted) for line in data(index, one, bundles[index])),
            f"const Row rows[] = {{{', '.join((*rows, '{}'))}}};",
            f"const size_t row_count = {len(emitted)};",
            "}  // namespace moec",
            "",
        )
    )


def data(index: int, one: Emitted, bundle: Bundle) -> Iterable[str]:
    """All that a row points to. An array of C++ is never empty, so some have a last element nobody reads."""
    yield f"static const int64_t dims{index}[] = {listed(size for _, size in one.kernel.dims)};"
    yield f"static const double reals{index}[] = {listed(repr(real) for _, real in one.kernel.reals)};"
    for number in range(len(bundle.images)):
        yield f'extern "C" const unsigned char moec_cubin_{index}_{number}[];'
    reals = [name for name, _ in one.kernel.reals]
    firsts, served = list(one.schedules), []
    for first, after in zip(firsts, [*firsts[1:], None]):
        yield from program(f"{index}_{first}", index, bundle.launches[first], reals)
        most = "INT64_MAX" if after is None else after - 1
        served.append(f"{{{most}, no_knobs, functions{index}_{first}}}")
    yield f"static const Variant variants{index}[] = {{{', '.join(served)}}};"


def program(name: str, index: int, launches: Sequence[Launch], reals: Sequence[str]) -> Iterator[str]:
    """The launches that serve calls in one bucket."""
    for number, launch in enumerate(launches):
        yield (
            f'static Function function{name}_{number}{{moec_cubin_{index}_{launch.image}, "{launch.entry}"}};'
        )
        yield from step(f"{name}_{number}", launch, reals)
    scratch = sorted({port for launch in launches for port in launch.scratch})
    cases = []
    for port in scratch:
        sizes = {needed(launch, port) for launch in launches if port in launch.scratch}
        cases.append(f"if (i == {port[1:]}) return {largest(sorted(sizes))};")
    head = f"int64_t scratch{name}([[maybe_unused]] const Run& run, [[maybe_unused]] int i)"
    yield from function(head, [*cases, "return 0;"])
    count = 1 + max((int(port[1:]) for port in scratch), default=-1)
    steps = ", ".join((*(f"step{name}_{number}" for number in range(len(launches))), "nullptr"))
    yield f"static Step* const steps{name}[] = {{{steps}}};"
    yield f"static const Program program{name}{{steps{name}, {len(launches)}, scratch{name}, {count}}};"
    yield f"static void* const functions{name}[] = {{(void*)&program{name}}};"


def needed(launch: Launch, port: str) -> str:
    """Bytes of scratch, 0 where the launch is left out."""
    return f"(({launch.when}) ? {launch.scratch[port]} : 0)" if launch.when else launch.scratch[port]


def largest(sizes: Sequence[str]) -> str:
    """The largest of some expressions."""
    first, *others = sizes
    return f"larger({first}, {largest(others)})" if others else first


def step(name: str, launch: Launch, reals: Sequence[str]) -> Iterator[str]:
    """One launch as a function."""
    lines = [f"if (!({launch.when})) return;"] if launch.when else []
    lines += [declared(number, argument, reals) for number, argument in enumerate(launch.arguments)]
    arguments = ", ".join((*(f"(void*)&a{number}" for number in range(len(launch.arguments))), "nullptr"))
    lines.append(f"void* arguments[] = {{{arguments}}};")
    grid, block = (", ".join(axes) for axes in (launch.grid, launch.block))
    overlap = "true" if launch.overlap else "false"
    how = f"{{{grid}}}, {{{block}}}, {launch.shared}, {overlap}"
    lines.append(f"run.launch(function{name}, {how}, arguments);")
    yield from function(f"void step{name}(Run& run)", lines)


def function(head: str, lines: Sequence[str]) -> Iterator[str]:
    """A function of some lines, with the sizes that they read by their names."""
    words = {word for line in lines for word in re.findall(r"\w+", line)}
    sizes = [name for name in SIZES if name in words]
    yield f"static {head} {{"
    yield from (f"  const int64_t {name} = run.size(k{name.title()});" for name in sizes)
    yield from (f"  {line}" for line in lines)
    yield "}"


def declared(number: int, argument: Argument, reals: Sequence[str]) -> str:
    """One argument as a variable."""
    memory = f"run.{argument.port[:1]}({argument.port[1:]})"
    if argument.map:
        return f"const TensorMap a{number} = run.map({memory}, {mapped(argument.map)});"
    if argument.port:
        return f"void* a{number} = {memory};"
    value = argument.value
    if argument.type == "float" and value in reals:
        return f"float a{number} = float(run.real({reals.index(value)}));"
    return f"{argument.type} a{number} = {argument.type}({value});"


def mapped(map_: TensorMap) -> str:
    """A tensor map's description as C++ has it."""
    lists = (map_.shape, map_.strides, map_.box, map_.element_strides)
    shape, strides, box, elements = (f"{{{', '.join(each)}}}" for each in lists)
    codes = f"{map_.interleave}, {map_.swizzle}, {map_.promotion}, {map_.fill}"
    return f"{{{map_.type}, {len(map_.shape)}, {shape}, {strides}, {box}, {elements}, {codes}}}"


def row(index: int, one: Emitted) -> str:
    """One element of the table."""
    name, kind, sizes = op_name(one.kernel, one.schedules), kind_of(one.kernel), dict(one.kernel.dims)
    rows = sizes.get(ROWS_OF_A_TOKEN.get(one.kernel.kind, ""), 1)
    return f'{{"{name}", &kind::{kind}, dims{index}, reals{index}, {rows}, variants{index}}}'


def listed(items: Iterable[object]) -> str:
    """A C++ initialiser list with a last element nobody reads."""
    return f"{{{', '.join((*map(str, items), '0'))}}}"
