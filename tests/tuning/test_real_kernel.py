"""The whole way once, on this machine: search, worker, TVM, C++ compiler, onnxruntime, log, plan."""

from __future__ import annotations

from pathlib import Path

import pytest

import moec.targets.cpu
from moec.targets.base import Kernel
from moec.targets.cpu.isa import host
from moec.targets.cpu.space import space
from moec.tuning.fingerprint import here
from moec.tuning.judge import Worker
from moec.tuning.log import Log
from moec.tuning.plan import make_plan
from moec.tuning.search import Budget, tune


def test_a_kernel_is_tuned_once(tmp_path: Path) -> None:
    kernel = Kernel("linear", (("k", 96), ("n", 40)))
    spaces = {kernel: space(kernel, host())}
    place = here(host().name, 1, Path(moec.targets.cpu.__file__).parent)
    log = Log(tmp_path / "log.jsonl")
    with Worker("moec.targets.cpu.device:Device", {"isa": host().name, "threads": 1}) as worker:
        summary = tune(spaces, worker, Budget.parse("3t"), log, place)
        first = make_plan(spaces, spaces, Log(log.path), place).json()
        again = tune(spaces, worker, Budget.parse("3t"), Log(log.path), place)
    assert (summary.trials, again.trials) == (3, 0)
    measured = [record for record in log.records if record.status not in ("done", "refused")]
    assert {record.status for record in measured} == {"ok"}, [record.reason for record in measured]
    assert measured[0].schedule == spaces[kernel].default
    assert all(min(seconds) > 0 for seconds in measured[0].samples.values())
    plan = make_plan(spaces, spaces, Log(log.path), place)
    assert plan.json() == first
    choice = plan[kernel]
    assert choice.gain == pytest.approx(1 / (log.ranked(kernel, place)[0].ratio or 0))
    assert choice.tried == 3
