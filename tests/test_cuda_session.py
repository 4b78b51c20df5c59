"""A compiled model in sessions over a stand-in for the CUDA driver: kernels do nothing, all else is real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest

from moec.compiler import compile_model
from moec.targets import native
from moec.targets.base import Space

STAND_IN = Path(__file__).parent / "targets" / "stand_in_cuda.cc"
NVCC = """#!/bin/sh
printf '\\177ELF' > kernel.cubin
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="loads libcuda.so.1 from LD_LIBRARY_PATH")

Run = Callable[..., tuple[str, list[str]]]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, its kernels lowered, one way each, and given to a compiler that makes nothing of them."""
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "bin").mkdir()
    (folder / "bin" / "nvcc").write_text(NVCC)
    (folder / "bin" / "nvcc").chmod(0o755)
    models.save(folder / "hub", "deepseek_v3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Space, "defaults", property(lambda space: {1: space.default}))
        patch.setenv("CUDA_HOME", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("XDG_DATA_HOME", str(folder / "data"))
        compile_model(str(folder / "hub"), "cuda", isa="sm_90a", out=folder / "out", prove=False)
    return folder / "out"


@pytest.fixture
def run(artifact: Path, tmp_path: Path) -> Run:
    """Runs Python in a process that finds the stand-in; gives what it prints and the stand-in's log."""
    flags = ("-std=c++17", "-O1", "-shared", "-fPIC")
    native.run(native.find_compiler(), *flags, STAND_IN, "-o", tmp_path / "libcuda.so.1")
    log = tmp_path / "log"
    settings = {"LD_LIBRARY_PATH": str(tmp_path), "STAND_IN_LOG": str(log), "STAND_IN_MEMORY": "4000000000"}

    def run(*arguments: Any) -> tuple[str, list[str]]:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = log.read_text().splitlines()
        assert not [line for line in lines if line.startswith("wrong")]
        return done.stdout, lines

    return run


TEXTS = """
import sys
import numpy as np
from moec.compiler import load

artifact = load(sys.argv[1])
ids = np.arange(2, 14).reshape(2, 6)
mask = np.array([[0] * 2 + [1] * 4, [1] * 6])
for _ in range(2):
    print(artifact.generate(ids, 8, mask).shape, artifact.generate(ids[:1, :1], 3).shape)
print(artifact.logits(ids, mask).shape)
"""


def test_steps_of_one_token_are_recorded_once_for_texts_of_one_size(run: Run, artifact: Path) -> None:
    printed, lines = run("-c", TEXTS, artifact)
    assert printed.splitlines() == [*["(2, 14) (1, 4)"] * 2, "(2, 6, 64)"]
    # Texts of another size take their place, so each is recorded again; then every token is a replay.
    assert lines.count("begin capture") == lines.count("end capture") == 4
    assert lines.count("launch graph") == 2 * (8 + 3)


def test_only_the_last_logits_of_a_prompt_are_fetched(run: Run, artifact: Path) -> None:
    _, lines = run("-c", TEXTS, artifact)
    opened = next(i for i, line in enumerate(lines) if line.startswith("launch") and "copying" not in line)
    sizes = [int(line.split()[2]) for line in lines[opened:] if line.startswith("launch copying")]
    vocabulary = 4 * 64
    assert sizes.count(2 * 6 * vocabulary) == 1  # of Artifact.logits, which is asked for all of them
    assert sizes.count(2 * 5 * vocabulary) == 0
    assert sizes.count(2 * vocabulary) == 2 * 8


def test_bench_and_profile(run: Run, artifact: Path) -> None:
    sizes = ("--prompt", 6, "--max-new", 5)
    printed, _ = run("-m", "moec.compiler", "bench", artifact, *sizes, "--json")
    assert json.loads(printed)["decode_tokens_per_second"] > 0
    printed, _ = run("-m", "moec.compiler", "bench", artifact, *sizes, "--profile", "--json")
    prefill, decode = json.loads(printed)["phases"]
    # The stand-in's clock always says the same: for a recorded step, and for each kernel by itself.
    assert decode["kernel_seconds"] == pytest.approx(125e-6)
    assert prefill["kernel_seconds"] == pytest.approx(2 * 125e-6)
    for part in decode["kernels"]:
        assert part["seconds"] == pytest.approx(part["calls"] * 125e-6)
