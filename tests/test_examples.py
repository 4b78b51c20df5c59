"""Every example runs, and shows what it says it shows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moec.compiler import load

from .conftest import Compile

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.usefixtures("home")


def run(name: str, *arguments: Any) -> str:
    """What an example prints."""
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_is_a_test_for_each() -> None:
    tested = {"add_a_pass.py", "compile_and_generate.py", "plain_onnxruntime.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


def test_add_a_pass() -> None:
    lines = run("add_a_pass.py").splitlines()
    assert lines[0] == "without the pass: no kernel"
    assert lines[1] == "with the pass: linear_add, linear_swiglu"


def test_compile_and_generate(tmp_path: Path) -> None:
    shown = run("compile_and_generate.py", tmp_path / "out")
    assert "cache: 5120 bytes a token, not 40960" in shown
    assert "logits: (2, 5, 4096)" in shown
    tokens = [ast.literal_eval(line) for line in re.findall(r"^  (\[.*\])$", shown, re.MULTILINE)]
    assert [len(row) for row in tokens] == [17] * 4
    assert tokens[:2] != tokens[2:]
    equal = ast.literal_eval(shown.partition("against PyTorch: ")[2].splitlines()[0])
    assert equal["tokens_equal"] == equal["tokens"] > 0


def test_plain_onnxruntime(compiled: Compile) -> None:
    out = compiled("deepseek_v3").out
    shown = ast.literal_eval(run("plain_onnxruntime.py", out, 5, 17, 42))
    assert shown == load(out, threads=2).generate([[5, 17, 42]], 16)[0, 3:].tolist()
    imported = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse((EXAMPLES / "plain_onnxruntime.py").read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported == {"__future__", "sys", "pathlib", "numpy", "onnxruntime"}
