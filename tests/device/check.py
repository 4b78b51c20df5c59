"""Checks the kernels of a prepared folder on this machine's GPU, each in a process of its own:

    PYTHONPATH=tests/.links python3 -m tests.device.check build/device [KIND, MODEL or part of a name ..]
        [--jobs 6] [--json FILE] [--others] [--time] [--sanitize memcheck]

A kernel that crashes, hangs or spoils its context ends its own process and nobody else's. --others: also the
schedules besides the default. --time: seconds at each point, for those that are right, one kernel at a time.
--sanitize: under that tool of compute-sanitizer, with no margins around arrays; slow, meant for tiny kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from moec.targets.base import BUCKETS, Schedules, spans

from . import index
from .index import Entry

LIMIT_S = 240  # for all checks of one kernel
WORST = 400  # letters of a reason


def main() -> int:
    """Checks what is asked for and prints a table; fails if anything is wrong."""
    options = parsed()
    if options.one is not None:
        return one(options)
    started = time.monotonic()
    known = index.read(options.folder)
    jobs = [
        (number, which)
        for number, entry in enumerate(known.entries)
        if index.chosen([entry], options.words)
        for which in range(-1, len(entry.others) if options.others else 0)
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        done = list(pool.map(lambda job: child(options, known.entries[job[0]], *job), jobs))
    if options.time:  # alone on the GPU
        for (number, which), found in zip(jobs, done):
            if not found["wrong"]:
                found |= child(options, known.entries[number], number, which, timed=True)
    for found in sorted(done, key=lambda found: (bool(found["wrong"]), found["kernel"])):
        show(found)
    wrong = sum(bool(found["wrong"]) for found in done)
    print(f"{len(done) - wrong} right, {wrong} wrong, {time.monotonic() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(done, indent=1))
    return wrong > 0


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--others", action="store_true")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--sanitize", choices=("memcheck", "racecheck", "initcheck", "synccheck"))
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for one kernel")
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--timed", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def child(
    options: argparse.Namespace, entry: Entry, number: int, which: int, timed: bool = False
) -> dict[str, Any]:
    """What a process of its own says of one kernel, and how it ended where it did not come to an end."""
    about = {"kernel": str(entry.kernel), "of": entry.of, "schedules": spelled(entry, which), "wrong": ""}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "tests.device.check", str(options.folder)]
        command += ["--one", str(number), str(which), "--out", str(out)]
        command += ["--timed"] if timed else []
        if options.sanitize:
            tool = ["compute-sanitizer", "--tool", options.sanitize, "--error-exitcode", "99"]
            command = [*tool, *command, "--sanitize", options.sanitize]
        cores = max(1, (os.cpu_count() or 1) // (1 if timed else options.jobs))
        threads = {name: str(cores) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")}
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=options.limit,
                env={**os.environ, **threads},
            )
        except subprocess.TimeoutExpired:
            how = f"no end after {options.limit:.0f} s"
        else:
            how = ended(done) if done.returncode else ""
        found = json.loads(out.read_text()) if out.exists() else {}
    if how and not found.get("wrong"):
        at = found.get("at")
        found["wrong"] = how + (f", while it was run with {at}" if at else "")
    return {**about, **found}


def ended(done: subprocess.CompletedProcess[str]) -> str:
    """How a process ended, with its last words, or what a memory checker said first."""
    lines = (done.stdout + done.stderr).strip().splitlines()
    said = [line.strip("= ") for line in lines if line.startswith("=========")]
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
    words = " | ".join(said[1:9]) if len(said) > 2 else " ".join(lines[-1:])
    return f"{how}: {words}"[:WORST]


def schedules_of(entry: Entry, which: int) -> Schedules:
    """The default, -1, or one of the others."""
    return entry.default if which < 0 else {BUCKETS[0]: entry.others[which]}


def spelled(entry: Entry, which: int) -> str:
    """They, for people."""
    schedules = schedules_of(entry, which)
    named = zip(spans(schedules), schedules.values())
    each = (f"{span}: " + " ".join(f"{k}={v}" for k, v in knobs.items()) for span, knobs in named)
    return "default" if which < 0 else "; ".join(each)


def one(options: argparse.Namespace) -> int:
    """In the process: checks or times one kernel and writes what it found, also before each step."""
    from moec.targets.cuda.device import Device

    number, which = options.one
    known = index.read(options.folder)
    entry = known.entries[number]
    found: dict[str, Any] = {"wrong": ""}

    def note(**facts: Any) -> None:
        found.update(facts)
        options.out.write_text(json.dumps(found))

    device = Device(known.sm, ahead=str(options.folder), **({"margin": 0} if options.sanitize else {}))
    with tempfile.TemporaryDirectory() as folder:
        try:
            device.build(entry.kernel, schedules_of(entry, which), Path(folder))
        except LookupError as missing:
            note(wrong=entry.failed.get(str(missing).split()[0].strip("'"), str(missing)))
            return 1
        bench = device.bench(entry.kernel, schedules_of(entry, which), Path(folder))
        if options.timed:
            note(seconds=times(bench))
            return 0
        errors: dict[str, float] = {}
        wrong = []
        try:
            for name, why, error in bench.checks(lambda name: note(at=name)):
                errors[name] = error
                wrong += [f"with {name}, {why}"] if why else []
        except Exception as error:  # an illegal address: nothing else works in this process
            wrong.append(f"with {found.get('at')}, {type(error).__name__}: {error}")
        finite = [error for error in errors.values() if error == error and error < 1e30]
        note(errors=errors, worst=max(finite, default=None), wrong="; ".join(wrong[:3]), wrongs=len(wrong))
    return len(wrong) > 0


def times(bench: Any, repeats: int = 9) -> dict[str, float]:
    """Median seconds of a call at each point."""
    found = {}
    for point in bench.points:
        runs = sorted(bench.time(point) for _ in range(repeats))
        found[point] = runs[repeats // 2]
    return found


def show(found: Mapping[str, Any]) -> None:
    """A line of the table."""
    worst = found.get("worst")
    error = "       " if worst is None else f"{worst:.1e}"
    print(f"{'FAIL' if found['wrong'] else 'ok  '} {error} {found['kernel']} [{found['schedules']}]")
    if found["wrong"]:
        print(f"       {found['wrong'][: 2 * WORST]} ({found.get('wrongs', 1)} wrong)")
    seconds: Mapping[str, float] = found.get("seconds", {})
    if seconds:
        print("       " + ", ".join(f"{point} {1e6 * each:.1f} us" for point, each in seconds.items()))


def any_gpu() -> str:
    """Why nothing can be checked here, or nothing."""
    from moec.targets.cuda.driver import CudaError, driver

    try:
        driver()
    except CudaError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    sys.exit(main())
