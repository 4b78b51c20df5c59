"""What MODEL may be, and what is said where it is not."""

from __future__ import annotations

import json
from pathlib import Path

import models
import pytest
import torch

from moec.compiler.checkpoint import BadModel, Checkpoint
from moec.compiler.source import resolve


def write_config(folder: Path, **fields: object) -> Path:
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_folder_with_weights(tmp_path: Path) -> None:
    models.save(tmp_path, "deepseek_v2")
    source = resolve(str(tmp_path))
    assert source.family == "deepseek_v2"
    assert isinstance(source.checkpoint, Checkpoint)


def test_config_alone(tmp_path: Path) -> None:
    models.config("deepseek_v3").save_pretrained(tmp_path)
    for source in (resolve(config=tmp_path, random_weights=5), resolve(str(tmp_path), random_weights=5)):
        assert (source.family, source.seed, source.checkpoint) == ("deepseek_v3", 5, None)
    assert resolve(config=tmp_path / "config.json").seed is None


def test_function(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\ndef make(): return torch.nn.Linear(3, 2), torch.randn(4, 3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    source = resolve("mine:make")
    assert isinstance(source.module, torch.nn.Linear)
    assert [tuple(x.shape) for x in source.inputs] == [(4, 3)]
    for model, words in (
        ("nowhere:make", "can not import nowhere"),
        ("mine:other", "other"),
        ("json:dumps", "calling it raised TypeError"),
        ("builtins:dict", "returned dict, expected"),
    ):
        with pytest.raises(BadModel, match=words):
            resolve(model)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "llama"}, "unknown architecture 'llama'; known: deepseek_v2, deepseek_v3, qwen3_moe"),
        ({}, "unknown architecture None"),
        (
            {"model_type": "deepseek_v3", "n_routed_experts": None},
            "nothing to compile for: .* no routed experts",
        ),
        ({"model_type": "qwen3_moe", "num_experts": 0}, "nothing to compile for"),
        (
            {"model_type": "deepseek_v3", "first_k_dense_replace": 4, "num_hidden_layers": 4},
            "all 4 layers are dense",
        ),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, fields: dict[str, object], words: str) -> None:
    with pytest.raises(BadModel, match=words):
        resolve(config=write_config(tmp_path, **fields))


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="no such folder"):
        resolve(str(tmp_path / "missing"))
    with pytest.raises(BadModel, match=r"no config\.json in it"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadModel, match="not JSON"):
        resolve(str(tmp_path))
    write_config(tmp_path, model_type="qwen3_moe", num_experts=8)
    with pytest.raises(BadModel, match=r"no \*\.safetensors"):
        resolve(str(tmp_path))
