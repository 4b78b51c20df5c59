"""Records in the T4 results format, version 1.0.0, that autotuning tools share (Kernel Tuner, KTT, BAT).

T4 keeps the trials of one kernel in one document: each with its configuration, runtimes in milliseconds,
whether and why it is invalid, and the names of the measurements that were to be made small. What T4 has no
word for, the kernel and its machine, is under "metadata". Times that were not measured are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from statistics import median
from typing import Any

from .record import Record

VERSION = "1.0.0"
INVALIDITY = {
    "ok": "correct",
    "wrong": "correctness",
    "crashed": "runtime",
    "timeout": "timeout",
    "refused": "constraints",
}


def documents(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """A document for each kernel, machine and profile, by a name to call its file."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault((record.kernel, record.fingerprint, record.profile), []).append(record)
    names: dict[str, dict[str, Any]] = {}
    for number, group in enumerate(groups.values(), 1):
        names[f"{number:03d}-{str(group[0].kernel).replace(' ', '-')}.json"] = document(group)
    return names


def document(records: Iterable[Record]) -> dict[str, Any]:
    """The trials of one kernel on one kind of machine. Records that are no trials (done) are left out."""
    trials = [record for record in records if record.status in INVALIDITY]
    about = {"timeunit": "milliseconds"} | ({"kernel": _about(trials[0])} if trials else {})
    return {"schema_version": VERSION, "metadata": about, "results": [*map(_result, trials)]}


def _about(record: Record) -> dict[str, Any]:
    kernel = record.kernel
    what = {"kind": kernel.kind, "dims": dict(kernel.dims), "dtype": kernel.dtype}
    return {**what, **asdict(record.fingerprint), "profile": record.profile}


def _result(record: Record) -> dict[str, Any]:
    milliseconds = {point: [1e3 * time for time in times] for point, times in record.samples.items()}
    return {
        "timestamp": record.time,
        "configuration": _configuration(record),
        "times": {"runtimes": [time for times in milliseconds.values() for time in times]},
        "invalidity": INVALIDITY[record.status],
        "correctness": int(record.status == "ok"),
        "measurements": _measurements(record, milliseconds),
        "objectives": ["ratio"],
    }


def _configuration(record: Record) -> dict[str, int | str]:
    """The schedule's knobs; those for calls of more tokens say from how many: "nr from 17"."""
    larger = {
        f"{knob} from {first}": value
        for first, knobs in record.larger.items()
        for knob, value in knobs.items()
    }
    return {**record.schedule, **larger}


def _measurements(record: Record, milliseconds: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """ratio is the time over the default's; time is the median in milliseconds, at each point."""
    found = [] if record.ratio is None else [{"name": "ratio", "value": record.ratio, "unit": ""}]
    medians = {point: median(times) for point, times in milliseconds.items() if times}
    return found + [{"name": f"time {point}", "value": ms, "unit": "ms"} for point, ms in medians.items()]
