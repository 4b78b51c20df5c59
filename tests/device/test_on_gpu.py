"""Kernels on this machine's GPU; skipped where there is none. `make test-cuda` runs them.

MOEC_PREPARED names a folder that tests.device.prepare filled on another machine. Without it, kernels of tiny
models are built here, which takes TileLang and nvcc.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moec.targets.base import CannotBuild
from moec.targets.cuda import build

from .check import any_gpu
from .models import FOLDER, MODELS

TINY = ("tiny_deepseek_v3", "tiny_qwen3_moe")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of kernels for this GPU."""
    if why := any_gpu():
        pytest.skip(why)
    if folder := os.environ.get("MOEC_PREPARED"):
        return Path(folder)
    try:
        build.find_tools()
    except CannotBuild as cannot:
        pytest.skip(f"MOEC_PREPARED names no folder, and kernels cannot be built here: {cannot}")
    made = tmp_path_factory.mktemp("device")
    said("prepare", made, "--of", *TINY, "--models")
    return made


def said(module: str, *arguments: object) -> str:
    """What a module of this folder prints; it must succeed."""
    command = [sys.executable, "-m", f"tests.device.{module}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_kernels_compute_what_their_references_do(prepared: Path) -> None:
    print(said("check", prepared))


@pytest.mark.parametrize("name", MODELS)
def test_models_compute_what_pytorch_does(prepared: Path, name: str) -> None:
    if not (prepared / FOLDER / f"{name}.npz").exists():
        pytest.skip(f"{name} was not prepared")
    print(said("models", prepared, name))
