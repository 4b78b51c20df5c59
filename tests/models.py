"""Tiny models of every family, with weights that are not degenerate: experts differ, so routing matters.

Sizes are all different where they may be, so that a mix-up of axes shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

LAYERS = 2
VOCAB = 64

_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
}
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 2560,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_LATENT = _COMMON | {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 14,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "first_k_dense_replace": 1,
}
_V2 = _LATENT | {"n_shared_experts": 2, "rope_parameters": _YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}}
_V2_LITE = {"q_lora_rank": None, "topk_method": "greedy", "routed_scaling_factor": 1.0}
_V2_GROUPS = {
    "topk_method": "group_limited_greedy",
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 16.0,
}
_V3 = {
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
}
_QWEN = {"num_key_value_heads": 2, "head_dim": 10, "num_experts": 8, "norm_topk_prob": True}

# family -> (transformers' model_type, its config)
CONFIGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "deepseek_v2_lite": ("deepseek_v2", _V2 | _V2_LITE | {"n_group": 1, "topk_group": 1}),
    "deepseek_v2": ("deepseek_v2", _V2 | _V2_GROUPS),
    "deepseek_v3": (
        "deepseek_v3",
        _LATENT | _V3 | {"rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "qwen3_moe": ("qwen3_moe", _COMMON | _QWEN),
}
FAMILIES = tuple(CONFIGS)


def config(family: str, **changes: Any) -> Any:
    """A tiny config, with some fields otherwise."""
    model_type, fields = CONFIGS[family]
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers.AutoConfig.for_model(model_type, **{**fields, **changes})


def build(family: str, seed: int = 0, **changes: Any) -> Any:
    """A tiny causal language model in f32, with eager attention and experts."""
    made = transformers.AutoModelForCausalLM.from_config(
        config(family, **changes),
        attn_implementation="eager",
        experts_implementation="eager",
        dtype=torch.float32,
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in made.state_dict().items():
        mean, deviation = _moments(name, tensor)
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * deviation + mean)
    return made


def _moments(name: str, tensor: torch.Tensor) -> tuple[float, float]:
    if "norm" in name:
        return 1.0, 0.2
    if name.endswith("e_score_correction_bias"):
        return 0.0, 0.1
    if name.endswith("mlp.gate.weight"):
        return 0.0, 2 / math.sqrt(tensor.shape[-1])
    return 0.0, 1.0 if "embed" in name else 1 / math.sqrt(tensor.shape[-1])


def save(folder: Path, family: str, seed: int = 0, shard: str = "50GB", **changes: Any) -> Any:
    """Write a tiny model as a Hugging Face folder, in shards of at most that size; returns the model."""
    made = build(family, seed, **changes)
    made.save_pretrained(folder, max_shard_size=shard)
    return made


def tokens(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    """Random token ids [batch, length]."""
    return torch.randint(2, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
