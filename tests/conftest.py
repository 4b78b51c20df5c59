"""What all tests share: golden texts, and the tiny model of each family compiled once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from moec.targets.ascend import toolchain


@dataclass(frozen=True)
class Compiled:
    """A tiny model: its Hugging Face folder, transformers' own model of it, and what compiling it gave."""

    hub: Path
    model: Any
    out: Path
    report: Any


Compile = Callable[..., Compiled]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bless", action="store_true", help="rewrite the golden texts; review the diff")


def skipping() -> Generator[None, Any, Any]:
    """Skips what needs a toolchain that is not installed; where CI is set, that stays a failure."""
    try:
        return (yield)
    except toolchain.NotInstalled as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, Any, Any]:
    return (yield from skipping())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    return (yield from skipping())


@pytest.fixture(scope="session")
def ascend_toolchain() -> toolchain.Toolchain:
    """The one that is installed; for tests whose child processes need it, which are skipped without."""
    return toolchain.find()


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Compares a text with golden/<test name>.txt beside the test; with --bless, writes that file instead."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", request.node.name).strip("-")
    path = Path(request.node.path).parent / "golden" / f"{name}.txt"

    def compare(text: str) -> None:
        text = text.rstrip("\n") + "\n"
        if request.config.getoption("--bless"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"there is no {path}; run with --bless to write it, then review it"
        assert text == path.read_text(encoding="utf-8"), (
            f"differs from {path}; if it should, run with --bless"
        )

    return compare


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's folders of this session: tests neither see nor leave anything in the real ones, but for the
    toolchains, which are only read.
    """
    folder = tmp_path_factory.mktemp("home")
    toolchains = toolchain.folder().parent
    (folder / "data" / "moec").mkdir(parents=True)
    (folder / "data" / "moec" / "toolchains").symlink_to(toolchains)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("XDG_DATA_HOME", str(folder / "data"))
        yield folder


@pytest.fixture(scope="session")
def compiled(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compiles a family's tiny model, with changes to its config: each once a session."""
    from moec.compiler import compile_model

    from . import models

    @cache
    def compile_once(family: str, **changes: Any) -> Compiled:
        folder = tmp_path_factory.mktemp(family)
        hub, out = folder / "hub", folder / "out"
        model = models.save(hub, family, shard="60KB", **changes)
        return Compiled(hub, model, out, compile_model(str(hub), out=out, prove=False, threads=2))

    return compile_once
