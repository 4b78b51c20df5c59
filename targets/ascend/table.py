"""The kernel table: C++ source with every launch spelled out, and blocks of functions for the host's CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from ..base import Emitted
from ..listing import data, function, memory, source
from .bundle import Argument, Bundle, Image, Launch, from_bytes
from .soc import Soc

# Numbers' types in Triton's words -> in C++, and where runtime/launch.h has them.
NUMBERS = {"i32": ("int32_t", "integer"), "fp32": ("float", "real")}
# A library for another CPU has no code for it: its kernels run on a device only.
SIMULATED = "#ifdef __x86_64__"
# Memory of one axis as MLIR's functions take it: allocated, aligned, offset, size, stride.
MEMREF = "void*, void*, int64_t, int64_t, int64_t"


def functions(bundles: Sequence[Bundle]) -> Mapping[str, tuple[Image, Sequence[Argument]]]:
    """All functions with their arguments, by their names: equal ones of several kernels once."""
    return {
        bundle.images[launch.image].entry: (bundle.images[launch.image], launch.arguments)
        for bundle in bundles
        for launches in bundle.launches.values()
        for launch in launches
    }


def table(emitted: Sequence[Emitted], soc: Soc) -> str:
    """The source of table.cc."""
    bundles = [from_bytes(one.object_code) for one in emitted]
    own = [f'const char* const soc_name = "{soc.name}";']
    for image, arguments in functions(bundles).values():
        own += declared(image, arguments)
    pairs = enumerate(zip(emitted, bundles))
    return source(own, emitted, (line for index, pair in pairs for line in described(index, *pair)))


def declared(image: Image, arguments: Sequence[Argument]) -> Iterator[str]:
    """A function of the device, and a block of it for the host's CPU."""
    name, types = image.entry, [MEMREF if each.port else NUMBERS[each.type][0] for each in arguments]
    given = ["nullptr, nullptr, 0, 0, 1"] * 2  # locks and a workspace, which no CPU needs
    given += [passed(f"a[{number}]", each) for number, each in enumerate(arguments)]
    given += [f"at[{axis}]" for axis in range(6)]
    yield SIMULATED
    yield f'extern "C" void {name}({", ".join([MEMREF, MEMREF, *types, *["int32_t"] * 6])});'
    yield f"static void block_{name}([[maybe_unused]] const Argument* a, const int32_t* at) {{"
    yield f"  {name}({', '.join(given)});"
    yield "}"
    yield "#else"
    yield f"static constexpr Block* block_{name} = nullptr;"
    yield "#endif"
    mixed, serial = ("true" if each else "false" for each in (image.mixed, image.serial))
    how = f"{mixed}, {image.workspace}, {image.locks}, {serial}, block_{name}"
    yield f'static Function function_{name}{{"{name}", {how}}};'


def passed(value: str, argument: Argument) -> str:
    """One argument as MLIR's function takes it. How long memory is nobody knows, and no code asks."""
    if argument.port:
        return f"{value}.memory, {value}.memory, 0, 0, 1"
    return f"{value}.{NUMBERS[argument.type][1]}"


def described(index: int, one: Emitted, bundle: Bundle) -> Iterator[str]:
    """All that a row points to."""
    reals = [name for name, _ in one.kernel.reals]
    return data(index, one, (), bundle.launches, partial(step, bundle, reals))


def step(bundle: Bundle, reals: Sequence[str], name: str, launch: Launch) -> Iterator[str]:
    """One launch as a function."""
    given = ", ".join(argument(each, reals) for each in launch.arguments)
    lines = [f"if (!({launch.when})) return;"] if launch.when else []
    lines += [
        f"const Argument arguments[] = {{{given}}};",
        f"run.launch(function_{bundle.images[launch.image].entry}, {{{', '.join(launch.grid)}}}, arguments);",
    ]
    yield from function(f"void step{name}(Run& run)", lines)


def argument(given: Argument, reals: Sequence[str]) -> str:
    """What is given for one parameter."""
    if given.port:
        return memory(given.port)
    if given.type == "fp32":
        return f"float(run.real({reals.index(given.value)}))"
    return f"int32_t({given.value})"
