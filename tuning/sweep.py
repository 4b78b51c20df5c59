"""Recorded spaces: what became of every schedule of a kernel's space, or of a part of it, on a real machine.

replay.Replay replays them. A recorded space, or sweep, is one JSON object (gzipped if its name ends in .gz):

    replay    1, the version of this format
    about     a sentence: which part of which space this is, and how it was timed
    kernel    {kind, dims: {name: size}, dtype}, as in the log
    fingerprint  {isa, cpu, threads, generator}, as in the log: where, and by which generator
    choices   {knob: [values]}: the sweep has every one of their products, the last knob changing first
    default, known, layout, larger   as in targets.base.Space
    points    names of the calls that were timed, as in the log ("m=8", "m=64 zipf")
    units     seconds, one for each point: what its samples count in
    failures  [[status, reason]]: how schedules fail, status as in the log (refused, wrong, crashed, timeout)
    outcomes  one for each product: the index of its failure, or [took, samples of each point], where took is
              milliseconds to build and check it, and samples are whole numbers of units, one a round

A round times many schedules once each, one right after the other, so that samples of the same place are
neighbours in time: their ratios have the noise of the machine, and the drift they shared cancels out.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from ..targets.base import BUCKETS, Kernel, Schedule, Schedules, Space, serving
from .fingerprint import Fingerprint
from .measure import Samples
from .record import OUTCOMES

FORMAT = 1
DIGITS = 1000  # units in the fastest schedule's time at a point

Values = tuple[int | str, ...]


class BadSweep(ValueError):
    """A file that is no recorded space; the text says which field and what was expected."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one schedule: status and reason as in the log, seconds to build and check it, and
    seconds per call at each point, one a round.
    """

    status: str
    reason: str = ""
    took: float = 0.0
    samples: Samples = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """A recorded space: outcomes by the values of a schedule, in the order of the knobs in choices."""

    about: str
    kernel: Kernel
    fingerprint: Fingerprint
    choices: Mapping[str, Sequence[int | str]]
    default: Schedule
    known: Sequence[Schedule]
    layout: Sequence[str]
    larger: Mapping[int, Schedule]
    points: Sequence[str]
    outcomes: Mapping[Values, Outcome]

    @property
    def space(self) -> Space:
        """The space; what was refused is refused again, with the same sentence."""
        rules = (self._refusal,)
        return Space(self.choices, self.default, self.known, rules, self.layout, self.larger)

    def outcome(self, schedule: Schedule) -> Outcome:
        """What became of a schedule of this space."""
        return self.outcomes[tuple(schedule[knob] for knob in self.choices)]

    def seconds(self, schedules: Schedules) -> float:
        """The geometric mean, over the points, of the median time of the schedule that serves it; infinite
        if one of them failed.
        """
        outcomes = [self.outcome(serving_at(schedules, point)) for point in self.points]
        if any(outcome.status != "ok" for outcome in outcomes):
            return math.inf
        times = [median(outcome.samples[point]) for point, outcome in zip(self.points, outcomes)]
        return geometric_mean(times)

    def schedules(self) -> list[Schedule]:
        """Those that ran, fastest first."""
        ran = [dict(zip(self.choices, values)) for values, out in self.outcomes.items() if out.status == "ok"]
        return sorted(ran, key=lambda schedule: self.seconds({BUCKETS[0]: schedule}))

    def _refusal(self, schedule: Schedule) -> str | None:
        outcome = self.outcome(schedule)
        return outcome.reason if outcome.status == "refused" else None

    def write(self, path: Path) -> None:
        """The sweep as a file; equal sweeps are equal bytes."""
        text = json.dumps(self._data(), separators=(",", ":")).encode()
        path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)

    def _data(self) -> dict[str, Any]:
        ran = [outcome for outcome in self.outcomes.values() if outcome.status == "ok"]
        units = [min(median(out.samples[point]) for out in ran) / DIGITS for point in self.points]
        failed = [[out.status, out.reason] for out in self.outcomes.values() if out.status != "ok"]
        failures = [list(pair) for pair in dict.fromkeys(map(tuple, failed))]

        def row(outcome: Outcome) -> Any:
            if outcome.status != "ok":
                return failures.index([outcome.status, outcome.reason])
            counts = [
                [max(1, round(seconds / unit)) for seconds in outcome.samples[point]]
                for point, unit in zip(self.points, units)
            ]
            return [round(outcome.took * 1000), *counts]

        kernel = {"kind": self.kernel.kind, "dims": dict(self.kernel.dims), "dtype": self.kernel.dtype}
        return {
            "replay": FORMAT,
            "about": self.about,
            "kernel": kernel,
            "fingerprint": asdict(self.fingerprint),
            **{part: getattr(self, part) for part in ("choices", "default", "known", "layout", "larger")},
            "points": self.points,
            "units": [float(f"{unit:.4g}") for unit in units],
            "failures": failures,
            "outcomes": [row(self.outcomes[values]) for values in itertools.product(*self.choices.values())],
        }


def read(path: Path) -> Sweep:
    """The sweep in a file. Raises BadSweep, with the file's name, if it is none; OSError if it cannot."""
    content = path.read_bytes()
    try:
        data = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
        return _sweep(data)
    except BadSweep as bad:
        raise BadSweep(f"{path}: {bad}") from None
    except (ValueError, EOFError, OSError, zlib.error) as bad:
        raise BadSweep(f"{path}: not JSON ({bad})") from bad


def _sweep(data: Any) -> Sweep:
    _expect(type(data) is dict, "expected a JSON object")
    _expect(data.get("replay") == FORMAT, f"replay is {data.get('replay')!r}, this moec reads {FORMAT}")
    kernel, place = (_get(data, part, dict) for part in ("kernel", "fingerprint"))
    choices = _get(data, "choices", dict)
    for knob, values in choices.items():
        plain = type(values) is list and values and all(type(value) in (int, str) for value in values)
        _expect(plain, f"choices of {knob} are no integers and names")
    points = _strings(data, "points")
    sweep = Sweep(
        about=_get(data, "about", str),
        kernel=Kernel(
            _get(kernel, "kind", str), tuple(_sizes(kernel).items()), dtype=_get(kernel, "dtype", str)
        ),
        fingerprint=Fingerprint(
            isa=_get(place, "isa", str),
            cpu=_get(place, "cpu", str),
            threads=_get(place, "threads", int),
            generator=_get(place, "generator", str),
        ),
        choices=choices,
        default=_schedule(_get(data, "default", dict)),
        known=[_schedule(some) for some in _get(data, "known", list)],
        layout=_strings(data, "layout"),
        larger=_larger(data),
        points=points,
        outcomes=_outcomes(data, list(itertools.product(*choices.values())), points),
    )
    for name, schedule in (("default", sweep.default), *(("known", some) for some in sweep.known)):
        why = sweep.space.objection(schedule)
        _expect(why is None, f"{name} is refused: {why}")
    return sweep


def _larger(data: Mapping[str, Any]) -> dict[int, Schedule]:
    larger = _get(data, "larger", dict)
    for first in larger:
        _expect(first in map(str, BUCKETS[1:]), f"larger begins at {first}, expected some of {BUCKETS[1:]}")
    return {int(first): _schedule(some) for first, some in larger.items()}


def _outcomes(data: Mapping[str, Any], products: Sequence[Values], points: Sequence[str]) -> Any:
    rows, failures, units = (_get(data, part, list) for part in ("outcomes", "failures", "units"))
    _expect(
        len(rows) == len(products), f"{len(rows)} outcomes for {len(products)} schedules: the sweep is torn"
    )
    _expect(len(units) == len(points) and all(map(_positive, units)), "units are not seconds for each point")
    for failure in failures:
        known = type(failure) is list and len(failure) == 2 and failure[0] in OUTCOMES[1:]
        _expect(known and type(failure[1]) is str, f"{failure!r} is no failure, expected [status, reason]")
    return {values: _outcome(row, failures, points, units) for values, row in zip(products, rows)}


def _outcome(row: Any, failures: Sequence[Any], points: Sequence[str], units: Sequence[float]) -> Outcome:
    if type(row) is int:
        _expect(0 <= row < len(failures), f"outcome {row} is none of {len(failures)} failures")
        return Outcome(*failures[row])
    _expect(type(row) is list and len(row) == 1 + len(points), f"{str(row)[:40]} is no outcome of {points}")
    took, *samples = row
    for counts in samples:
        _expect(type(counts) is list and counts and all(map(_positive, counts)), f"{counts!r} are no samples")
    times = {point: [count * unit for count in counts] for point, counts, unit in zip(points, samples, units)}
    _expect(type(took) is int and took >= 0, f"took is {took!r}, expected milliseconds")
    return Outcome("ok", "", took / 1000, times)


def _expect(holds: object, sentence: str) -> None:
    if not holds:
        raise BadSweep(sentence)


def _get(data: Mapping[str, Any], name: str, kind: type) -> Any:
    value = data.get(name)
    _expect(type(value) is kind, f"{name} is {type(value).__name__}, expected {kind.__name__}")
    return value


def _strings(data: Mapping[str, Any], name: str) -> list[str]:
    values: list[str] = _get(data, name, list)
    _expect(all(type(value) is str for value in values), f"{name} are no names")
    return values


def _sizes(kernel: Mapping[str, Any]) -> dict[str, int]:
    sizes: dict[str, int] = _get(kernel, "dims", dict)
    _expect(all(type(size) is int for size in sizes.values()), "dims are no sizes")
    return sizes


def _schedule(data: Any) -> Schedule:
    plain = type(data) is dict and all(type(value) in (int, str) for value in data.values())
    _expect(plain, f"{data!r} is no schedule")
    schedule: Schedule = data
    return schedule


def _positive(number: object) -> bool:
    return type(number) in (int, float) and math.isfinite(number) and number > 0  # type: ignore[arg-type,operator]


def serving_at(schedules: Schedules, point: str) -> Schedule:
    """The schedule that serves the calls of a point."""
    tokens = int(point.split()[0].removeprefix("m="))
    return schedules[serving(schedules, tokens)]
