"""What schedules of other shapes are worth: recorded shapes, each held out in turn.

    python -m tests.benchmarks.transfer    # the table; sweep.py records the shapes, as shapes/NAME

Each shape is tuned on its sweep, replayed with its noise. Speeds are relative to what that found, over all
points of the profile, which weigh the same; they may be above 1, where the search missed something.

    used        what a build uses unmeasured: the nearest other shape's where that is sound, or the default
    nearest     the nearest other shape's schedules, sound or not: where a search starts
    starts      the best of all that a search starts with
    learned     what a tree chooses that was fitted to all other shapes
    unlike      the same, fitted only to shapes so far that they are no neighbours
    default     the default schedules
    random      each schedule that the space admits, for calls of any size
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, geometric_mean, median
from typing import Any

from moec.targets.base import BUCKETS, Kernel, Schedules, serving
from moec.tuning.fingerprint import Fingerprint
from moec.tuning.learn import fitted, key_of
from moec.tuning.log import Log
from moec.tuning.measure import Measurement, bucket_of
from moec.tuning.plan import make_plan
from moec.tuning.record import spelled
from moec.tuning.replay import Replay
from moec.tuning.search import Budget, tune
from moec.tuning.sweep import Sweep, read
from moec.tuning.transfer import FAR, distance, hints, starts

FOLDER = Path(__file__).parent.parent / "tuning" / "sweeps" / "shapes"
MEDIAN, TENTH = 0.90, 0.75  # the bars for used and nearest: of the tuned speed
TRIALS = 24  # of each shape, as in a build with a small budget
FEWEST = 3  # shapes to fit a tree to
LINEAR = (
    *((256, 512), (512, 256), (512, 1024), (576, 1536), (768, 768), (768, 2048), (1024, 704)),
    *((1024, 2816), (1408, 1024), (2048, 576), (2048, 1408), (1536, 3072)),
)
GROUPED = (  # k, n, experts, experts of a token
    *((256, 512, 16, 4), (512, 512, 32, 4), (512, 1024, 16, 2), (768, 1024, 32, 6), (768, 1536, 16, 4)),
    *((1024, 768, 64, 8), (1024, 1408, 32, 6), (1024, 2048, 16, 4), (1536, 1024, 32, 4)),
    *((2048, 768, 32, 8), (2048, 1408, 16, 6), (2048, 2816, 16, 6)),
)
FLOATS = {"mr": [4, 8, 12], "unroll": [2], "ahead": [0, 64], "group": [256], "grain": [256, 1024, 4096]}
BYTES = {"mr": [8, 12], "sums": [12], "ahead": [4, 16], "group": [256], "grain": [1024, 4096, 16384]}
# name -> a kernel, and the knobs that keep fewer values than its space has.
SHAPES: Mapping[str, tuple[Kernel, Mapping[str, Sequence[int]]]] = {
    f"shapes/linear_{k}x{n}": (Kernel("linear", (("k", k), ("n", n))), FLOATS) for k, n in LINEAR
} | {
    f"shapes/grouped_int8_{k}x{n}_{share}of{experts}": (
        Kernel("grouped_swiglu", (("k", k), ("n", n), ("experts", experts), ("share", share)), (), "int8"),
        BYTES,
    )
    for k, n, experts, share in GROUPED
}


class Shape:
    """A recorded shape. A round times all schedules at a point one after the other, so a schedule's time is
    taken relative to what is usual in its round; of the rounds, the median counts.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep, self.kernel, self.space = sweep, sweep.kernel, sweep.space
        self.schedules = sweep.schedules()
        self._times = {point: self._relative(point) for point in sweep.points}

    def _relative(self, point: str) -> dict[str, float]:
        rows = [self.sweep.outcome(schedule).samples[point] for schedule in self.schedules]
        usual = [median(taken) for taken in zip(*rows)]
        times = [median(mine / its for mine, its in zip(row, usual)) for row in rows]
        return {spelled({1: schedule}): time for schedule, time in zip(self.schedules, times)}

    def time(self, schedules: Schedules) -> float:
        """The geometric mean of the relative times at all points."""
        served = {point: schedules[serving(schedules, bucket_of(point))] for point in self._times}
        return geometric_mean(self._times[point][spelled({1: each})] for point, each in served.items())


class Replays:
    """A judge for many kernels, each by its own sweep."""

    def __init__(self, shapes: Iterable[Shape]) -> None:
        self.judges = {shape.kernel: Replay(shape.sweep) for shape in shapes}

    def trial(self, kernel: Kernel, *rest: Any) -> Measurement:
        return self.judges[kernel].trial(kernel, *rest)


@dataclass(frozen=True)
class Speeds:
    """Speeds of one source's schedules, relative to the tuned ones, over the shapes it had any for."""

    source: str
    each: Sequence[float]

    @property
    def median(self) -> float:
        return median(self.each)

    @property
    def tenth(self) -> float:
        """The mean of the worst tenth, one at least."""
        return fmean(sorted(self.each)[: math.ceil(len(self.each) / 10)])


def held_out(shapes: Sequence[Shape]) -> list[Speeds]:
    """How each source does on shapes of one kind: each shape by what is known of the others."""
    spaces, place = {shape.kernel: shape.space for shape in shapes}, shapes[0].sweep.fingerprint
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder) / "log.jsonl")
        tune(spaces, Replays(shapes), Budget(trials=TRIALS), log, place)
        plan = make_plan(spaces, spaces, log, place)
        for shape in shapes:
            tuned = shape.time(plan[shape.kernel].schedules)
            for source, schedules in suggestions(shape, log, place):
                found.setdefault(source, []).append(tuned / shape.time(schedules))
    return [Speeds(*item) for item in found.items()]


def suggestions(shape: Shape, log: Log, place: Fingerprint) -> Iterator[tuple[str, Schedules]]:
    """The schedules that each source has for a shape."""
    spaces = {shape.kernel: shape.space}
    others = [record for record in log if record.kernel != shape.kernel and record.ratio is not None]
    with tempfile.TemporaryDirectory() as folder:
        known = Log(Path(folder) / "log.jsonl")
        known.path.write_text("".join(f"{record.line()}\n" for record in others))
        yield "used", make_plan(spaces, spaces, known, place)[shape.kernel].schedules
        yield from nearest(shape, known, place)
    for source, least in (("learned", 0.0), ("unlike", FAR)):
        seen = [record for record in others if distance(record.kernel, shape.kernel) > least]
        if len({record.kernel for record in seen}) >= FEWEST:
            heuristic = fitted(key_of(seen[0]), seen)
            yield source, heuristic.choose(shape.kernel, shape.space, place.threads)[0]
    yield "default", shape.space.defaults
    yield from (("random", {BUCKETS[0]: schedule}) for schedule in shape.schedules)


def nearest(shape: Shape, known: Log, place: Fingerprint) -> Iterator[tuple[str, Schedules]]:
    """What a search starts with, besides the default."""
    for hint in list(hints(shape.kernel, shape.space, known, place))[:1]:
        yield "nearest", hint.schedules
    first = [shape.space.defaults, *starts(shape.kernel, shape.space, known, place)]
    yield "starts", min(first, key=shape.time)


def kinds(folder: Path = FOLDER) -> dict[str, list[Shape]]:
    """The recorded shapes of each kind of kernel."""
    found: dict[str, list[Shape]] = {}
    for path in sorted(folder.glob("*.json.gz")):
        sweep = read(path)
        found.setdefault(f"{sweep.kernel.kind} {sweep.kernel.dtype}", []).append(Shape(sweep))
    return found


def table() -> None:
    """Prints how each source does, for each kind of kernel."""
    for kind, shapes in kinds().items():
        print(f"{kind}, {len(shapes)} shapes: speed relative to tuned")
        for speeds in held_out(shapes):
            figures = f"median {speeds.median:.3f}  worst tenth {speeds.tenth:.3f}"
            print(f"  {speeds.source:10} {figures}  ({len(speeds.each)})")
        print(f"  bars       median {MEDIAN:.3f}  worst tenth {TENTH:.3f}  for used and nearest")


if __name__ == "__main__":
    table()
