"""The wheel must ship every room; an editable install hides a forgotten one."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
ROOMS = {folder: package for package, folder in SETUP["package-dir"].items()}
SHIPPED = ("*.py", "*.cc", "*.h", "py.typed")


def test_every_package_is_listed() -> None:
    found = {
        ".".join((ROOMS[path.parts[0]], *path.parts[1:]))
        for room in ROOMS
        for path in (init.parent.relative_to(ROOT) for init in (ROOT / room).rglob("__init__.py"))
    }
    assert found == set(SETUP["packages"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in a wheel built from a copy of the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ROOMS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    program = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, timeout=120, check=True)
    (built,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_source(wheel: set[str]) -> None:
    files = [path for room in ROOMS for glob in SHIPPED for path in (ROOT / room).rglob(glob)]
    expected = {f"moec/{path.relative_to(ROOT).as_posix()}" for path in files}
    assert expected <= wheel
    assert "moec/targets/cpu/kernels/matmul.py" in wheel
    assert any(name.startswith("moec/targets/runtime/") and name.endswith(".cc") for name in wheel)


def test_the_wheel_holds_nothing_else(wheel: set[str]) -> None:
    strangers = {name for name in wheel if not name.startswith("moec/") and ".dist-info/" not in name}
    assert strangers == set()
