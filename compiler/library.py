"""The kernels of an artifact as object code: each generated in a worker process, or taken from the cache.

Code generators may crash; a process each keeps that away from the compiler, and lets them use all cores.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from ..targets.base import CannotBuild, Emitted, Kernel, Schedules

Job = tuple[Kernel, Schedules]

# What shapes an artifact, beside the tools that write a target's code.
PACKAGES = ("moec", "torch", "transformers", "onnx", "onnxruntime")


def emit_all(
    target: Any, jobs: Sequence[Job], progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Emitted]:
    """The object code of each job, in their order. progress: called with jobs done and all.

    Raises CannotBuild, naming the kernel, where the code generator fails or dies.
    """
    places = [cached(target, job) for job in jobs]
    made = [recall(place, job) for place, job in zip(places, jobs)]
    missing = [index for index, kept in enumerate(made) if kept is None]
    progress(len(jobs) - len(missing), len(jobs))
    local = threading.local()  # each thread drives one process
    generators: list[Generator] = []

    def emit(index: int) -> None:
        if not hasattr(local, "generator"):
            local.generator = Generator(target)
            generators.append(local.generator)
        made[index] = emitted = local.generator.emit(jobs[index])
        remember(places[index], emitted)

    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        for done, future in enumerate(as_completed([pool.submit(emit, index) for index in missing]), 1):
            future.result()
            progress(len(jobs) - len(missing) + done, len(jobs))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for generator in generators:
            generator.close()
    return [emitted for emitted in made if emitted is not None]


class Generator:
    """A process that generates code, one job after the other (emitter.py is its other end)."""

    def __init__(self, target: Any) -> None:
        command = [sys.executable, "-P", "-m", f"{__package__}.emitter"]
        self._words = tempfile.TemporaryFile()  # toolchains say much that nobody needs unless they fail
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words
        )
        self._target = target

    def emit(self, job: Job) -> Emitted:
        """Raises CannotBuild for whatever goes wrong in the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        kernel, schedules = job
        try:
            pickle.dump((self._target, kernel, dict(schedules)), self._process.stdin)
            self._process.stdin.flush()
            reply = pickle.load(self._process.stdout)
        except (OSError, EOFError):
            reply = f"the code generator died with status {self._process.wait()}{self._last_words()}"
        if isinstance(reply, Emitted):
            return reply
        raise CannotBuild(f"no code for {kernel} with {dict(schedules)}: {reply}")

    def _last_words(self) -> str:
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").strip().splitlines()
        return f" and the words {lines[-1]!r}" if lines else ""

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.communicate()
        self._words.close()


def cached(target: Any, job: Job) -> Path:
    """Where this job's object code is kept: a name of all that it depends on."""
    kernel, schedules = job
    parts = (
        repr(target),
        repr(kernel),
        json.dumps(schedules, sort_keys=True),
        generator(target.sources),
        repr({**versions(target.tools), **target.versions}),
    )
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "moec" / "objects" / name


def generator(sources: Iterable[Path]) -> str:
    """A hash of the sources that write code: others may write other code."""
    digest = hashlib.sha256()
    for file in sorted(sources):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def toolchain(target: Any) -> Mapping[str, str]:
    """The releases of everything that shapes an artifact of a target, by name."""
    return {**packages(target), **target.versions}


def packages(target: Any) -> Mapping[str, str]:
    """The releases of those that are packages of this Python."""
    return versions(dict.fromkeys((*PACKAGES, *target.tools)))


def versions(packages: Iterable[str]) -> Mapping[str, str]:
    """The releases of those packages that are here."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def recall(place: Path, job: Job) -> Emitted | None:
    """What is kept there for this job: a line with the functions' names, then the object code."""
    try:
        names, _, code = place.read_bytes().partition(b"\n")
        return Emitted(*job, code, tuple(map(tuple, json.loads(names))))
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
