"""Artifacts whose library is for another processor: the one that was linked here is taken if it is theirs."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from pathlib import Path

import numpy as np
import pytest

from moec.compiler import load
from moec.compiler.manifest import NAME, SEAL, BadArtifact, seal
from moec.targets.base import CannotBuild
from moec.targets.cpu.target import target

from . import toys

IDS = np.array([[3, 5, 8]])
HERE = platform.machine()
LINKED = f"libmoec_cpu.{HERE}.so"
SUMS = f"{LINKED}.sha256"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy with kernels, for this machine."""
    try:
        return toys.write(tmp_path_factory.mktemp("own") / "toy", target())
    except CannotBuild as cannot:
        pytest.skip(str(cannot))


@pytest.fixture
def foreign(own: Path, tmp_path: Path) -> Path:
    """The same as if its library were for another processor, which here nobody could open."""
    folder = Path(shutil.copytree(own, tmp_path / "copy"))
    shutil.move(folder / "libmoec_cpu.so", tmp_path / LINKED)
    content = b"for another processor"
    (folder / "libmoec_cpu.so").write_bytes(content)
    manifest = json.loads((folder / NAME).read_text())
    manifest["target"] |= {"linked": "pdp11", "finish": "here/finish.sh"}
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"]["libmoec_cpu.so"] = {"size": len(content), "sha256": digest}
    del manifest[SEAL]
    (folder / NAME).write_text(json.dumps({**manifest, SEAL: seal(manifest)}))
    return folder


def link(folder: Path) -> None:
    """What finish.sh leaves."""
    shutil.copy(folder.parent / LINKED, folder)
    sums = (f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}" for name in (LINKED, NAME))
    (folder / SUMS).write_text("\n".join(sums) + "\n")


def test_the_library_that_was_linked_here_runs(own: Path, foreign: Path) -> None:
    link(foreign)
    artifact = load(foreign, threads=1)
    assert artifact.manifest.target["library"] == LINKED
    np.testing.assert_array_equal(artifact.logits(IDS), load(own, threads=1).logits(IDS))


def test_without_one_a_sentence_says_how_it_is_made(foreign: Path) -> None:
    said = rf"libmoec_cpu\.so is for pdp11, and this machine is {HERE}: run \S+/copy/here/finish\.sh here"
    with pytest.raises(BadArtifact, match=said):
        load(foreign)
    assert load(foreign, threads=1, kernels=False).logits(IDS).shape == (1, 3, toys.VOCABULARY)


@pytest.mark.parametrize("changed", [LINKED, NAME])
def test_one_that_is_of_another_artifact_or_altered_is_refused(foreign: Path, changed: str) -> None:
    link(foreign)
    with (foreign / changed).open("a") as file:
        file.write("\n")
    with pytest.raises(BadArtifact, match=rf"{changed} has another SHA-256 than {SUMS} says; run finish\.sh"):
        load(foreign)


@pytest.mark.parametrize("moved", [LINKED, SUMS])
def test_links_and_what_is_missing_are_refused(foreign: Path, moved: str) -> None:
    link(foreign)
    shutil.move(foreign / moved, foreign.parent / "elsewhere")
    os.symlink(foreign.parent / "elsewhere", foreign / moved)
    with pytest.raises(BadArtifact, match=f"{moved} is no regular file"):
        load(foreign)
    (foreign / moved).unlink()
    with pytest.raises(BadArtifact, match="is no regular file" if moved == LINKED else "is for pdp11"):
        load(foreign)


def test_sums_that_are_none_are_refused(foreign: Path) -> None:
    link(foreign)
    (foreign / SUMS).write_bytes(b"\xff\xfe\n\n nothing")
    with pytest.raises(BadArtifact, match="was not linked for this artifact"):
        load(foreign)
