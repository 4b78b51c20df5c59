"""The kernel library of an artifact: each kernel generated in a worker process, or taken from the cache, then linked.

Code generators may crash; a process each keeps that away from the compiler, and lets them use all cores.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ..targets.base import CannotBuild, Emitted, Kernel, Schedule

Job = tuple[Kernel, Schedule]


def emit_all(
    target: Any, jobs: Sequence[Job], progress: Callable[[int, int], None] = lambda done, all: None
) -> list[Emitted]:
    """The object code of each job, in their order. progress: called with jobs done and all.

    Raises CannotBuild, naming the kernel, where the code generator fails or dies.
    """
    places = {index: cached(target, job) for index, job in enumerate(jobs)}
    made = {index: kept for index, place in places.items() if (kept := recall(place, jobs[index])) is not None}
    progress(len(made), len(jobs))
    missing = [index for index in places if index not in made]
    if missing:
        workers = min(os.cpu_count() or 1, len(missing))
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(target.emit, *jobs[index]): index for index in missing}
            for future in as_completed(futures):
                index = futures[future]
                made[index] = outcome(future.result, jobs[index])
                remember(places[index], made[index])
                progress(len(made), len(jobs))
    return [made[index] for index in range(len(jobs))]


def outcome(result: Callable[[], Emitted], job: Job) -> Emitted:
    """What the worker made. Raises CannotBuild for whatever went wrong in it."""
    kernel, schedule = job
    try:
        return result()
    except BrokenProcessPool:
        why = "the code generator's process died"
    except Exception as error:  # a generator may raise anything; the kernel's name is what helps
        why = f"{type(error).__name__}: {error}"
    raise CannotBuild(f"no code for {kernel} with {dict(schedule)}: {why}; try another --budget or --log")


def cached(target: Any, job: Job) -> Path:
    """Where this job's object code is kept: a name of all that it depends on."""
    kernel, schedule = job
    parts = (repr(target), repr(kernel), repr(sorted(schedule.items())), generator(type(target).__module__))
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "moec" / "objects" / name


def generator(module: str) -> str:
    """A hash of the target's sources and its toolchain's versions: other sources may write other code."""
    folder = Path(str(importlib.import_module(module).__file__)).parent
    digest = hashlib.sha256(repr(sorted(toolchain().items())).encode())
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def toolchain() -> Mapping[str, str]:
    """The releases of everything that shapes an artifact, by package name."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("moec", "torch", "transformers", "apache-tvm", "onnx", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def recall(place: Path, job: Job) -> Emitted | None:
    """What is kept there for this job: a line with the names of the functions, then the object code."""
    try:
        names, _, code = place.read_bytes().partition(b"\n")
        return Emitted(*job, code, tuple(json.loads(names)))
    except (OSError, ValueError):
        return None


def remember(place: Path, emitted: Emitted) -> None:
    """Keep it; a cache that cannot be written is no reason to fail."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(json.dumps(emitted.symbols).encode() + b"\n" + emitted.object_code)
        os.replace(name, place)
    except OSError:
        pass
