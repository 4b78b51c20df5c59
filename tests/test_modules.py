"""Models of the user's own, and what tuning leaves behind: with them a search is short enough to test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moec.compiler import compile_model, explain, load
from moec.compiler.checkpoint import BadModel
from moec.tuning.log import Log

from .command import printed

MODULE = '''
import torch
from torch import nn


class Plain(nn.Module):
    """Nothing here is of a mixture of experts."""

    def __init__(self):
        super().__init__()
        self.scales = nn.Parameter(torch.randn(5, 6))

    def forward(self, x, y):
        return (x[:, None] * self.scales).tanh().amax(-1), (x - y).sigmoid()


class Loudest(nn.Module):
    """Of the chosen experts the loudest counts, not their sum: nearly a mixture of experts as we know it."""

    def __init__(self, experts=6, hidden=8, width=12):
        super().__init__()
        self.gate = nn.Linear(hidden, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, 2 * width, hidden))
        self.down = nn.Parameter(torch.randn(experts, hidden, width))

    def forward(self, x):
        weights, ids = self.gate(x).softmax(-1).topk(2)
        rows = x[:, None].expand(-1, 2, -1).reshape(-1, x.shape[1], 1)
        gate, up = (self.up[ids.reshape(-1)] @ rows).squeeze(-1).chunk(2, -1)
        y = self.down[ids.reshape(-1)] @ (nn.functional.silu(gate) * up)[..., None]
        return (y.reshape(-1, 2, x.shape[1]) * weights[..., None]).amax(1)


class Products(nn.Module):
    """Products with weights, one after the other."""

    def __init__(self, *sizes):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in zip(sizes, sizes[1:]))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Branches(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1


def branches():
    return Branches(), torch.ones(3, 5)


def plain():
    torch.manual_seed(0)
    return Plain(), (torch.randn(3, 6), torch.randn(3, 6))


def loudest():
    torch.manual_seed(0)
    return Loudest(), torch.randn(5, 8)


def pair():
    return Products(24, 40, 24), torch.randn(3, 24)


def triple():
    return Products(40, 24, 40, 24), torch.randn(3, 40)
'''


@pytest.fixture(scope="module")
def own(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The user's module, importable."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_models.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder))
        import own_models

        yield own_models


def difference(out: Path, module: Any, *inputs: torch.Tensor) -> float:
    """How far the artifact is off the module, relative to the largest value of an output."""
    with torch.no_grad():
        wanted = module.double()(*(x.double() for x in inputs))
    wanted = [x.numpy() for x in (wanted if isinstance(wanted, tuple) else (wanted,))]
    got = load(out, threads=1).session.run(None, {f"in.{i}": x.numpy() for i, x in enumerate(inputs)})
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(got, wanted, strict=True))


def test_a_model_without_experts_compiles_as_it_is(own: Any, tmp_path: Path) -> None:
    found = printed("compile", "own_models:plain", "-o", tmp_path / "out", "--threads", 1)
    assert found["kernels"] == []
    assert found["misses"] == []
    assert found["proof"]["max_error"] < 1e-5
    module, _ = own.plain()
    torch.manual_seed(1)
    assert difference(tmp_path / "out", module, torch.randn(11, 6), torch.randn(11, 6)) < 1e-5


def test_a_module_that_cannot_be_exported(own: Any) -> None:
    with pytest.raises(BadModel, match=r"branches: torch.export can not follow it: .*; .*no branch"):
        explain("own_models:branches")


def test_a_near_miss_compiles_unfused_and_explain_says_why(own: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = compile_model("own_models:loudest", out=out, threads=1)
    kinds = {each.kernel.split()[0] for each in made.manifest.kernels}
    assert kinds.isdisjoint({"permute", "grouped_swiglu", "grouped_combine"})
    module, _ = own.loudest()
    torch.manual_seed(2)
    assert difference(out, module, torch.randn(17, 8)) < 1e-5
    for found in (made, explain(str(out)), explain("own_models:loudest")):
        (miss,) = found.manifest.misses
        assert "the experts' results go to max, not to a sum over the chosen" in miss


def test_a_second_compile_runs_no_trial(own: Any, tmp_path: Path) -> None:
    log, steps = tmp_path / "log.jsonl", []

    def tuned(model: str, out: str, retune: bool = False) -> list[Any]:
        """The kernels of a compile with a budget; `steps` tells which trials it ran."""
        steps.clear()
        report = compile_model(
            f"own_models:{model}",
            out=tmp_path / out,
            budget="2t",
            retune=retune,
            log=log,
            threads=1,
            prove=False,
            progress=lambda step, done, total: steps.append(step) if "trial" in step else None,
        )
        return [(each.kernel, each.schedules) for each in report.manifest.kernels]

    first = tuned("pair", "first")
    assert len(first) == 2
    assert len(steps) >= 4
    before = log.read_bytes()
    assert tuned("pair", "second") == first
    assert not steps
    assert tuned("triple", "third") == first, "another model with the same kernels"
    assert not steps
    assert log.read_bytes() == before
    tuned("pair", "fourth", retune=True)
    assert len(steps) >= 4
    assert log.read_bytes().startswith(before)


def children(pid: int) -> set[int]:
    """The processes that a process started, and theirs."""
    found: set[int] = set()
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, tasks.read_text().split()):
            found |= {child} | children(child)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(true: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def test_a_kill_leaves_no_output_and_a_log_that_can_be_read(
    own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, log = tmp_path / "out", tmp_path / "log.jsonl"
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    command = [sys.executable, "-m", "moec.compiler", "compile", "own_models:pair", "-o", out]
    command += ["--budget", "10m", "--log", log, "--threads", "1", "--no-prove"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: process.poll() is not None or (log.exists() and log.read_bytes().count(b"\n") > 1))
        assert process.poll() is None
        started = children(process.pid)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert started
    wait_until(lambda: not any(map(alive, started)))
    assert not out.exists()
    found = Log(log)
    assert len(found.records) >= 2
    assert len(found.problems) <= 1
    assert all(json.loads(record.line()) for record in found.records)
    assert list(tmp_path.glob(".out.*"))
    report = compile_model("own_models:pair", out=out, log=log, threads=1)
    assert not list(tmp_path.glob(".out.*"))
    assert report.manifest.proof is not None
    assert load(out, threads=1)
