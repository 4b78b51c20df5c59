"""Records spaces of the CPU target on this machine, for strategies to be compared without it (tuning/sweep).

    python -m tests.benchmarks.sweep build NAME FOLDER    # two at a time, into the folder; again goes on
    python -m tests.benchmarks.sweep time NAME FOLDER     # what was built, alone on the machine

A space too large to be timed whole is cut: some knobs keep fewer values, and the sweep holds every schedule
of what is left. Schedules are timed a batch at a time, in rounds, each once a round. Which batch is chance,
so that no knob stands for one. The default runs in every batch, three times a round, and what it takes brings
all batches to one speed.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import moec.targets.cpu
from moec.targets.base import BUCKETS, CannotBuild, Kernel, Schedule, Space
from moec.targets.cpu.device import Bench, Device
from moec.targets.cpu.isa import host
from moec.targets.cpu.space import space
from moec.tuning.fingerprint import here
from moec.tuning.sweep import Outcome, Sweep, Values

from .transfer import SHAPES

SWEEPS = Path(__file__).parent.parent / "tuning" / "sweeps"
BATCH, ROUNDS, THREADS = 120, 9, 2
SQUARE = (("k", 512), ("n", 512))
GROUPED = (("k", 256), ("n", 256), ("experts", 16), ("share", 4))
HEADS = (("heads", 8), ("groups", 2), ("dk", 64), ("dv", 64))
LATENT = (("heads", 8), ("nope", 32), ("rope", 16), ("latent", 128), ("value", 32), ("pairs_in", 0))
COLUMNS = (("pairs_out", 1), ("width", 8 * (32 + 16)), ("start", 0))
SCALE = (("scale", 0.125),)
# name -> a kernel, and the knobs that keep fewer values than its space has.
SPACES: Mapping[str, tuple[Kernel, Mapping[str, Sequence[int]]]] = {
    "linear": (Kernel("linear", SQUARE), {"group": [256]}),
    "linear_int8": (
        Kernel("linear", SQUARE, (), "int8"),
        {"ahead": [0, 4, 16], "group": [256], "grain": [1024, 4096]},
    ),
    "grouped": (Kernel("grouped_swiglu", GROUPED), {"group": [64, 256], "grain": [1024]}),
    "grouped_int4": (
        Kernel("grouped_swiglu", GROUPED, (), "int4"),
        {"ahead": [0, 8], "group": [256], "grain": [4096, 65536]},
    ),
    "attention": (
        Kernel("attention", HEADS, SCALE),
        {
            **{"unroll": [1, 4], "lone": [16], "block": [32, 48], "span": [256, 512]},
        },
    ),
    "latent_attention": (
        Kernel("latent_attention", (*LATENT, *COLUMNS), SCALE),
        {
            **{"unroll": [4], "lone": [16], "block": [32, 48], "span": [512], "nr": [32]},
            **{"absorb": [75, 100, 130]},
        },
    ),
    **SHAPES,
}
Times = dict[str, list[float]]


def cut(name: str) -> tuple[Kernel, Space]:
    """A kernel, and the part of its space that is recorded."""
    kernel, fewer = SPACES[name]
    whole = space(kernel, host())
    part = replace(whole, choices={**whole.choices, **fewer})
    known = [schedule for schedule in whole.known if part.objection(schedule) is None]
    return kernel, replace(part, known=known)


def products(part: Space) -> list[Values]:
    """Every combination of a space's values, the last knob changing first."""
    return list(itertools.product(*part.choices.values()))


def build(name: str, folder: Path) -> None:
    """Builds what is not built yet."""
    _, part = cut(name)
    missing = [
        (name, number, str(folder))
        for number, values in enumerate(products(part))
        if part.objection(dict(zip(part.choices, values))) is None
        and not (folder / name / str(number) / "took").exists()
    ]
    with ProcessPoolExecutor(2) as pool:
        for _ in pool.map(build_one, missing, chunksize=4):
            pass


def build_one(job: tuple[str, int, str]) -> None:
    """Builds one and notes the milliseconds it took, or why it cannot be built."""
    name, number, folder = job
    kernel, part = cut(name)
    into = Path(folder, name, str(number))
    into.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    try:
        device().build(kernel, {BUCKETS[0]: dict(zip(part.choices, products(part)[number]))}, into)
        took: object = time.perf_counter() - started
    except CannotBuild as cannot:
        took = str(cannot)[:300]
    (into / "took").write_text(json.dumps(took))


def device() -> Device:
    """This machine."""
    return Device(host().name, THREADS)


def record(name: str, folder: Path) -> Sweep:
    """Checks and times every schedule of a space of SPACES that was built."""
    kernel, part = cut(name)
    each = list(enumerate(products(part)))
    random.Random(0).shuffle(each)
    outcomes: dict[Values, Outcome] = {}
    default = device().bench(kernel, {BUCKETS[0]: part.default})
    pace: dict[str, float] = {}
    for start in range(0, len(each), BATCH):
        benches: dict[Values, Bench] = {}
        for number, values in each[start : start + BATCH]:
            loaded = load(kernel, part, dict(zip(part.choices, values)), folder / name / str(number))
            outcomes[values] = loaded[1]
            if loaded[0] is not None:
                benches[values] = loaded[0]
        for values, samples in timed(benches, default, pace).items():
            outcomes[values] = replace(outcomes[values], samples=samples)
    kept = ", ".join(f"{knob}={list(values)}" for knob, values in SPACES[name][1].items())
    now = datetime.now(UTC).date().isoformat()
    return Sweep(
        about=f"All of {kernel}'s space with {kept}; {ROUNDS} rounds in batches of {BATCH}, {now}",
        kernel=replace(kernel, reals=()),
        fingerprint=here(host().name, THREADS, Path(moec.targets.cpu.__file__).parent),
        choices=part.choices,
        default=part.default,
        known=part.known,
        layout=part.layout,
        larger=part.larger,
        points=list(pace),
        outcomes=outcomes,
    )


def load(kernel: Kernel, part: Space, schedule: Schedule, built: Path) -> tuple[Bench | None, Outcome]:
    """A bench to time, or why there is none."""
    if why := part.objection(schedule):
        return None, Outcome("refused", why)
    took = json.loads((built / "took").read_text())
    if isinstance(took, str):
        return None, Outcome("crashed", took)
    started = time.perf_counter()
    bench = device().bench(kernel, {BUCKETS[0]: schedule}, built)
    if wrong := bench.check():
        return None, Outcome("wrong", wrong)
    return bench, Outcome("ok", took=took + time.perf_counter() - started)


def timed(benches: Mapping[Values, Bench], default: Bench, pace: dict[str, float]) -> dict[Values, Times]:
    """Seconds at each point of a batch. pace: the default's in the first batch, which all are brought to."""
    order = list(benches.values())
    half = len(order) // 2
    times = rounds([default, *order[:half], default, *order[half:], default])
    usual = {point: median(taken) for point, taken in times[default].items()}
    slow = {point: usual[point] / pace.setdefault(point, usual[point]) for point in usual}
    return {
        values: {point: [seconds / slow[point] for seconds in taken] for point, taken in times[bench].items()}
        for values, bench in benches.items()
    }


def rounds(benches: Sequence[Bench]) -> dict[Bench, Times]:
    """Seconds of each at each point, ROUNDS times (as often as it is in benches); the order flips."""
    times: dict[Bench, Times] = {bench: {point: [] for point in bench.points} for bench in benches}
    for number in range(-1, ROUNDS):  # the first prepares them
        for point in benches[0].points:
            for bench in benches[:: -1 if number % 2 else 1]:
                seconds = bench.time(point)
                if number >= 0:
                    times[bench][point].append(seconds)
    return times


if __name__ == "__main__":
    step, name, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    if step == "build":
        build(name, folder)
    else:
        (SWEEPS / name).parent.mkdir(parents=True, exist_ok=True)
        record(name, folder).write(SWEEPS / f"{name}.json.gz")
