"""Files that were hashed once are not hashed again until something about them changes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from moec.compiler import artifact, verified
from moec.compiler.manifest import BadArtifact

from . import toys


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "RECENT_NS", -1)
    return toys.write(tmp_path / "toy")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed from here on."""
    names: list[str] = []
    original = artifact.fingerprint

    def fingerprint(path: Path) -> Any:
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(artifact, "fingerprint", fingerprint)
    return names


def test_the_second_time_nothing_is_hashed(folder: Path, hashed: list[str]) -> None:
    found = artifact.verify(folder)
    assert set(hashed) == set(found.files)
    hashed.clear()
    assert artifact.verify(folder) == found
    assert not hashed


def test_what_changed_is_hashed_again(folder: Path, hashed: list[str]) -> None:
    artifact.verify(folder)
    hashed.clear()
    file = folder / "weights-001.bin"
    os.utime(file)
    artifact.verify(folder)
    assert hashed == [file.name]


def test_an_altered_file_of_the_same_size_and_time_is_found(folder: Path) -> None:
    artifact.verify(folder)
    file = folder / "weights-001.bin"
    before, content = file.stat(), bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(BadArtifact, match="was altered"):
            artifact.verify(folder)


def test_a_copy_is_hashed(folder: Path, tmp_path: Path, hashed: list[str]) -> None:
    found = artifact.verify(folder)
    hashed.clear()
    shutil.copytree(folder, tmp_path / "copy")
    artifact.verify(tmp_path / "copy")
    assert set(hashed) == set(found.files)


def test_what_changed_just_now_is_not_trusted(
    folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "RECENT_NS", 1 << 62)
    artifact.verify(folder)
    hashed.clear()
    artifact.verify(folder)
    assert hashed


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"weights-001.bin": 3}', '{"../x": [1]}'])
def test_notes_that_make_no_sense_count_for_nothing(folder: Path, hashed: list[str], text: str) -> None:
    found = artifact.verify(folder)
    hashed.clear()
    verified.place_of(folder).write_text(text)
    artifact.verify(folder)
    assert set(hashed) == set(found.files)


def test_a_cache_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "file"))
    artifact.verify(folder)
