"""What a question to a large tuning log costs.

    python -m tests.benchmarks.tuning_log [RECORDS...] [--folder FOLDER] [--whole]

Writes a log of RECORDS trials of 2000 kernels, in the order that tuning writes them and some 1.9 kB each,
into FOLDER (a temporary one), and times in fresh processes: opening it and asking for one kernel (ranked,
best, of, tuned) with no index yet, with one, with one and 1000 records more, and where none can be written;
all kernels' keys; with --whole, going through all records. The seconds do not include Python and its imports.
The log was just written, so the system has it in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from moec.targets.base import Kernel
from moec.tuning.fingerprint import Fingerprint
from moec.tuning.index import beside
from moec.tuning.record import Record

KERNELS = 2000
MARK = 987654321
PLACE = Fingerprint("x86-64-v4", "A processor with a long name @ 2.00GHz", 2, "0123456789abcdef")
QUESTIONS = {
    "one kernel": "log.ranked(*key), log.best(*key), list(log.of(*key)), log.tuned(*key)",
    "all keys": "log.keys()",
    "all records": "sum(1 for _ in log)",
}
PROGRAM = """
import json, resource, sys, time
from pathlib import Path
from tests.benchmarks.tuning_log import PLACE, kernel
from moec.tuning.log import Log
key = kernel(77), PLACE
began = time.perf_counter()
log = Log(Path(sys.argv[1]))
answer = {question}
seconds = time.perf_counter() - began
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


def kernel(number: int) -> Kernel:
    return Kernel("grouped_swiglu", (("k", 2048), ("n", 64 + number), ("experts", 64)), dtype="int4")


def line(number: int, dice: random.Random, status: str, beats: bool) -> bytes:
    """A record of a kernel, its samples made up; MARK stands for what its trials differ in."""
    samples = {f"m={m}": [dice.uniform(1e-4, 2e-4) for _ in range(12)] for m in (1, 4, 16, 64, 256)}
    ratio, versions = dice.uniform(0.7, 1.5), {"tvm": "0.25.0", "compiler": "clang 20.1.2"}
    ratios = dict.fromkeys((1, 2, 5, 17, 65), ratio)
    knobs = {"mr": MARK, "nr": 32, "unroll": 2, "group": 256, "grain": 4096}
    words = (kernel(number), PLACE, knobs, status, "", samples, ratio, beats, versions)
    return Record(*words, ratios=ratios).line().encode() + b"\n"


def lines(records: int, seed: int = 0) -> Iterator[bytes]:
    """Trials, kernel by kernel: a few won, and the last of each kernel says that its search ended."""
    dice, each = random.Random(seed), max(3, records // KERNELS)
    for number in range(-(-records // each)):
        lost, won, done = (
            line(number, dice, status, beats)
            for status, beats in (("ok", False), ("ok", True), ("done", False))
        )
        for trial in range(min(each, records - number * each)):
            which = done if trial == each - 1 else won if trial % 40 == 0 else lost
            yield which.replace(str(MARK).encode(), str(trial).encode(), 1)


def ask(log: Path, what: str) -> str:
    """Seconds, and the process's most memory."""
    command = [sys.executable, "-c", PROGRAM.format(question=QUESTIONS[what]), str(log)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds, kilobytes = json.loads(said)
    return f"{seconds:8.3f} s {kilobytes / 1024:7.0f} MiB"


def measure(log: Path, whole: bool) -> Iterator[tuple[str, str]]:
    yield "one kernel, no index yet", ask(log, "one kernel")
    if beside(log).exists():
        yield "one kernel, with an index", ask(log, "one kernel")
        with log.open("ab") as stream:
            stream.writelines(lines(1000, seed=1))
        yield "one kernel, 1000 records later", ask(log, "one kernel")
        beside(log).unlink()
        os.mkdir(beside(log))  # not even root can write it now
        yield "one kernel, no index possible", ask(log, "one kernel")
        os.rmdir(beside(log))
        ask(log, "one kernel")
    yield "all keys", ask(log, "all keys")
    if whole:
        yield "all records", ask(log, "all records")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", nargs="*", type=int, default=[3000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where to write the logs; default: a temporary one")
    parser.add_argument("--whole", action="store_true", help="also go through all records")
    options = parser.parse_args()
    for records in options.records:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            log = Path(folder) / "log.jsonl"
            with log.open("wb") as stream:
                stream.writelines(lines(records))
            print(f"{records} records, {log.stat().st_size / 1e6:.0f} MB")
            for what, found in measure(log, options.whole):
                print(f"  {what:34}{found}", flush=True)
            if beside(log).exists():
                print(f"  the index: {beside(log).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
