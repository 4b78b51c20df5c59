"""Builds kernels for a GPU on a machine without one, into a folder that tests.device.check, .tune and the
benchmark of CUDA read on a machine with one:

    .venv/bin/python -m tests.device.prepare build/device [--of v2_lite qwen3 ..] [--kinds linear route ..]
        [--schedules 12] [--jobs 2] [--models [NAME ..]]

--of: models (see kernels.NAMES). --schedules: how many more than the default, of each kernel that has a
choice: those known from elsewhere, then neighbours of the defaults and random ones, as the rules of its space
let them pass. What was built before, by sources that are the same, comes from the compiler's cache.
--models: also tiny models as artifacts, with float64 PyTorch's logits beside them, all of models.MODELS or
those that are named.
"""

from __future__ import annotations

import argparse
import queue
import random
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moec.compiler import library
from moec.compiler.rooms import target_of
from moec.targets.base import BUCKETS, CannotBuild, Kernel, Schedule, Space
from moec.targets.cuda.device import affordable, file_name
from moec.targets.cuda.nvcc import find_nvcc

from . import index, kernels, nvcc
from .index import Entry, Index

KEPT = Path("build/cubins")  # what nvcc made, by its sources
DRAWS = 4000  # of random schedules: a space whose rules refuse so many holds hardly more
Job = tuple[Entry, Schedule]


def main() -> int:
    """Builds what is asked for, and says what could not be built."""
    options = parsed()
    machine, started = target_of("cuda", options.isa), time.monotonic()
    options.folder.mkdir(parents=True, exist_ok=True)
    nvcc.through(find_nvcc(), KEPT)
    entries = entries_of(options.of, options.kinds, machine, options.schedules)
    jobs = [(entry, schedule) for entry in entries for schedule in schedules_of(entry)]
    print(f"{len(entries)} kernels, {len(jobs)} schedules", flush=True)
    index.write(options.folder, Index(machine.sm.name, library.toolchain(machine), entries))
    build(machine, jobs, options.folder, options.jobs)
    index.write(options.folder, Index(machine.sm.name, library.toolchain(machine), entries))
    if options.models is not None:
        from . import models

        models.prepare(options.folder, machine, options.models)
    failed = [(each, name, why) for each in entries for name, why in each.failed.items()]
    for entry, name, why in failed:
        print(f"NOT BUILT {name} ({entry.kernel}): {why}")
    size = sum(file.stat().st_size for file in options.folder.rglob("*") if file.is_file())
    print(f"{len(jobs) - len(failed)} built, {len(failed)} failed, {size / 2**20:.1f} MiB, ", end="")
    print(f"{time.monotonic() - started:.0f} s")
    return len(failed) > 0


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--of", nargs="*", default=kernels.NAMES, choices=kernels.NAMES, metavar="MODEL")
    parser.add_argument("--kinds", nargs="*", default=[])
    parser.add_argument("--schedules", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--isa", default="sm_90a")
    parser.add_argument("--models", nargs="*", metavar="NAME")
    return parser.parse_args()


def entries_of(names: Iterable[str], kinds: Sequence[str], machine: Any, more: int) -> list[Entry]:
    """The kernels of some models, each once, with the schedules to build."""
    found: dict[Kernel, Entry] = {}
    for name in names:
        for kernel in kernels.named(name, machine):
            if not kinds or kernel.kind in kinds:
                kernel = affordable(kernel)
                space = machine.space(kernel)
                entry = found.setdefault(kernel, Entry(kernel, [], space.defaults))
                entry.of.append(name)
    for entry in found.values():
        space = machine.space(entry.kernel)
        others = (each for each in candidates(space) if each not in entry.default.values())
        entry.others = [schedule for schedule, _ in zip(others, range(more))]
    return list(found.values())


def candidates(space: Space) -> Iterator[Schedule]:
    """Schedules to try besides the default, each once: known ones, neighbours of defaults, random ones."""
    seen: list[Schedule] = []
    for schedule in drawn(space):
        if schedule not in seen and space.objection(schedule) is None:
            seen.append(schedule)
            yield schedule


def drawn(space: Space) -> Iterator[Schedule]:
    """The same, also those that rules refuse, and some more than once; the same at every run."""
    yield from space.known
    near = [
        {**default, knob: value}
        for default in space.defaults.values()
        for knob, values in space.choices.items()
        for value in values
        if default[knob] != value
    ]
    source = random.Random(0)
    source.shuffle(near)
    half = len(near) // 2
    yield from near[:half]
    for turn in range(DRAWS):
        yield {knob: source.choice(list(values)) for knob, values in space.choices.items()}
        if turn < len(near) - half:
            yield near[half + turn]


def schedules_of(entry: Entry) -> list[Schedule]:
    """All schedules that an entry needs a library for, each once."""
    found: list[Schedule] = []
    for schedule in (*entry.default.values(), *entry.others):
        if schedule not in found:
            found.append(schedule)
    return found


def build(machine: Any, jobs: Sequence[Job], folder: Path, workers: int) -> None:
    """A library for each job, some at a time; an entry is told what failed."""
    left: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        left.put(job)

    def work() -> None:
        generator = library.Generator(machine)
        while True:
            try:
                entry, schedule = left.get_nowait()
            except queue.Empty:
                break
            try:
                built(machine, generator, entry.kernel, schedule, folder)
            except CannotBuild as failed:
                entry.failed[file_name(entry.kernel, schedule)] = str(failed)[-600:]
                generator.close()
                generator = library.Generator(machine)
            print(f"  {left.qsize()} left: {entry.kernel}", file=sys.stderr, flush=True)
        generator.close()

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def built(
    machine: Any, generator: Any, kernel: Kernel, schedule: Mapping[str, int | str], folder: Path
) -> None:
    """One library, from the cache of emitted kernels where it is there. Raises CannotBuild."""
    job = (kernel, {BUCKETS[0]: schedule})
    place = library.cached(machine, job)
    emitted = library.recall(place, job)
    if emitted is None:
        emitted = generator.emit(job)
        library.remember(place, emitted)
    machine.link([emitted], folder / file_name(kernel, schedule))


if __name__ == "__main__":
    sys.exit(main())
