"""What a short budget leaves on the table: the demo tuned with two budgets, into fresh logs, measured anew.

    python -m tests.benchmarks.budgets 60s 600s [--threads N]

Every kernel's winners of the first race those of the second. The last line is the model's kernels together,
each by the share of the time that the search takes it to have (calls times work), and what the bounds add up
to.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

from moec.compiler.conditions import conditions
from moec.compiler.driver import Clock, understand
from moec.compiler.planning import planned
from moec.compiler.progress import quiet
from moec.compiler.rooms import target_of
from moec.compiler.source import resolve
from moec.tuning.judge import Worker
from moec.tuning.log import Log
from moec.tuning.search import Budget

from .tuner import DEMO, raced


def main() -> None:
    """Prints a row for each kernel, and the sum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("budgets", nargs=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--logs", type=Path, help="a folder that keeps the logs: called again, tunes go on")
    given = parser.parse_args()
    machine = target_of("cpu", None)
    front = understand(resolve("", DEMO), machine, Clock(quiet), None, False, None, "f32")
    called = conditions(machine, front.graph, front.kernels.values(), given.threads)
    plans = []
    with tempfile.TemporaryDirectory(prefix="moec-budgets-") as scratch:
        for budget in given.budgets:
            log, started = Log((given.logs or Path(scratch)) / f"{budget}.jsonl"), time.perf_counter()
            plans.append(planned(front, log, Budget.parse(budget), called, quiet))
            print(f"{budget}: {time.perf_counter() - started:.0f} s, {len(log.records)} records", flush=True)
    uses = Counter(front.kernels.values())
    total = sum(count * kernel.work for kernel, count in uses.items())
    sums = [0.0, 0.0, 0.0]
    with Worker(*called.device) as judge:
        judge.start()
        for kernel, choice in plans[0].items():
            share, row = uses[kernel] * kernel.work / total, (1.0, 1.0, 1.0)
            if ratio := raced(judge, kernel, choice.schedules, plans[1][kernel].schedules):
                row = (ratio.lower, ratio.value, ratio.upper)
                print(f"{share:5.1%} {kernel}: {row[1]:.3f} ({row[0]:.3f}-{row[2]:.3f})", flush=True)
            sums = [so_far + share * part for so_far, part in zip(sums, row)]
    print(
        f"{given.budgets[0]} takes {sums[1]:.3f} ({sums[0]:.3f}-{sums[2]:.3f}) of {given.budgets[1]}'s time"
    )


if __name__ == "__main__":
    main()
