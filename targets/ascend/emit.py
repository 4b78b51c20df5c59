"""From a kernel and its schedules to code with its launches: Triton, Huawei's compiler, MLIR for this CPU.

All three are programs of the toolchain; nothing of them is loaded here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..base import CannotBuild, Emitted, Kernel, Schedules
from . import vendor
from .bundle import Argument, Bundle, Image, Launch
from .host import object_code
from .lowering import Linalg, lowering, unique
from .program import Argument as Given
from .program import Number, Step
from .soc import Soc
from .space import steps


def emit(kernel: Kernel, schedules: Schedules, soc: Soc) -> Emitted:
    """A bundle for one kernel, equal functions once.

    Raises ValueError for an unknown kind and where the vendor's compiler rejects a schedule, CannotBuild.
    """
    images: dict[str, Image] = {}
    launches: dict[int, list[Launch]] = {}
    for first, schedule in schedules.items():
        launches[first] = []
        for asked in steps(kernel, schedule, soc):
            step = settled(asked, soc)
            linalg = named(lowering()(step, soc), step.compiler)
            if linalg.name not in images:
                images[linalg.name] = image(step, linalg, soc)
            launches[first].append(launch(step, list(images).index(linalg.name)))
    bundle = Bundle(launches, list(images.values()))
    entries = ([bundle.images[each.image].entry for each in every] for every in launches.values())
    symbols = tuple(tuple(dict.fromkeys(each)) for each in entries)
    return Emitted(kernel, schedules, bundle.to_bytes(), symbols)


def settled(step: Step, soc: Soc) -> Step:
    """The step as the vendor's compiler does it: what that changes on its own is asked for, so that it is
    named and told as the schedule that it is. Raises as image does.
    """
    plan = vendor.planned(named(lowering()(step, soc), step.compiler), soc, step.compiler)
    return replace(step, compiler={**step.compiler, **plan.became}) if plan.became else step


def named(linalg: Linalg, options: Mapping[str, int]) -> Linalg:
    """The function by a name that is unique to its contents and to how the vendor's compiler is told."""
    if not options:
        return linalg
    name = unique(linalg.name.rpartition("_")[0], f"{linalg.text}{sorted(options.items())}")
    return replace(linalg, name=name, text=linalg.text.replace(f"@{linalg.name}(", f"@{name}("))


def image(step: Step, linalg: Linalg, soc: Soc) -> Image:
    """A function in all its forms. Raises Rejected or CannotBuild."""
    plan = vendor.planned(linalg, soc, step.compiler)
    if plan.locks and plan.lock_value:
        raise CannotBuild(f"{step.function} has locks that begin as {plan.lock_value}; expected 0")
    return Image(
        entry=linalg.name,
        function=step.function,
        constants=dict(step.constants),
        mixed=linalg.mixed,
        task=plan.task,
        used=plan.used,
        workspace=plan.workspace,
        locks=plan.locks,
        serial="Atomic" in linalg.text,
        options=tuple(vendor.arguments(soc, step.compiler)),
        notes=plan.notes,
        linalg=linalg.text.encode(),
        hivm=plan.hivm.encode(),
        host=object_code(linalg),
    )


def launch(step: Step, image: int) -> Launch:
    """What one step is launched with."""
    x, y, z = map(str, step.grid)
    given = tuple(argument(name, each) for name, each in step.arguments.items())
    scratch = {port: str(size) for port, size in step.scratch.items()}
    return Launch(image, (x, y, z), given, scratch, "" if step.when is None else str(step.when))


def argument(name: str, given: Given) -> Argument:
    """What stands for one parameter of a Triton function."""
    if isinstance(given, Number):
        return Argument(name, given.type, value=str(given.value))
    return Argument(name, given.type, port=given.port)
