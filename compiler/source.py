"""What the user means by MODEL: a Hugging Face folder, a config alone, or a function of their own."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import BadModel as BadModel
from .checkpoint import Checkpoint

# model_type -> what the family's config calls the number of routed experts (first name found counts).
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "deepseek_v2": ("n_routed_experts", "num_experts"),
    "deepseek_v3": ("n_routed_experts", "num_local_experts"),
    "qwen3_moe": ("num_experts", "num_local_experts"),
}


@dataclass(frozen=True)
class Source:
    """A model that is known to exist and to be of a kind we compile; nothing of it is in memory yet.

    A causal language model has a `config`; its weights come from `checkpoint` or `seed`, or there are none.
    Any other model has a `module` and its example `inputs`.
    """

    name: str
    family: str
    config: Path | None = None
    checkpoint: Checkpoint | None = None
    seed: int | None = None
    module: Any = None
    inputs: tuple[Any, ...] = ()


def resolve(model: str = "", config: Path | None = None, random_weights: int | None = None) -> Source:
    """Find what `model` names: a folder, `package.module:function`, or nothing where `config` is given.

    Raises BadModel, with a sentence for the user, where it is not there or can not be compiled.
    """
    if config is None and ":" in model and not Path(model).exists():
        return call(model)
    folder = Path(model) if config is None else config
    file = config_file(folder)
    family = family_of(file)
    if config is not None or random_weights is not None:
        return Source(str(folder), family, config=file, seed=random_weights)
    return Source(model, family, config=file, checkpoint=Checkpoint(file.parent))


def config_file(path: Path) -> Path:
    """The config.json in a folder, or the path itself where it is a file."""
    if not path.exists():
        raise BadModel(f"{path}: no such folder; MODEL is a Hugging Face folder or package.module:function")
    file = path / "config.json" if path.is_dir() else path
    if not file.exists():
        raise BadModel(f"{path}: no config.json in it, so this is not a Hugging Face model folder")
    return file


def family_of(file: Path) -> str:
    """The model_type of a config.

    Raises BadModel where it is none we know, or has no experts.
    """
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise BadModel(f"{file}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise BadModel(f"{file}: holds a {type(config).__name__}, expected a config with a model_type")
    family: Any = config.get("model_type")
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise BadModel(
            f"{file}: unknown architecture {family!r}; known: {known}; "
            "any other module can be given as package.module:function"
        )
    experts = next((config[name] for name in FAMILIES[family] if name in config), None)
    dense = config.get("first_k_dense_replace") or 0
    if not experts and any(name in config for name in FAMILIES[family]):
        raise BadModel(f"{file}: nothing to compile for: the config has no routed experts ({experts!r})")
    if dense >= config.get("num_hidden_layers", dense + 1):
        raise BadModel(
            f"{file}: nothing to compile for: all {dense} layers are dense (first_k_dense_replace)"
        )
    return str(family)


def call(model: str) -> Source:
    """Import `package.module:function`, call it, and take the module and the example inputs it returns.

    Raises BadModel where one of these can not be done.
    """
    path, _, name = model.partition(":")
    try:
        function = getattr(importlib.import_module(path), name)
    except ImportError as error:
        raise BadModel(f"{model}: can not import {path}: {error}; is it on PYTHONPATH?") from error
    except AttributeError:
        raise BadModel(f"{model}: there is no {name} in {path}") from None
    try:
        made = function()
    except Exception as error:
        raise BadModel(f"{model}: calling it raised {type(error).__name__}: {error}") from error
    if not isinstance(made, tuple) or len(made) != 2 or not hasattr(made[0], "named_parameters"):
        raise BadModel(f"{model}: returned {type(made).__name__}, expected (torch.nn.Module, example inputs)")
    module, inputs = made
    return Source(model, "module", module=module, inputs=inputs if isinstance(inputs, tuple) else (inputs,))
