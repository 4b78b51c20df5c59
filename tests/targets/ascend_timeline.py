"""How long an Ascend kernel takes, simulated: nothing of this was measured.

    python -m tests.targets.ascend_timeline linear k=7168 n=2048 wide=0 m=64
    python -m tests.targets.ascend_timeline latent_attention heads=128 nope=128 rope=64 latent=512 value=128 \
        pairs_in=0 pairs_out=1 width=24576 start=0 scale=0.1 batch=64 cached=4096

prints each step's time and what its pipes do in it. m, or batch and rows, and cached say what call it is.
soc=910B1: another SoC; zipf=1: an uneven routing; weights=int8row: another format; what else is no size of
the kernel is a knob to change, as knob.rows=2 where the call has one of that name.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from moec.targets.ascend import soc, space, timeline
from moec.targets.ascend.hivm.calls import Asked
from moec.targets.base import Kernel, Schedule, serving
from moec.targets.routing import even, zipf

from .ascend import kernel_of, knobs_of

CALL = ("m", "rows", "batch", "cached", "zipf")
HEAD = (
    f"{'step':28} {'us':>8} {'+launch':>7} {'cube%':>6} {'useful%':>7} {'bandw%':>6}  busy% of pipes; peak KB"
)


def report(kernel: Kernel, schedule: Schedule, on: soc.Soc, asked: Asked) -> str:
    """A line for each step, one for those of a file, and one for all."""
    found = timeline.seconds(kernel, schedule, on, asked)
    lines = [f"simulated, not measured: {kernel} on {on.name} {dict(schedule)}", HEAD]
    lines += [line(step) for step in found.steps]
    files = dict.fromkeys(step.name.partition(":")[0] for step in found.steps)
    for file in files if len(files) > 1 else ():
        some = [step for step in found.steps if step.name.startswith(f"{file}:")]
        lines.append(together(f"{file}, simulated", timeline.Simulated(some)))
    return "\n".join([*lines, together("all, simulated", found)])


def together(name: str, found: timeline.Simulated) -> str:
    """Of several steps, with their launches; shares are of the time between these."""
    return f"{name:28} {found.us:8.1f} {'':7} {found.cube * 100:6.1f} {'':7} {found.bandwidth * 100:6.1f}"


def line(step: timeline.Timed) -> str:
    """What it did."""
    busy = " ".join(f"{pipe}={share * 100:.0f}" for pipe, share in step.busy.items() if share > 0.005)
    peak = " ".join(f"{name}={nbytes / 1024:.0f}" for name, nbytes in step.peak.items() if nbytes)
    shares = f"{step.cube * 100:6.1f} {step.useful * 100:7.1f} {step.bandwidth * 100:6.1f}"
    return f"{step.name:28} {step.us:8.1f} {step.launch_us:7.1f} {shares}  {busy}; {peak}"


def main() -> int:
    """Prints it."""
    kind, *words = sys.argv[1:]
    given = dict(word.split("=", 1) for word in words)
    on = soc.named(given.pop("soc", soc.SOCS[0].name))
    weights = given.pop("weights", "")
    numbers = {name: float(value) for name, value in given.items()}
    call = {name: int(numbers.pop(name)) for name in CALL if name in numbers}
    kernel = kernel_of(kind, numbers)
    kernel = replace(kernel, dtype=kernel.dtype.replace(kernel.weights, weights or kernel.weights))
    draw = zipf if call.get("zipf") else even
    asked = Asked(call.get("rows", call.get("m", 1)), call.get("batch", 1), call.get("cached", 0), draw)
    defaults = space.space(kernel, on).defaults
    knobs = knobs_of(kernel, numbers)
    started = time.perf_counter()
    print(report(kernel, {**defaults[serving(defaults, asked.tokens)], **knobs}, on, asked))
    print(f"({time.perf_counter() - started:.1f} s to simulate)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
