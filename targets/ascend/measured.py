"""Kernels on this machine's NPU: finished by CANN's hivmc, checked there, and timed by ACL's events.

Written after ACL's documents and tried over a stand-in for it: no NPU has run it.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...compiler.ir import DTYPES, Array
from .. import sample
from ..base import CannotBuild, Kernel, Schedules
from ..buffers import Buffer, placed
from ..cases_bf16 import CACHED, IN_PLACE, Example, Sample
from ..checks import checked, where
from . import build, finish, npu
from .acl import Call, Library, acl
from .bundle import Image, from_bytes
from .emit import emit
from .hivm.calls import Asked, call_of
from .soc import Soc
from .toolchain import NotInstalled
from .trial import Checked

LIBRARY = "libmoec_ascend.so"
LIMIT_S = 300  # for one object
MOST_BYTES = 1 << 30  # of one weight: fewer experts are tried than a model has, where all would be more
MOST_COPIED = 8 << 30  # bytes of weights, all copies of them
AHEAD_BYTES = 256 << 20  # filled before a run: more than L2 holds, and the host asks for calls meanwhile
BETWEEN = 480 << 20  # bytes that are read before the same weights again
SMALL = 64 << 10  # bytes that need not be cold: a launch takes longer
SHORTEST, MOST = 1e-3, 64  # seconds of a run, about, and calls of one at most


def affordable(kernel: Kernel) -> Kernel:
    """The kernel that is tried: with as many experts as fit MOST_BYTES."""
    return sample.affordable(kernel, MOST_BYTES)


def finished(kernel: Kernel, schedules: Schedules, soc: Soc, folder: Path) -> None:
    """The library there, and in ascend/ beside it an object for each function, made as in an artifact.

    Raises CannotBuild without hivmc, ValueError where CANN's compilers or the linker's refuse a function.
    """
    try:
        emitted = emit(affordable(kernel), schedules, soc)
    except NotInstalled:
        raise
    except CannotBuild as error:  # of this kernel alone; others can be built
        raise ValueError(str(error)) from error
    if npu.hivmc() is None:
        raise CannotBuild("hivmc is neither on PATH nor in CANN; source CANN's set_env.sh first")
    made(from_bytes(emitted.object_code).images, soc, folder / finish.FOLDER)
    build.link([emitted], folder / LIBRARY, soc)


def made(images: Sequence[Image], soc: Soc, folder: Path) -> None:
    """Objects by finish.sh, which has another way where hivmc refuses what was planned elsewhere."""
    folder.mkdir()
    for image in images:
        (folder / f"{image.entry}.hivm.mlir").write_bytes(image.hivm)
        (folder / f"{image.entry}.linalg.mlir").write_bytes(image.linalg)
    (folder / "finish.sh").write_text(finish.script(images, soc, LIBRARY))
    command, limit_s = ["sh", "finish.sh", "--any-npu"], LIMIT_S * len(images)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise ValueError(f"CANN's compilers did not end within {limit_s} s") from None
    if done.returncode:
        left = {image.function for image in images if not (folder / f"{image.entry}.o").exists()}
        said = why(folder, done.stdout.splitlines()) or done.stderr
        raise ValueError(f"finish.sh made no object of {', '.join(sorted(left))}: {said}")


def why(folder: Path, said: Sequence[str]) -> str:
    """The words of compilers, which are in finish.sh's log only, or else its own for a refusal."""
    log = folder / "finish.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    words = [line for line in lines if line not in said and not line.startswith("+ ")]
    return " ".join(words or (line for line in said if line.startswith("finish.sh: ")))[:1000]


class Bench:
    """A library of one kernel on the NPU: to be run, compared and timed."""

    def __init__(
        self, kernel: Kernel, schedules: Schedules, built: Path, asked: Mapping[str, Asked], cold: bool
    ) -> None:
        self.kernel, self.schedules, self.asked, self.cold = affordable(kernel), schedules, asked, cold
        self.points = list(asked)
        self.tried = tried_of(self.kernel)
        self.npu = self.tried.npu
        self.library = Library((built / LIBRARY).resolve())
        self.scratch: Any = None  # a temporary folder that goes with the bench

    def check(self) -> str | None:
        """Why the outputs of some calls are not the reference's, or None."""
        return next((f"with {name}, {why}" for name, why, _ in self.checks() if why), None)

    def checks(self, told: Callable[[str], None] = lambda name: None) -> Iterator[Checked]:
        """What came of each call that is checked; told: called with its name before it is."""
        for name, options in checked(self.kernel, self.schedules).items():
            told(name)
            example = self.tried.example(name, options)
            results, spoiled = self.run(example)
            wrong = example.wrong(results)
            why = f"{wrong}; {where(example, results)}" if wrong else spoiled
            yield name, why, max(example.errors(results), default=0.0)

    def run(self, example: Example) -> tuple[list[Array], str | None]:
        """Results of a call, NaN or the lowest integer if unwritten, and where else it wrote, or None."""
        operands = self.tried.placed(example.operands)
        made = [sample.unwritten(like.astype(dtype)) for like, dtype in zip(example.results, example.dtypes)]
        places = example.in_place
        results = [
            operands[places[i]] if i in places else placed(self.npu, each) for i, each in enumerate(made)
        ]
        self.library.launch(Call(operands, results), self.npu.stream)
        found = [each.read() for each in results]
        names = [*(f"x{i}" for i in range(len(operands))), *(f"y{i}" for i in range(len(results)))]
        spoiled = ((name, each.spoiled()) for name, each in zip(names, [*operands, *results]))
        return found, next((f"around {name}, {why}" for name, why in spoiled if why), None)

    def time(self, point: str) -> float:
        """Seconds a call takes, weights cold or warm as the device says: the mean over a run of calls."""
        asked, once = self.asked[point], lambda call: self._run([call])
        return self._run(self.tried.calls(point, asked, self.cold, once))

    def _run(self, calls: Sequence[Call]) -> float:
        first, last = self.tried.events
        self.npu.fill(self.tried.ahead, 0, AHEAD_BYTES)
        if not self.cold:
            self.library.launch(calls[0], self.npu.stream)
        self.npu.record(first)
        for call in calls:
            self.library.launch(call, self.npu.stream)
        self.npu.record(last)
        return self.npu.seconds(first, last) / len(calls)


class Tried:
    """What one kernel is tried on; benches of its schedules share it."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.npu, self.sample = kernel, acl(), Sample(kernel)
        self.events = self.npu.event(), self.npu.event()
        self._ahead = Buffer(self.npu, (AHEAD_BYTES,), np.int8)
        self.ahead = self._ahead.address
        self._examples: dict[str, Example] = {}
        self._copies: list[Mapping[int, Buffer]] = []  # weights, by operand
        self._calls: dict[tuple[str, bool], list[Call]] = {}

    def example(self, name: str, options: Mapping[str, Any]) -> Example:
        """A call with what must come out of it."""
        if name not in self._examples:
            self._examples[name] = self.sample.example(**options)
        return self._examples[name]

    def placed(self, every: Sequence[Array], copy: int = 0) -> list[Buffer]:
        """Operands on the NPU; of the weights that copy, which calls share."""
        while len(self._copies) <= copy:
            self._copies.append({i: placed(self.npu, each) for i, each in self.sample.weights.items()})
        return [self._copies[copy].get(i) or placed(self.npu, each) for i, each in enumerate(every)]

    def calls(self, point: str, asked: Asked, cold: bool, seconds: Callable[[Call], float]) -> Sequence[Call]:
        """The calls of a run; seconds: times one, to know how many make a run."""
        if (point, cold) not in self._calls:
            self._calls[point, cold] = self._made(asked, cold, seconds)
        return self._calls[point, cold]

    def _made(self, asked: Asked, cold: bool, seconds: Callable[[Call], float]) -> list[Call]:
        cached = {"batch": asked.batch, "cached": asked.cached} if self.kernel.kind in CACHED else {}
        feeds = self.sample.feeds(asked.rows, draw=None if cached else asked.draw, **cached)
        every = self.sample.operands(feeds)
        shapes = call_of(self.kernel, asked).results
        results = [Buffer(self.npu, each.shape, DTYPES[each.type]) for each in shapes]

        def call(operands: Sequence[Buffer]) -> Call:
            places = IN_PLACE.get(self.kernel.kind, {})
            written = [operands[places[i]] if i in places else each for i, each in enumerate(results)]
            return Call(operands, written)

        first = call(self.placed(every))
        seconds(first)  # functions are loaded and scratch memory is taken before any is timed
        count = min(MOST, max(1, math.ceil(SHORTEST / max(seconds(first), 1e-9))))
        others = range(1, min(count, self._apart(every) if cold else 1))
        calls = [first, *(call(self.placed(every, copy)) for copy in others)]
        return [calls[i % len(calls)] for i in range(count)]

    def _apart(self, every: Sequence[Array]) -> int:
        """How many calls have operands of their own before one reads the first ones again."""
        whole, weights = (sum(each.nbytes for each in some) for some in (every, self.sample.weights.values()))
        part = float(np.mean(np.diff(every[2], prepend=0) > 0)) if self.sample.case.routed else 1.0
        read = whole - weights + part * weights
        most = max(1, int(MOST_COPIED / max(weights, 1)))
        return min(math.ceil(BETWEEN / read), most) if read > SMALL else 1


@lru_cache(maxsize=1)  # a search goes kernel by kernel, and weights are big
def tried_of(kernel: Kernel) -> Tried:
    """That of the kernel that is being tried."""
    return Tried(kernel)
