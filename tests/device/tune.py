"""Races the schedules of a prepared folder on this machine's GPU and keeps what comes out in a tuning log:

    PYTHONPATH=tests/.links python3 -m tests.device.tune build/device --log tuning.jsonl [KIND or MODEL ..]
        [--minutes 8] [--trials 40]

The contest, its statistics and the log are those of `moec tune`; only what may be tried was chosen and built
on another machine, which then takes the winners: moec log merge tuning.jsonl. An interrupted run goes on
where it was: a schedule that the log has is not tried again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moec.targets.base import BUCKETS, Schedules
from moec.targets.cuda import target
from moec.targets.cuda.device import file_name
from moec.targets.cuda.driver import driver
from moec.tuning.contest import Contest
from moec.tuning.fingerprint import Fingerprint, of_target
from moec.tuning.judge import Worker
from moec.tuning.log import Log
from moec.tuning.record import Record, spelled

from . import index
from .index import Entry

LIMIT_S = 120  # for one trial


def main() -> int:
    """Tunes kernel by kernel, those with most to try last, and prints what was won."""
    options = parsed()
    known, machine, started = index.read(options.folder), target.target(), time.monotonic()
    log, place = Log(options.log), of_target(machine, 1)
    device, settings = machine.device(threads=1)
    settings["ahead"] = str(options.folder.absolute())
    entries = [each for each in index.chosen(known.entries, options.words) if each.others]
    end = started + 60 * options.minutes
    with Worker(device, settings, limit_s=LIMIT_S, memory_bytes=machine.addresses) as judge:
        judge.start()
        for number, entry in enumerate(entries):
            here = place.of(entry.kernel)
            share = (end - time.monotonic()) / (len(entries) - number)
            contest = Contest(
                entry.kernel, machine.space(entry.kernel), judge, log, here, versions(known.versions)
            )
            deadline = time.monotonic() + share
            for record in race(entry, contest, log, here, deadline, options.trials):
                show(entry, record, contest)
    print(f"{len(entries)} kernels in {time.monotonic() - started:.0f} s, {options.log}")
    return 0


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--trials", type=int, default=1000, help="of one kernel")
    return parser.parse_args()


def versions(of_build: Mapping[str, str]) -> dict[str, str]:
    """What built the libraries, and the driver that ran them."""
    return {**of_build, "cuda driver": driver_version(), "numpy": importlib.metadata.version("numpy")}


def driver_version() -> str:
    """The release of the kernel driver, as it tells, or else the CUDA it runs."""
    try:
        line = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
        return next(word for word in line.split() if word[0].isdigit() and "." in word)
    except (OSError, StopIteration, IndexError):
        return driver().version


def race(
    entry: Entry, contest: Contest, log: Log, place: Fingerprint, deadline: float, trials: int
) -> Iterator[Record]:
    """Tries what was built and the log does not have, in its order, until the deadline."""
    tried = {spelled(record.schedules) for record in log.of(entry.kernel, place)}
    for schedules in [each for each in candidates(entry) if spelled(each) not in tried][:trials]:
        if time.monotonic() > deadline:
            break
        yield contest.enter(schedules)
    contest.end()


def candidates(entry: Entry) -> list[Schedules]:
    """The defaults, each of them alone, then the others, as far as they were built."""
    singly = [*entry.default.values(), *entry.others]
    built = [each for each in singly if file_name(entry.kernel, each) not in entry.failed]
    return [entry.default, *({BUCKETS[0]: each} for each in built if {BUCKETS[0]: each} != entry.default)]


def show(entry: Entry, record: Record, contest: Contest) -> None:
    """A line for each trial, and what is best so far."""
    best: Any = contest.best
    gain = 1 / best.ratio if best and best.ratio else 1.0
    ratio = f"{record.ratio:.3f}" if record.ratio else record.status
    word = "" if record.status == "ok" else f" {record.reason[:160]}"
    mark = " leads" if record.leads else ""
    print(f"{entry.kernel}: {ratio}{mark}, best {gain:.2f}x {spelled(record.schedules)}{word}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
