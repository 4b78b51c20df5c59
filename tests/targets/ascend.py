"""Ascend kernels tried in a process of their own: reading past an array ends it, which is a finding.

    python -m tests.targets.ascend rms_norm n=2048 width=2048 start=0 eps=1e-6

tries a kernel with its default schedules, on bf16 or, with f16 as the last word, on that; what is no size of
it is a real of it, or a knob to change. Of a knob that is called as a size is, it is knob.rows=2.
"""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any

from moec.targets.ascend import soc, space, trial
from moec.targets.base import Kernel, Schedules
from moec.targets.bf16 import DIMS, FORMATS
from moec.targets.regions import REALS

SOC = soc.SOCS[0]
KNOB = "knob."
# Attention alone, which no model asks for.
SIZES = {**DIMS, "mla_decode": ("heads", "latent", "rope")}
NUMBERS = {**REALS, "mla_decode": ("scale",)}


def tried(kernel: Kernel, schedules: Schedules, only: Any, said: Any) -> None:
    """In the process: sends each call's name before it is made, then what came of it."""
    for name, why, error in trial.checks(kernel, schedules, SOC, lambda name: said.send((name,)), only):
        said.send((name, why, error))
    said.send(None)


def found(
    kernel: Kernel, schedules: Schedules | None = None, only: Any = lambda options: True
) -> list[tuple[str, str | None, float]]:
    """What came of each call: its name, what is wrong or None, its largest error."""
    schedules = schedules or space.space(kernel, SOC).defaults
    context = multiprocessing.get_context("fork")
    hears, said = context.Pipe(False)
    process = context.Process(target=tried, args=(kernel, schedules, only, said))
    process.start()
    said.close()
    results, at = [], "the start"
    try:
        while (word := hears.recv()) is not None:
            at = word[0]
            results += [word] if len(word) == 3 else []
    except EOFError:
        process.join()
        results.append((at, f"the process ended with status {process.exitcode}", float("inf")))
    process.join()
    return results


def wrong(kernel: Kernel, schedules: Schedules | None = None, only: Any = lambda options: True) -> list[str]:
    """A sentence for each call that is not the reference's."""
    return [f"with {name}: {why}" for name, why, _ in found(kernel, schedules, only) if why]


def kernel_of(kind: str, numbers: dict[str, float], half: str = "bf16") -> Kernel:
    """The kernel with these sizes and reals, in the order that its kind has them."""
    dims = tuple((name, int(numbers[name])) for name in SIZES[kind])
    reals = tuple((name, float(numbers[name])) for name in NUMBERS.get(kind, ()))
    weights = half if kind in FORMATS or half == "f16" else "f32"
    cached = kind in ("latent_write", "latent_attention", "mla_decode", "append", "attention")
    return Kernel(kind, dims, reals, weights + (f"+{half}" if cached else ""))


def read(line: str) -> tuple[Kernel, dict[str, float]]:
    """The kernel of "linear k=32 n=80 wide=0", on f16 where that is the last word, and all its numbers."""
    kind, *words = line.split()
    numbers = {name: float(value) for name, _, value in (word.partition("=") for word in words) if value}
    return kernel_of(kind, numbers, "f16" if words[-1] == "f16" else "bf16"), numbers


def knobs_of(kernel: Kernel, numbers: dict[str, float]) -> dict[str, int]:
    """Of all numbers those that are of its schedule."""
    sizes = dict(kernel.dims + kernel.reals)
    return {name.removeprefix(KNOB): int(number) for name, number in numbers.items() if name not in sizes}


def main() -> int:
    """Prints what came of each call."""
    kernel, numbers = read(" ".join(sys.argv[1:]))
    knobs = knobs_of(kernel, numbers)
    defaults = space.space(kernel, SOC).defaults
    results = found(kernel, {first: {**schedule, **knobs} for first, schedule in defaults.items()})
    for name, why, error in results:
        print(f"{'FAIL' if why else 'ok  '} {error:.1e} {name}" + (f"\n     {why}" if why else ""))
    return int(any(why for _, why, _ in results))


if __name__ == "__main__":
    sys.exit(main())
