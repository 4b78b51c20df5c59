"""A line of the tuning log: what was computed, where, with which schedule, and what came out.

It never names a model, a layer or a file, and nothing in it is ever executed: a line is parsed as JSON and
checked field by field, and its schedule is only used if the kernel's own Space admits it.

The fields of a line, schema 1. Those marked + came later: a line without them is read as if they were empty.

    schema       1. A line with a larger number is kept, left out with a sentence, and never rewritten.
    kernel       kind ("linear"), dims {"k": 2048, "n": 1408}, dtype ("int4", "f32+bf16"): as in targets.base
    fingerprint  isa, cpu, threads, generator: all else that a time depends on, as in fingerprint.py
    schedule     {knob: whole number or text}, for calls from one token
    status       ok; wrong (other numbers than the reference); crashed; timeout; refused (by a rule of the
                 space); done: no trial, a search of this kernel ended and kept this schedule
    reason       one sentence, for all but ok
    samples      {point of the profile ("m=64", "m=64 zipf"): [seconds per call, ...]}
    ratio        its time over the default's, the mean of ratios; null if it was not timed
    beats        whether it won against the best of all, by more than the noise, twice
    versions     {tool: version} of what built it
    profile      which calls it was timed with: "standard", or "trace:" and a hash of the recorded routing;
                 with " warm" behind it if weights were in a cache
    time         when, ISO 8601, UTC
    larger +     {tokens: schedule} for calls from so many tokens (targets.base.BUCKETS)
    ratios +     {tokens: ratio} in the bucket that begins at so many tokens
    leads +      whether it won against the best of its layout of weights
    noise +      half the width of ratio's confidence interval, as a fraction of ratio; null if unknown
    settled +    whether this is of the last races of a search: against the default, in fresh processes

kernel, fingerprint and profile are the key. Of a kernel's records that beat, the least ratio is best; ties go
by the schedule and then by the whole line, so that it does not matter in which order logs are merged. Of
records that are settled and have equal schedules the latest counts, and none of the others: what won a search
and then lost to the default is withdrawn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from ..targets.base import BUCKETS, Kernel, Schedule, Schedules
from .fingerprint import Fingerprint

SCHEMA = 1
PROFILE = "standard"
OUTCOMES = ("ok", "wrong", "crashed", "timeout", "refused")  # of one trial
STATUSES = (*OUTCOMES, "done")  # done: the search of this kernel used up its budget; schedule is what it kept


class BadRecord(ValueError):
    """A line that is no record of this schema; the text says which field and what was expected."""


class LaterRecord(BadRecord):
    """A line of a schema that this moec does not know yet."""


@dataclass(frozen=True, slots=True)
class Record:
    """One schedule of one kernel, tried once.

    schedule serves calls of all sizes but those that larger, by the tokens they begin at, has others for.
    samples are seconds per call at each point of the profile. ratios are its times over the default's, by
    where a bucket of tokens begins, from interleaved runs, so they do not drift with the machine; ratio is
    their mean. leads says that it won against the best one before it of its layout by more than the noise,
    twice; beats, that it did against the best of all (the first that ran counts as won, with ratio 1).
    noise is half the width of the ratio's confidence interval, as a fraction of the ratio.
    """

    kernel: Kernel
    fingerprint: Fingerprint
    schedule: Schedule
    status: str
    reason: str = ""
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    ratio: float | None = None
    beats: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)
    profile: str = PROFILE
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))
    larger: Schedules = field(default_factory=dict)
    ratios: Mapping[int, float] = field(default_factory=dict)
    leads: bool = False
    noise: float | None = None
    settled: bool = False

    @property
    def schedules(self) -> Schedules:
        """The schedules for calls of any size."""
        return {BUCKETS[0]: self.schedule, **self.larger}

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel", bare(self.kernel))

    def line(self) -> str:
        """The record as one line of JSON, without the newline."""
        data = asdict(self)
        data["kernel"] = {
            "kind": self.kernel.kind,
            "dims": dict(self.kernel.dims),
            "dtype": self.kernel.dtype,
        }
        return json.dumps({"schema": SCHEMA, **data}, separators=(",", ":"), allow_nan=False)


def bare(kernel: Kernel) -> Kernel:
    """The kernel without its reals, which shape no code: two that differ only there share one schedule."""
    return replace(kernel, reals=())


def by_speed(record: Record) -> tuple[float, str, str]:
    """Orders records, fastest first, in one way whatever the order of their lines."""
    return math.inf if record.ratio is None else record.ratio, spelled(record.schedules), record.line()


def standing(records: Iterable[Record], won: Callable[[Record], bool]) -> list[Record]:
    """The records that won, in their order; of schedules that were settled, the latest such record alone."""
    known = list(records)
    last: dict[str, Record] = {}
    for record in known:
        if record.settled:
            name = spelled(record.schedules)
            last[name] = max(last.get(name, record), record, key=lambda each: (each.time, each.line()))
    return [
        record
        for record in known
        if record.status == "ok" and won(record) and last.get(spelled(record.schedules), record) is record
    ]


def spelled(schedules: Schedules) -> str:
    """One spelling for schedules of calls of any size, to compare and to order by."""
    return json.dumps(schedules, sort_keys=True)


def parse(line: bytes) -> Record:
    """The record on one line. Raises BadRecord."""
    try:
        data = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as bad:
        raise BadRecord(f"not JSON ({bad})") from bad
    if not isinstance(data, dict):
        raise BadRecord(f"expected a JSON object, found {type(data).__name__}")
    if (schema := data.get("schema")) != SCHEMA:
        later = type(schema) is int and schema > SCHEMA
        raise (LaterRecord if later else BadRecord)(f"schema {schema!r}, this moec reads {SCHEMA}")
    kernel, place = _get(data, "kernel", dict), _get(data, "fingerprint", dict)
    _expect(
        _get(data, "status", str) in STATUSES, f"status is {data['status']!r}, expected one of {STATUSES}"
    )
    return Record(
        kernel=Kernel(_get(kernel, "kind", str), _dims(kernel), dtype=_get(kernel, "dtype", str)),
        fingerprint=Fingerprint(
            isa=_get(place, "isa", str),
            cpu=_get(place, "cpu", str),
            threads=_get(place, "threads", int),
            generator=_get(place, "generator", str),
        ),
        schedule=_table(data, "schedule", (int, str)),
        status=data["status"],
        reason=_get(data, "reason", str),
        samples=_samples(data),
        ratio=_ratio(data),
        beats=_get(data, "beats", bool),
        versions=_table(data, "versions", (str,)),
        profile=_get(data, "profile", str),
        time=_get(data, "time", str),
        noise=_noise(data),
        settled=_get({"settled": False, **data}, "settled", bool),
        **_by_tokens(data),
    )


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _expect(holds: bool, sentence: str) -> None:
    if not holds:
        raise BadRecord(sentence)


def _get(data: Mapping[str, Any], name: str, kind: type) -> Any:
    value = data.get(name)
    found = f"{name} is {type(value).__name__}" if name in data else f"no field {name}"
    _expect(type(value) is kind, f"{found}, expected {kind.__name__}")
    return value


def _table(data: Mapping[str, Any], name: str, kinds: tuple[type, ...]) -> Any:
    table = _get(data, name, dict)
    _expect(all(type(value) in kinds for value in table.values()), f"{name} holds a value of another type")
    return table


def _dims(kernel: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    return tuple(_table(kernel, "dims", (int,)).items())


def _samples(data: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    samples = _get(data, "samples", dict)
    for point, seconds in samples.items():
        _expect(type(seconds) is list and all(map(_positive, seconds)), f"samples of {point} are no seconds")
    return {point: tuple(seconds) for point, seconds in samples.items()}


def _by_tokens(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a record knows of calls by their tokens: nothing, if it is older than that."""
    if "ratios" not in data:
        return {}
    tables = {part: _get(data, part, dict) for part in ("larger", "ratios")}
    for part, firsts in (("larger", BUCKETS[1:]), ("ratios", BUCKETS)):
        for first in tables[part]:
            _expect(first in map(str, firsts), f"{part} begins at {first} tokens, expected some of {firsts}")
    for ratio in tables["ratios"].values():
        _expect(_positive(ratio), f"ratios holds {ratio!r}, expected positive numbers")
    larger = {int(first): _table(tables["larger"], first, (int, str)) for first in tables["larger"]}
    ratios = {int(first): ratio for first, ratio in tables["ratios"].items()}
    return {"larger": larger, "ratios": ratios, "leads": _get(data, "leads", bool)}


def _ratio(data: Mapping[str, Any]) -> float | None:
    ratio = data.get("ratio")
    _expect(ratio is None or _positive(ratio), f"ratio is {ratio!r}, expected a positive number or null")
    _expect(data["status"] != "ok" or ratio is not None, "status is ok but there is no ratio")
    return ratio


def _noise(data: Mapping[str, Any]) -> float | None:
    noise = data.get("noise")  # older records have none
    exact = type(noise) in (int, float) and noise == 0
    _expect(noise is None or exact or _positive(noise), f"noise is {noise!r}, expected a number or null")
    return noise


def _positive(number: object) -> bool:
    return type(number) in (int, float) and math.isfinite(number) and number > 0  # type: ignore[arg-type,operator]
