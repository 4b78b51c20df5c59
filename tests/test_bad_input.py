"""Whatever a user can get wrong: one sentence that says what was seen, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moec.compiler import library
from moec.targets.base import CannotBuild
from moec.targets.cpu import isa

from . import models
from .command import contents, leaves_alone, moec, printed, refused
from .conftest import Compile

FAMILY = "deepseek_v3"
NORM = "model.norm.weight"
EXPERT = "model.layers.1.mlp.experts.3.down_proj.weight"

Change = Callable[[Path], Any]

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="session")
def hub(compiled: Compile) -> Path:
    return compiled(FAMILY).hub


@pytest.fixture(scope="session")
def artifact(compiled: Compile) -> Path:
    return compiled(FAMILY).out


@pytest.fixture
def broken(hub: Path, tmp_path: Path) -> Path:
    """A copy of the model, to be broken."""
    return Path(shutil.copytree(hub, tmp_path / "broken"))


# models


def config(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def shard(folder: Path, tensor: str = NORM) -> Path:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / index["weight_map"][tensor]


def cut(keep: Callable[[int], int]) -> Change:
    """Only so many of a shard's bytes are there."""

    def change(folder: Path) -> None:
        data = shard(folder).read_bytes()
        shard(folder).write_bytes(data[: keep(len(data))])

    return change


def tensor(name: str, becomes: Callable[[np.ndarray], np.ndarray | None]) -> Change:
    """A tensor is another one, or gone."""

    def change(folder: Path) -> None:
        file = shard(folder, name)
        tensors = load_file(file)
        made = becomes(tensors.pop(name))
        save_file(tensors if made is None else {**tensors, name: made}, file)

    return change


INDEX = "model.safetensors.index.json"
MODELS: dict[str, tuple[Change, tuple[str, ...]]] = {
    "a missing shard": (lambda f: shard(f).unlink(), ("missing model-0", INDEX)),
    "a truncated shard": (cut(lambda size: size - 1), ("truncated", "model-0", "download it again")),
    "a shard cut within its header": (cut(lambda size: 100), ("truncated: 100 bytes",)),
    "an empty shard": (cut(lambda size: 0), ("truncated: 0 bytes",)),
    "a shard of something else": (
        lambda f: shard(f).write_bytes(b"\x04" + bytes(7) + b"abcd" + bytes(99)),
        ("not a safetensors file",),
    ),
    "a wrong shape": (tensor(NORM, lambda x: x[:-1].copy()), (f"{NORM}: [31], expected [32]", "model-0")),
    "a missing tensor": (tensor(NORM, lambda x: None), (f"{NORM}: missing, expected [32]",)),
    "a missing tensor of an expert": (tensor(EXPERT, lambda x: None), (f"{EXPERT}: missing",)),
    "a wrong shape of an expert": (tensor(EXPERT, lambda x: x.T.copy()), (f"{EXPERT}: [16, 32], expected",)),
    "a dtype nobody reads": (tensor(NORM, lambda x: x.astype(np.int16)), (NORM, "stored as I16", "BF16")),
    "an index that is none": (text(INDEX, "{"), (INDEX, "weight_map")),
    "an index of something else": (text(INDEX, "[]"), (INDEX, "weight_map")),
    "no config": (lambda f: (f / "config.json").unlink(), ("no config.json",)),
    "a torn config": (text("config.json", '{"model_type": '), ("config.json: not JSON",)),
    "a config of something else": (text("config.json", "[1]"), ("config.json",)),
    "an unknown architecture": (
        config(model_type="gpt2"),
        ("unknown architecture 'gpt2'", "deepseek_v3", "package.module:function"),
    ),
    "no experts": (
        config(n_routed_experts=None, num_experts=None, num_local_experts=None),
        ("no routed experts",),
    ),
    "dense layers only": (config(first_k_dense_replace=2), ("all 2 layers are dense",)),
    "a value that makes no sense": (config(hidden_size="wide"), ("config.json", "hidden_size")),
    "frequencies that follow the length": (
        config(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}),
        ("rope_type 'dynamic'", "yarn"),
    ),
    "more experts than there are": (config(n_routed_experts=16), ("8 experts on disk, expected 16",)),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_broken_model(broken: Path, tmp_path: Path, case: str) -> None:
    change, words = MODELS[case]
    change(broken)
    sentence = leaves_alone(tmp_path, "compile", broken, "-o", tmp_path / "out")
    assert str(broken) in sentence
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nowhere", "nowhere: no such folder"),
        ("no_such_package.module:function", "can not import no_such_package.module"),
        ("json:function", "there is no function in json"),
        ("json:dumps", "calling it raised TypeError"),
        ("platform:machine", "expected (torch.nn.Module, example inputs)"),
    ],
)
def test_a_model_that_is_not_there(tmp_path: Path, model: str, words: str) -> None:
    assert words in leaves_alone(tmp_path, "compile", model, "-o", tmp_path / "out")
    assert words in leaves_alone(tmp_path, "explain", model)


def test_a_sliding_window(tmp_path: Path) -> None:
    models.config("qwen3_moe", use_sliding_window=True, sliding_window=40).save_pretrained(tmp_path)
    assert "sliding_window is 40" in leaves_alone(tmp_path, "explain", tmp_path)


def test_a_config_has_no_weights(hub: Path, tmp_path: Path) -> None:
    assert "--random-weights" in leaves_alone(tmp_path, "compile", "--config", hub, "-o", tmp_path / "out")


# options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--target", "toaster"), ("no target 'toaster'", "cpu")),
        (("--isa", "z80"), ("no instruction set is called 'z80'", "x86-64-v3")),
        (("--budget", "soon"), ("budget 'soon' is not understood", "90s, 2m, 1h")),
        (("--budget", "-3s"), ("budget '-3s' is not understood",)),
        (("--budget", "1.5t"), ("budget '1.5t' is not understood",)),
        (("--budget", "30"), ("budget '30' is not understood",)),
        (("--threads", "0"), ("0 is not in the range",)),
        (("--config", "x"), ("either MODEL or --config, not both",)),
        (("--random-weights", "many"), ("'many' is not a valid integer",)),
    ],
    ids=str,
)
def test_a_wrong_option(hub: Path, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    sentence = leaves_alone(tmp_path, "compile", hub, "-o", tmp_path / "out", *options)
    for word in words:
        assert word in sentence


def test_no_model_and_no_out(tmp_path: Path) -> None:
    assert "give either MODEL or --config" in refused("compile", "-o", tmp_path / "out")
    assert "Missing option '-o' / '--out'" in refused("compile", "somewhere")


# the machine


def test_no_compiler(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ziglang", None)
    sentence = leaves_alone(tmp_path, "compile", hub, "-o", tmp_path / "out")
    assert "no C++ compiler" in sentence
    assert "pip install 'moec[toolchain]'" in sentence


def test_a_compiler_that_is_not_there(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O9")
    assert "CXX names 'no-such-compiler'" in leaves_alone(tmp_path, "compile", hub, "-o", tmp_path / "out")


def test_a_compiler_that_fails(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    assert "false" in leaves_alone(tmp_path, "compile", hub, "-o", tmp_path / "out")


def test_a_machine_that_runs_no_instruction_set_we_know(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isa, "cpu_flags", lambda: frozenset({"sse2"}))
    sentence = leaves_alone(tmp_path, "compile", hub, "-o", tmp_path / "out")
    assert "x86-64-v3 needs abm, avx2" in sentence


# where the output goes


def test_an_output_folder_in_use(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("dear to me")
    assert "--force" in leaves_alone(tmp_path, "compile", hub, "-o", tmp_path / "out")
    assert "no artifact" in leaves_alone(tmp_path, "compile", hub, "-o", tmp_path / "out", "--force")


@pytest.mark.parametrize("out", ["file", "file/out"])
def test_an_output_folder_that_cannot_be(hub: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("dear to me")
    assert str(tmp_path / "file") in leaves_alone(tmp_path, "compile", hub, "-o", tmp_path / out)


def test_force_keeps_the_old_artifact_until_the_new_one_is_whole(
    hub: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(artifact, tmp_path / "out"))
    assert "--force" in leaves_alone(tmp_path, "compile", hub, "-o", out)

    def fail(*arguments: Any) -> Any:
        raise CannotBuild("the disk is on fire; put it out")

    with monkeypatch.context() as patch:
        patch.setattr(library, "emit_all", fail)
        assert "put it out" in leaves_alone(tmp_path, "compile", hub, "-o", out, "--force")
    before = contents(out)
    printed("compile", "--config", hub, "--random-weights", 5, "-o", out, "--force", "--no-prove")
    assert contents(out)["weights-001.bin"] != before["weights-001.bin"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# the tuning log


def test_a_log_that_is_none(hub: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("dear diary\ntoday I tuned\n")
    for command in (("compile", hub, "-o", tmp_path / "out"), ("explain", hub), ("log", "show")):
        assert f"{log} is not a tuning log" in leaves_alone(tmp_path, *command, "--log", log)


def test_a_log_that_is_a_folder(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    for command in (("compile", hub, "-o", tmp_path / "out"), ("log", "show")):
        assert str(tmp_path / "log") in leaves_alone(tmp_path, *command, "--log", tmp_path / "log")


def test_a_log_with_a_torn_last_line_is_used_without_it(hub: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('{"schema": 1, "kernel": {"ki')
    shown = moec("log", "show", "--log", log, "--json")
    assert (shown.exit_code, json.loads(shown.stdout)) == (0, [])
    assert f"{log}:1: the last line is torn" in shown.stderr
    printed("compile", hub, "-o", tmp_path / "out", "--log", log, "--no-prove")
