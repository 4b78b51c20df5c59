"""Artifacts that are not what they were, and prompts that do not fit: refused before anything is opened."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from moec.compiler.manifest import SEAL, seal
from moec.targets.cpu import isa

from . import models
from .command import leaves_alone, moec, printed, refused
from .conftest import Compile

FAMILY = "deepseek_v3"

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="session")
def artifact(compiled: Compile) -> Path:
    return compiled(FAMILY).out


@pytest.fixture
def damaged(artifact: Path, tmp_path: Path) -> Path:
    """A copy of the artifact, to be damaged."""
    return Path(shutil.copytree(artifact, tmp_path / "damaged"))


# artifacts


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def listed(artifact: Path) -> list[str]:
    return sorted(json.loads((artifact / "manifest.json").read_text())["files"])


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_flipped_byte(damaged: Path, place: float) -> None:
    names = listed(damaged)
    assert {"libmoec_cpu.so", "model.onnx"} < set(names)
    for name in names:
        file = damaged / name
        position = int(place * (file.stat().st_size - 1))
        flip(file, position)
        for command in (("run", "--tokens", "1"), ("bench",)):
            sentence = leaves_alone(damaged, command[0], damaged, *command[1:])
            assert f"{file} was altered" in sentence
        flip(file, position)
    assert moec("run", damaged, "--tokens", "1", "--max-new", 1).exit_code == 0


def test_one_flipped_byte_of_the_manifest(damaged: Path) -> None:
    manifest = damaged / "manifest.json"
    sound = json.loads(data := manifest.read_bytes())
    refusals = 0
    for position in np.linspace(0, len(data) - 2, 40).astype(int):
        flip(manifest, position)
        if not says(manifest, sound):
            assert "manifest.json" in refused("run", damaged, "--tokens", "1")
            refusals += 1
        flip(manifest, position)
    assert refusals > 30


def says(manifest: Path, content: object) -> bool:
    """Whether a file still says the same: the last of 17 digits may not change the number that is read."""
    try:
        return bool(json.loads(manifest.read_bytes()) == content)
    except ValueError:
        return False


@pytest.mark.parametrize("name", ["model.onnx", "libmoec_cpu.so", "manifest.json"])
def test_a_missing_file(damaged: Path, name: str) -> None:
    (damaged / name).unlink()
    assert name in leaves_alone(damaged, "run", damaged, "--tokens", "1")


def test_an_artifact_for_another_cpu(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = isa.cpu_flags() - {"avx2"}
    monkeypatch.setattr(isa, "cpu_flags", lambda: lacking)
    sentence = refused("run", artifact, "--tokens", "1")
    assert "this CPU lacks avx2" in sentence
    assert "compile the model for this machine" in sentence


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "..", "weights/../../secret"])
def test_an_artifact_that_reaches_outside(damaged: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("s")
    manifest = json.loads((damaged / "manifest.json").read_text())
    del manifest[SEAL]
    manifest["files"][name] = {"size": 1, "sha256": hashlib.sha256(b"s").hexdigest()}
    (damaged / "manifest.json").write_text(json.dumps({**manifest, SEAL: seal(manifest)}))
    assert repr(name) in leaves_alone(tmp_path, "run", damaged, "--tokens", "1")


def test_no_artifact(tmp_path: Path) -> None:
    assert "has no manifest.json" in refused("run", tmp_path, "--tokens", "1")
    assert "is not a folder" in refused("bench", tmp_path / "nowhere")


# prompts


@pytest.mark.parametrize("tokens", ["", "a,b", "1,,2", "1.5", "1;2"])
def test_tokens_that_are_none(artifact: Path, tokens: str) -> None:
    assert f"{tokens!r} is not a list of token ids such as 1,2,3" in refused(
        "run", artifact, "--tokens", tokens
    )


@pytest.mark.parametrize("token", [-1, models.VOCAB])
def test_a_token_outside_the_vocabulary(artifact: Path, token: int) -> None:
    sentence = refused("run", artifact, "--tokens", f"1,{token}")
    assert f"got token id {token}, but the vocabulary is 0..{models.VOCAB - 1}" in sentence


def test_more_tokens_than_positions(artifact: Path) -> None:
    positions = models.config(FAMILY).max_position_embeddings
    prompt = ",".join(["1"] * positions)
    sentence = refused("run", artifact, "--tokens", prompt, "--max-new", 2)
    assert str(positions) in sentence
    assert str(positions + 2) in sentence


def test_a_model_that_takes_no_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import torch\ndef made():\n    return torch.nn.Tanh(), torch.ones(3, 4)\n"
    (tmp_path / "tanh_model.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    printed("compile", "tanh_model:made", "-o", tmp_path / "out")
    for command in (("run", "--tokens", "1"), ("bench",)):
        assert "is no language model" in refused(command[0], tmp_path / "out", *command[1:])
