"""What Huawei's compiler makes of every default schedule of real models' kernels, for every SoC.

    python -m tests.targets.ascend_socs               # minutes; of one SoC, in f16:  910B1 f16

prints for each SoC how many functions it took and how full they make the memories, or its words where it
refused one or made another schedule of it. Code for SoCs of equally many cores is alike, of which
test_ascend_vendor.py has examples: of those it compiles for the first.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from moec.targets.ascend import lowering, soc, space, vendor
from moec.targets.ascend.program import Step
from moec.targets.base import Kernel

from .ascend_models import MODELS, kernels

CAPACITY = {"UB": soc.UB, "L1": soc.L1, "L0C": soc.L0C}
EXACT = ("angles", "top_k_gate", "permute")  # kinds without numbers of half the bytes
Default = tuple[Kernel, soc.Soc, Step]


def in_f16(every: Sequence[Kernel]) -> list[Kernel]:
    """The same kernels on f16, but for those that are not on bf16."""
    kept = [one for one in every if one.kind not in EXACT and not one.weights.startswith("int8")]
    return [replace(one, dtype="f16" + "+f16" * (one.cache != "f32")) for one in kept]


def defaults(every: Sequence[Kernel], chips: Sequence[soc.Soc]) -> Iterator[Default]:
    """The different functions of the kernels' default schedules, each for the first chip that has it."""
    seen = []
    for one in every:
        for chip in chips:
            for schedule in space.space(one, chip).defaults.values():
                for step in space.steps(one, schedule, chip):
                    types = [given.type for given in step.arguments.values()]
                    if (shape := (step.function, step.constants, step.compiler, types)) not in seen:
                        seen.append(shape)
                        yield one, chip, step


def wrong(default: Default, most: dict[str, tuple[int, str]]) -> str | None:
    """Why the compiler does not take a function as it is, within the chip's memories; most: how full they
    are at most so far, and by which kernel.
    """
    one, chip, step = default
    what = f"{one} on {chip.name}, {step.function} with {dict(step.constants)}"
    try:
        plan = vendor.planned(lowering.lowering()(step, chip), chip, step.compiler)
    except vendor.Rejected as why:
        return f"{what}: {why}"
    for memory, used in plan.used.items():
        most[memory] = max(most.get(memory, (0, "")), (used, str(one)))
        if not 0 < used <= CAPACITY[memory]:
            return f"{what}: {used} bytes of {memory}"
    if plan.notes:
        return f"{what} became another schedule: {plan.notes}"
    return None if plan.used and plan.task in ("aiv", "aic", "mix") else f"{what}: {plan.task}, {plan.used}"


def alike(chip: soc.Soc) -> soc.Soc:
    """The first SoC with as many cores."""
    return next(each for each in soc.SOCS if each.cubes == chip.cubes)


def main() -> int:
    """Prints it."""
    words = sys.argv[1:]
    chips = [soc.named(word) for word in words if word != "f16"] or soc.SOCS
    every = [one for name in MODELS if name != "tiny" for one in kernels(MODELS[name])]
    failed = False
    for chip in chips:
        most: dict[str, tuple[int, str]] = {}
        found = list(defaults(in_f16(every) if "f16" in words else every, [chip]))
        refused = list(filter(None, (wrong((one, alike(chip), step), most) for one, _, step in found)))
        told = ", ".join(f"{name} {most[name][0]} of {CAPACITY[name]} bytes" for name in CAPACITY)
        print(f"{chip.name}: {len(found) - len(refused)} of {len(found)} functions taken; {told}", flush=True)
        print("".join(f"  {why}\n" for why in refused), end="", flush=True)
        failed |= bool(refused)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
