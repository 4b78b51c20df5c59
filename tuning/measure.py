"""Measures schedules in a worker process that may crash or hang, and tells a gain from noise."""

from __future__ import annotations

import json
import math
import os
import random
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from ..targets.base import CannotBuild, Kernel, Schedules, bucket

LEAST_GAIN = 0.01  # below one percent a faster schedule is not worth a different plan
CONFIDENCE = 0.99
RESAMPLES = 200

Samples = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What became of one trial: one of record.OUTCOMES, and seconds per call at each point of the profile.

    against holds the incumbent's seconds from the same run, pair by pair; None if there was no incumbent.
    """

    status: str
    reason: str = ""
    samples: Samples = field(default_factory=dict)
    against: Samples | None = None


class Judge(Protocol):
    """Builds, checks and times one candidate beside the incumbent."""

    def trial(
        self,
        kernel: Kernel,
        schedules: Schedules,
        incumbent: Schedules | None,
        points: Collection[str] | None = None,
    ) -> Measurement:
        """points: where to time them; None: everywhere."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A candidate's time over the incumbent's, and the most and the least it may be, noise considered."""

    value: float
    upper: float
    lower: float

    @property
    def wins(self) -> bool:
        return self.upper < 1 - LEAST_GAIN

    @property
    def open(self) -> bool:
        """Whether it neither wins nor loses."""
        return not self.wins and self.lower <= 1


def compare(candidate: Samples, incumbent: Samples) -> Ratio:
    """The geometric mean, over the points both were timed at, of the median ratio of the pairs.

    A pair's two runs are neighbours in time, so what slows the machine down cancels out. upper is by
    bootstrap: draw the pairs anew with replacement RESAMPLES times; CONFIDENCE of the draws gave a smaller
    ratio, and as many a larger one than lower.
    """
    points = [
        [mine / its for mine, its in zip(candidate[point], incumbent[point])]
        for point in candidate
        if candidate[point] and incumbent.get(point)
    ]
    if not points:
        raise ValueError(f"nothing to compare: points {list(candidate)} against {list(incumbent)}")
    dice = random.Random(0)  # the same samples give the same verdict
    draws = sorted(
        _centre([dice.choices(ratios, k=len(ratios)) for ratios in points]) for _ in range(RESAMPLES)
    )
    last = math.ceil(CONFIDENCE * RESAMPLES) - 1
    return Ratio(_centre(points), draws[last], draws[-1 - last])


def _centre(points: Sequence[Sequence[float]]) -> float:
    return statistics.geometric_mean([statistics.median(ratios) for ratios in points])


def by_bucket(candidate: Samples, incumbent: Samples) -> dict[int, Ratio]:
    """The same for each bucket of tokens that both were timed in, by where it begins."""
    points: dict[int, dict[str, Sequence[float]]] = {}
    for point, seconds in candidate.items():
        if seconds and incumbent.get(point):
            points.setdefault(bucket_of(point), {})[point] = seconds
    return {first: compare(points[first], incumbent) for first in sorted(points)}


def won(candidate: Samples, incumbent: Samples) -> set[int]:
    """The buckets where the candidate wins: each for itself, or those together that none of them decides."""
    each = by_bucket(candidate, incumbent)
    wins = {first for first, ratio in each.items() if ratio.wins}
    undecided = {first for first, ratio in each.items() if ratio.open}
    among = {point: candidate[point] for point in candidate if bucket_of(point) in undecided}
    return wins | undecided if among and compare(among, incumbent).wins else wins


def bucket_of(point: str) -> int:
    """Where the bucket of a point's tokens begins: "m=8" -> 5."""
    return bucket(int(point.split()[0].removeprefix("m=")))


class Hung(Exception):
    """The worker gave no reply in time."""


class Died(Exception):
    """The worker's process ended; the text says how."""


class Worker:
    """The near end of a worker process: started when needed, killed when it hangs, started anew when it died.

    Use it as a context manager. Files the worker leaves in its temporary folder go with it.
    """

    def __init__(
        self,
        device: str,
        options: Mapping[str, Any],
        limit_s: int = 60,
        start_s: int = 120,
        memory_bytes: int | None = None,
    ) -> None:
        """device is "module:callable", called with options; limit_s bounds a trial, building included."""
        memory_bytes = memory_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self._command = [sys.executable, "-P", "-m", f"{__package__}.worker"]
        self._command += [device, json.dumps(dict(options)), str(memory_bytes)]
        self._limit_s, self._start_s = limit_s, start_s
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._pending = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Has it ready before the first trial: its imports take seconds. Raises CannotBuild if it cannot."""
        self._running()

    def trial(
        self,
        kernel: Kernel,
        schedules: Schedules,
        incumbent: Schedules | None,
        points: Collection[str] | None = None,
    ) -> Measurement:
        """One candidate, built, checked against the reference and timed in turns with the incumbent.

        Raises CannotBuild if the worker cannot start or this machine can build nothing.
        """
        request = {
            "kernel": {name: getattr(kernel, name) for name in ("kind", "dims", "reals", "dtype")},
            "schedules": [*schedules.items()],
            "incumbent": incumbent and [*incumbent.items()],
            "points": points and [*points],
            "limit_s": self._limit_s,
        }
        process = self._running()
        try:
            reply = self._ask(process, request)
        except Hung:
            return Measurement("timeout", f"no result within {self._limit_s} s")
        except Died as died:
            return Measurement("crashed", str(died))
        if "fatal" in reply:
            raise CannotBuild(reply["fatal"])
        return Measurement(
            reply["status"], reply.get("reason", ""), reply.get("samples", {}), reply.get("against")
        )

    def _ask(self, process: subprocess.Popen[bytes], request: Mapping[str, Any]) -> dict[str, Any]:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it died between two requests: the read below says how
        return self._reply(process, self._limit_s)

    def _reply(self, process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
        """The next line of the worker. What keeps it from coming (Ctrl-C too) leaves no process behind."""
        reply: dict[str, Any] | None = None
        try:
            reply = json.loads(self._line(process, time.monotonic() + seconds))
            return reply or {}
        except Died:
            code = process.wait()
            raise Died(
                f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            ) from None
        finally:
            if reply is None:
                self.close()

    def _line(self, process: subprocess.Popen[bytes], deadline: float) -> bytes:
        assert process.stdout is not None
        while b"\n" not in self._pending:
            if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Hung
            if not (more := os.read(process.stdout.fileno(), 1 << 16)):
                raise Died
            self._pending += more
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._folder = Path(tempfile.mkdtemp(prefix="moec-"))
            with (self._folder / "stderr").open("wb") as stderr:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env={**os.environ, "TMPDIR": str(self._folder)},
                    start_new_session=True,  # so that the compilers it starts can be killed with it
                )
            self._await_start(self._process, self._folder / "stderr")
        return self._process

    def _await_start(self, process: subprocess.Popen[bytes], stderr: Path) -> None:
        with stderr.open("rb") as words:
            try:
                self._reply(process, self._start_s)
            except (Hung, Died) as failed:
                last = words.read().decode(errors="replace").strip().splitlines()[-1:]
                why = str(failed) or f"not ready after {self._start_s} s"
                raise CannotBuild(
                    f"the measuring process did not start ({why}): {' '.join(last)}"
                ) from failed

    def close(self) -> None:
        """Ends the worker, and what it started, at once."""
        process, self._process, self._pending = self._process, None, b""
        if process is not None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it is gone already
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except BrokenPipeError:
                        pass  # a request it never read
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
