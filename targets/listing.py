"""C++ that tells a runtime which kernels a library holds: what is alike for targets on a device."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from .base import Emitted, Kernel, Schedules
from .regions import BITS

# Known at run time; enum Size in the runtimes' launch.h has them as kM, kBatch, ..
SIZES = ("m", "batch", "tokens", "seen", "room", "pages")
ROWS_OF_A_TOKEN = {"grouped_combine": "share"}  # of operand 0, as a dim of the kernel; else one
PREAMBLE = """#include "launch.h"
namespace moec {
[[maybe_unused]] static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
[[maybe_unused]] static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
[[maybe_unused]] static const int64_t no_knobs[] = {0};"""


class Launched(Protocol):
    """A launch as far as the table's frame goes: bytes of scratch by port, and when it is made, in C++."""

    @property
    def scratch(self) -> Mapping[str, str]: ...
    @property
    def when(self) -> str: ...


# From a launch's name and a launch to the C++ of its step{name}(Run&).
Stepped = Callable[[str, Any], Iterable[str]]


def op_name(kernel: Kernel, schedules: Schedules) -> str:
    """The name of the kernel's onnxruntime operator: readable, and unique per kernel and schedules."""
    text = repr(
        (kernel, [(first, sorted(schedule.items())) for first, schedule in sorted(schedules.items())])
    )
    sizes = "".join(f"_{name}{size}" for name, size in kernel.dims if name in ("k", "n", "experts", "heads"))
    return f"{kernel.kind}{sizes}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def kind_of(kernel: Kernel) -> str:
    """The kernel's Kind in C++: its kind, and what else changes the types of operands or results."""
    coded = f"_{kernel.weights}" if kernel.weights in BITS else ""
    over = "_over_fp8" if kernel.cache == "fp8" else ""
    return kernel.kind + coded + over + ("_wide" if dict(kernel.dims).get("wide") else "")


def source(own: Iterable[str], emitted: Sequence[Emitted], described: Iterable[str]) -> str:
    """The source of table.cc. own: what a target declares first; described: all that rows point to."""
    kinds = sorted({kind_of(one.kernel) for one in emitted})
    rows = (row(index, one) for index, one in enumerate(emitted))
    return "\n".join(
        (
            PREAMBLE,
            *own,
            *(f"namespace kind {{ extern const Kind {kind}; }}" for kind in kinds),
            *described,
            f"const Row rows[] = {{{', '.join((*rows, '{}'))}}};",
            f"const size_t row_count = {len(emitted)};",
            "}  // namespace moec",
            "",
        )
    )


def data(
    index: int,
    one: Emitted,
    own: Iterable[str],
    launches: Mapping[int, Sequence[Launched]],
    step: Stepped,
) -> Iterator[str]:
    """All that a row points to. An array of C++ is never empty, so some have a last element nobody reads.

    own: what a target declares for its functions; launches: by where their bucket begins.
    """
    yield f"static const int64_t dims{index}[] = {listed(size for _, size in one.kernel.dims)};"
    yield f"static const double reals{index}[] = {listed(repr(real) for _, real in one.kernel.reals)};"
    yield from own
    firsts, served = list(one.schedules), []
    for first, after in zip(firsts, [*firsts[1:], None]):
        yield from program(f"{index}_{first}", launches[first], step)
        most = "INT64_MAX" if after is None else after - 1
        served.append(f"{{{most}, no_knobs, functions{index}_{first}}}")
    yield f"static const Variant variants{index}[] = {{{', '.join(served)}}};"


def program(name: str, launches: Sequence[Launched], step: Stepped) -> Iterator[str]:
    """The launches that serve calls in one bucket."""
    for number, launch in enumerate(launches):
        yield from step(f"{name}_{number}", launch)
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


def needed(launch: Launched, port: str) -> str:
    """Bytes of scratch, 0 where the launch is left out."""
    return f"(({launch.when}) ? {launch.scratch[port]} : 0)" if launch.when else launch.scratch[port]


def largest(sizes: Sequence[str]) -> str:
    """The largest of some expressions."""
    first, *others = sizes
    return f"larger({first}, {largest(others)})" if others else first


def function(head: str, lines: Sequence[str]) -> Iterator[str]:
    """A function of some lines, with the sizes that they read by their names."""
    words = {word for line in lines for word in re.findall(r"\w+", line)}
    sizes = [name for name in SIZES if name in words]
    yield f"static {head} {{"
    yield from (f"  const int64_t {name} = run.size(k{name.title()});" for name in sizes)
    yield from (f"  {line}" for line in lines)
    yield "}"


def memory(port: str) -> str:
    """What a port points to in a call."""
    return f"run.{port[:1]}({port[1:]})"


def row(index: int, one: Emitted) -> str:
    """One element of the table."""
    name, kind, sizes = op_name(one.kernel, one.schedules), kind_of(one.kernel), dict(one.kernel.dims)
    rows = sizes.get(ROWS_OF_A_TOKEN.get(one.kernel.kind, ""), 1)
    half = ", F16" if one.kernel.half == "f16" else ""
    return f'{{"{name}", &kind::{kind}, dims{index}, reals{index}, {rows}, variants{index}{half}}}'


def listed(items: Iterable[object]) -> str:
    """A C++ initialiser list with a last element nobody reads."""
    return f"{{{', '.join((*map(str, items), '0'))}}}"
