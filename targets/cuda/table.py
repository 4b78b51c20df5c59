"""The kernel table: C++ source with every launch spelled out, and the cubins beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from ..base import Emitted
from ..listing import data, function, memory, source
from .bundle import Argument, Launch, TensorMap, from_bytes
from .sm import Sm


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
    own = (
        "extern const char* const sm_name;",
        "extern const int sm_major, sm_minor;",
        f'const char* const sm_name = "{sm.name}";',
        f"const int sm_major = {sm.major}, sm_minor = {sm.minor};",
    )
    return source(own, emitted, (line for index, one in enumerate(emitted) for line in described(index, one)))


def described(index: int, one: Emitted) -> Iterator[str]:
    """All that a row points to."""
    bundle = from_bytes(one.object_code)
    cubins = (
        f'extern "C" const unsigned char moec_cubin_{index}_{number}[];'
        for number in range(len(bundle.images))
    )
    reals = [name for name, _ in one.kernel.reals]
    return data(index, one, cubins, bundle.launches, partial(step, index, reals))


def step(index: int, reals: Sequence[str], name: str, launch: Launch) -> Iterator[str]:
    """One launch as a function."""
    yield f'static Function function{name}{{moec_cubin_{index}_{launch.image}, "{launch.entry}"}};'
    lines = [f"if (!({launch.when})) return;"] if launch.when else []
    lines += [declared(number, argument, reals) for number, argument in enumerate(launch.arguments)]
    arguments = ", ".join((*(f"(void*)&a{number}" for number in range(len(launch.arguments))), "nullptr"))
    lines.append(f"void* arguments[] = {{{arguments}}};")
    grid, block = (", ".join(axes) for axes in (launch.grid, launch.block))
    overlap = "true" if launch.overlap else "false"
    how = f"{{{grid}}}, {{{block}}}, {launch.shared}, {overlap}"
    lines.append(f"run.launch(function{name}, {how}, arguments);")
    yield from function(f"void step{name}(Run& run)", lines)


def declared(number: int, argument: Argument, reals: Sequence[str]) -> str:
    """One argument as a variable."""
    if argument.map:
        return f"const TensorMap a{number} = run.map({memory(argument.port)}, {mapped(argument.map)});"
    if argument.port:
        return f"void* a{number} = {memory(argument.port)};"
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
