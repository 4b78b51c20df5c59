"""From a kernel and its schedules to cubins with their launches: TileLang writes CUDA C++, nvcc compiles it.

TileLang brings a TVM of its own, and a process can have only one: this runs in a process that has no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import tilelang
from tilelang import tvm

from ..base import Emitted, Kernel, Schedule, Schedules
from .bundle import Argument, Bundle, Launch, TensorMap
from .kernels import fp8, gate, heads, latent, matmul, rows
from .nvcc import compiled
from .program import SIZES, Builder, Step
from .sm import Sm

PORT = re.compile(r"[xys]\d+$")
TENSOR_MAP, CALL = "__tvm_tensormap_create_tiled", "tirx.tvm_call_packed"
BUILDERS: Mapping[str, Builder] = {
    **matmul.BUILDERS,
    **fp8.BUILDERS,
    **latent.BUILDERS,
    **rows.BUILDERS,
    **gate.BUILDERS,
    **heads.BUILDERS,
}
OPERATORS = {
    "Add": "({} + {})",
    "Sub": "({} - {})",
    "Mul": "({} * {})",
    "FloorDiv": "({} / {})",  # sizes are not negative
    "FloorMod": "({} % {})",
    "Div": "({} / {})",
    "Mod": "({} % {})",
    "Min": "smaller({}, {})",
    "Max": "larger({}, {})",
    "LT": "({} < {})",
    "LE": "({} <= {})",
    "GT": "({} > {})",
    "GE": "({} >= {})",
    "EQ": "({} == {})",
    "NE": "({} != {})",
    "And": "({} && {})",
    "Or": "({} || {})",
}


@dataclass(frozen=True, slots=True)
class Lowered:
    """A step as CUDA C++, and its launches but for the image."""

    source: str
    launches: tuple[Launch, ...]


def emit(kernel: Kernel, schedules: Schedules, sm: Sm) -> Emitted:
    """A bundle for one kernel, equal functions once. Raises ValueError for an unknown kind."""
    lowered = {first: lower_all(kernel, schedule, sm) for first, schedule in schedules.items()}
    sources = list(dict.fromkeys(step.source for steps in lowered.values() for step in steps))
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda source: compiled(source, sm), sources))
    launches = {
        first: [placed(launch, sources.index(step.source)) for step in steps for launch in step.launches]
        for first, steps in lowered.items()
    }
    bundle = Bundle(launches, [code for code, _ in images], [needs for _, needs in images])
    entries = tuple(tuple(launch.entry for launch in steps) for steps in launches.values())
    return Emitted(kernel, schedules, bundle.to_bytes(), entries)


def sources(kernel: Kernel, schedule: Schedule, sm: Sm) -> list[str]:
    """The CUDA C++ of each step."""
    return [step.source for step in lower_all(kernel, schedule, sm)]


def lower_all(kernel: Kernel, schedule: Schedule, sm: Sm) -> list[Lowered]:
    """The steps of one schedule."""
    name = f"{kernel.kind} fp8" if kernel.weights == "fp8" else kernel.kind
    if name not in BUILDERS:
        raise ValueError(f"the cuda target has no {name!r} kernel; there are {', '.join(sorted(BUILDERS))}")
    return [lower(step, sm) for step in BUILDERS[name](kernel, schedule, sm)]


def lower(step: Step, sm: Sm) -> Lowered:
    """One step by TileLang, and what its host code would have launched."""
    target = tvm.target.Target({"kind": "cuda", "arch": sm.name})
    config = dict(step.function.attrs.get("tilelang_pass_configs", {})) if step.function.attrs else {}
    with target, tvm.transform.PassContext(opt_level=3, config=config):
        made = tilelang.lower(step.function, target=target)
    functions = {str(f.attrs["global_symbol"]): f for f in made.device_mod.functions.values()}
    (host,) = made.host_mod.functions.values()
    scratch = scratch_of(step.function)
    maps: dict[str, Argument] = {}
    launches = []
    for name, values in packed_calls(host.body):
        if name == TENSOR_MAP:
            maps[values[0].name] = tensor_map(values)
        elif name in functions:
            launches.append(launch_of(functions[name], values, maps, scratch, step))
    return Lowered(str(made.kernel_source), tuple(launches))


def packed_calls(body: Any) -> Iterator[tuple[str, Sequence[Any]]]:
    """Calls of the host code to named functions, in their order, and their arguments."""
    found: list[tuple[str, Sequence[Any]]] = []

    def visit(node: Any) -> None:
        if isinstance(node, tvm.tirx.Call) and node.op.name == CALL:
            found.append((node.args[0].value, list(node.args[1:])))

    tvm.tirx.stmt_functor.post_order_visit(body, visit)
    return iter(found)


def tensor_map(values: Sequence[Any]) -> Argument:
    """The descriptor that the host code makes. Of the strides it has, the first is an element's."""
    _, type_, rank, memory, *rest = values
    rank = int(rank)
    shape, strides, box, elements = (texts(rest[part * rank : (part + 1) * rank]) for part in range(4))
    codes = [int(each) for each in rest[4 * rank :]]
    return Argument(port(memory), TensorMap(int(type_), shape, strides[1:], box, elements, *codes))


def launch_of(
    function: Any, values: Sequence[Any], maps: Mapping[str, Argument], scratch: Mapping[str, str], step: Step
) -> Launch:
    """A call of a device function: its parameters first, then what its launch parameters say."""
    count = len(function.params)
    given = dict(zip(map(str, function.attrs["tirx.kernel_launch_params"]), values[count:]))
    axes = [[text(given.get(f"{kind}.{axis}", 1)) for axis in "xyz"] for kind in ("blockIdx", "threadIdx")]
    return Launch(
        image=-1,
        entry=str(function.attrs["global_symbol"]),
        grid=tuple(axes[0]),  # type: ignore[arg-type]
        block=tuple(axes[1]),  # type: ignore[arg-type]
        shared=text(given.get("tirx.use_dyn_shared_memory", 0)),
        arguments=tuple(argument(value, maps) for value in values[:count]),
        scratch=scratch,
        when=step.when,
        overlap=step.overlap,
    )


def argument(value: Any, maps: Mapping[str, Argument]) -> Argument:
    """What stands for one parameter of a device function."""
    name = getattr(value, "name", "")
    if name in maps:
        return maps[name]
    kind = str(value.dtype)
    if kind == "handle":
        return Argument(port(value))
    return Argument(type="float" if kind == "float32" else f"{kind}_t", value=text(value))


def port(value: Any) -> str:
    """The name of the memory that a parameter points to."""
    if not PORT.match(value.name):
        raise ValueError(f"a function reads {value.name!r}; expected x0.. (operands), y0.. (results) or s0..")
    return str(value.name)


def scratch_of(function: Any) -> dict[str, str]:
    """Bytes of each scratch buffer, by its declared shape."""
    found = {}
    for parameter in function.params:
        buffer = function.buffer_map.get(parameter)
        if buffer is not None and buffer.name.startswith("s"):
            bytes_ = (int(tvm.DataType(str(buffer.dtype)).bits) + 7) // 8
            found[str(buffer.name)] = " * ".join([*texts(buffer.shape), str(bytes_)])
    return found


def texts(values: Sequence[Any]) -> tuple[str, ...]:
    """Each of them in C++."""
    return tuple(map(text, values))


def text(value: Any) -> str:
    """An expression of sizes in C++. Raises ValueError for what sizes are not made of."""
    if isinstance(value, int | str):
        return str(value)
    if isinstance(value, tvm.tirx.IntImm):
        return str(int(value))
    if isinstance(value, tvm.tirx.Var):
        return known(value.name, str(value.dtype))
    if isinstance(value, tvm.tirx.Cast):
        return text(value.value)
    name = type(value).__name__
    if name in OPERATORS:
        return OPERATORS[name].format(text(value.a), text(value.b))
    if name == "Select":
        return f"({text(value.condition)} ? {text(value.true_value)} : {text(value.false_value)})"
    raise ValueError(f"a launch depends on {value}, which is no expression of {', '.join(SIZES)}")


def known(name: str, dtype: str) -> str:
    """A variable's name if it is a size, or a real of the kernel."""
    if dtype == "float32" or name in SIZES:
        return str(name)
    raise ValueError(f"a launch depends on {name!r}; known at run time are {', '.join(SIZES)}")


def placed(launch: Launch, image: int) -> Launch:
    """The launch with its function in that image."""
    return replace(launch, image=image)
