"""`moec log refit`: the guesses that simulated times are made of, fitted to times that a device took."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .cli import Refused, as_json, say, with_log
from .log_commands import example, opened, warn, with_kernel, write, writing

if TYPE_CHECKING:
    from ..targets.base import Took
    from ..tuning.log import Log
    from ..tuning.record import Record

T = TypeVar("T")

CALLS = 100
SCHEDULES = 8  # of one call at most


@click.command(
    epilog=example("refit", "refit --log npu.jsonl -o constants.json", "refit --kernel grouped --json")
)
@with_log
@with_kernel
@click.option(
    "--calls", default=CALLS, show_default=True, type=click.IntRange(1), help="How many to fit to, about."
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File to write the constants to.")
@as_json
def refit(log: Path | None, kernel: str, calls: int, out: Path | None, machine: bool) -> None:
    """Fit the guesses that a target's simulated times are made of to times that its device took.

    For Ascend: where a machine has an NPU, `moec tune --target ascend` logs what kernels take there. Prints
    each constant before and after, and how well simulated times rank the same schedules, which favours what
    was fitted to them. Times with weights in a cache, as of small models, do not count, for none are
    simulated. The constants count where MOEC_ASCEND_CONSTANTS names the file of -o; what is simulated with
    them has records of its own.
    """
    from ..targets.base import CannotBuild
    from .log_tables import refitted

    if out is not None and out.exists():
        raise Refused(f"{out} is there already; write to another name, or remove it first")
    found = opened(log)
    records = [each for each in found if kernel.casefold() in str(each.kernel).casefold()]
    warn(found)
    rows: list[dict[str, Any]] = []
    for isa, target in refitting({record.fingerprint.isa for record in records}):
        if times := some(taken(target, records), calls):
            try:
                rows.append({"isa": isa, **asdict(target.refit(times))})
            except CannotBuild as error:
                raise Refused(f"{isa}: {error}") from None
    if not rows:
        raise Refused(
            f"{found.path} has no times that a device took by these sources, for kernels whose weights no "
            "cache holds, of a target that simulates where there is no device; tune a model that is larger "
            "than the cache with --target ascend on a machine with an NPU and CANN's hivmc first"
        )
    if out is not None:
        keep(found, rows, out)
    say(machine, rows, lambda console: console.print(*map(refitted, rows)))


def keep(log: Log, rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Writes the constants after. Raises Refused where they are of several levels."""
    if len(rows) > 1:
        levels = ", ".join(row["isa"] for row in rows)
        raise Refused(f"a file holds constants of one level, and the log has times of {levels}")
    constants = {name: after for name, (_, after) in rows[0]["constants"].items()}
    text = json.dumps({"isa": rows[0]["isa"], "constants": constants}, indent=1)
    with writing(log, out):
        write([f"{text}\n"], out)


def refitting(levels: set[str]) -> Iterator[tuple[str, Any]]:
    """Targets whose times are simulated from guesses, by their levels among these."""
    from ..targets.base import CannotBuild, Refitting
    from .rooms import rooms, target_of

    for name in rooms():
        for level in sorted(levels):
            try:
                target = target_of(name, level)
            except CannotBuild:
                continue
            if isinstance(target, Refitting):
                yield level, target


def taken(target: Any, records: Sequence[Record]) -> list[Took]:
    """What its device took, weights cold, of kernels that these sources write, call by call; the median where
    it was timed more than once.
    """
    from ..targets.base import Took, serving
    from ..tuning.fingerprint import of_target
    from ..tuning.record import PROFILE, spelled
    from ..tuning.worth import tokens_of

    name, found = target.capabilities.name, dict[Any, list[float]]()
    place, which = of_target(target, 1, name), dict[Any, Took]()
    for record in records:
        here = place.of(record.kernel)
        ours = (record.fingerprint.isa, record.fingerprint.cpu, record.fingerprint.sources)
        if record.status != "ok" or record.profile != PROFILE or ours != (name, name, here.sources):
            continue
        for point, seconds in record.samples.items():
            schedule = record.schedules[serving(record.schedules, tokens_of(point))]
            key = (str(record.kernel), point, spelled({1: schedule}))
            found.setdefault(key, []).extend(seconds)
            which[key] = Took(record.kernel, schedule, point, median(found[key]))
    return list(which.values())


def some(times: Sequence[Took], most: int) -> list[Took]:
    """So many of them, about, from all over the log: several of one call, so that they can be ranked."""
    groups: dict[Any, list[Took]] = {}
    for each in times:
        groups.setdefault((each.kernel, each.point), []).append(each)
    thinned = [spread(sorted(group, key=lambda took: took.seconds), SCHEDULES) for group in groups.values()]
    several = [group for group in thinned if len(group) > 1] or thinned
    return [each for group in spread(several, max(1, most // SCHEDULES)) for each in group]


def spread(items: Sequence[T], most: int) -> Sequence[T]:
    """At most so many, evenly, with the first."""
    return items[:: max(1, -(-len(items) // most))]
