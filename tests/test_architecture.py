"""Who may import whom: the contracts of pyproject.toml hold, and each of them would notice."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("compiler", "passes", "targets", "tuning")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
# contract -> a file, and a line that must not be in it
VIOLATIONS = {
    "layers": ("compiler/ir.py", "from ..passes import fold"),
    "torch": ("passes/fold.py", "import torch"),
    "onnx": ("tuning/plan.py", "import onnxruntime"),
    "tvm": ("tuning/worker.py", "import tvm"),
    "optuna": ("tuning/log.py", "import optuna"),
    "ray": ("tuning/fleet.py", "import ray"),
    "sklearn": ("tuning/plan.py", "import sklearn"),
    "networkx": ("compiler/ir.py", "import networkx"),
    "click": ("compiler/text.py", "import click"),
}


def lint_imports(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the contracts of ROOT's pyproject.toml on the rooms found as folder/moec."""
    program = "import sys; sys.path.insert(0, '.'); import importlinter.cli as it; it.lint_imports_command()"
    options = ("--no-cache", "--no-logo", *options, str(ROOT / "pyproject.toml"))
    command = [sys.executable, "-c", program, *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / "moec" / room, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_the_contracts_hold(copy: Path) -> None:
    result = lint_imports(copy)
    assert result.returncode == 0, result.stdout


def test_each_contract_has_a_violation() -> None:
    assert {contract["id"] for contract in CONTRACTS} == set(VIOLATIONS)


@pytest.mark.parametrize("contract", VIOLATIONS)
def test_a_violation_is_noticed(copy: Path, contract: str) -> None:
    name, line = VIOLATIONS[contract]
    file = copy / "moec" / name
    before = file.read_text()
    file.write_text(f"{before}\n{line}\n")
    try:
        result = lint_imports(copy, "--contract", contract)
    finally:
        file.write_text(before)
    assert result.returncode == 1
    assert "BROKEN" in result.stdout


def test_every_module_of_the_compiler_has_a_layer() -> None:
    layers = next(contract["layers"] for contract in CONTRACTS if contract["id"] == "layers")
    placed = {module.strip(" ()") for layer in layers for module in layer.split(":")}
    found = {f"moec.compiler.{path.stem}" for path in (ROOT / "compiler").glob("*.py")}
    assert found - {"moec.compiler.__init__"} - placed == set()
