"""A DeepSeek-V2 of random weights in llama.cpp's file format, written one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 32  # weights that share a scale
# format -> bytes of a block's codes, and how much a code varies where all are equally likely
FORMATS = {"Q4_0": (16, 4.6), "Q8_0": (32, 74.0)}

Shape = tuple[int, ...]


def tensors(config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    """Name and shape [.., N, K] of each tensor; those of one axis and the gates stay float32."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    yield "token_embd", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        dense = layer < config["first_k_dense_replace"]
        parts = {**attention(config), **(feed_forward(config) if dense else experts(config))}
        yield from ((f"blk.{layer}.{name}", shape) for name, shape in parts.items())
    yield "output_norm", (hidden,)
    yield "output", (vocab, hidden)


def attention(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Latent attention with the key's half of kv_b transposed, for absorption, and no q_lora."""
    hidden, heads, latent = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, value = (config[name] for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    return {
        "attn_norm": (hidden,),
        "attn_q": (heads * (nope + rope), hidden),
        "attn_kv_a_mqa": (latent + rope, hidden),
        "attn_kv_a_norm": (latent,),
        "attn_k_b": (heads, latent, nope),
        "attn_v_b": (heads, value, latent),
        "attn_output": (hidden, heads * value),
        "ffn_norm": (hidden,),
    }


def feed_forward(config: Mapping[str, Any]) -> dict[str, Shape]:
    """A layer without experts."""
    return swiglu("", config["hidden_size"], config["intermediate_size"])


def experts(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Gate, routed experts and shared experts."""
    hidden, width, count = (
        config[name] for name in ("hidden_size", "moe_intermediate_size", "n_routed_experts")
    )
    routed = {name: (count, *shape) for name, shape in swiglu("_exps", hidden, width).items()}
    shared = swiglu("_shexp", hidden, width * config["n_shared_experts"])
    return {"ffn_gate_inp": (count, hidden), **routed, **shared}


def swiglu(suffix: str, hidden: int, width: int) -> dict[str, Shape]:
    """The three matrices of a feed-forward."""
    up, down = (width, hidden), (hidden, width)
    return {f"ffn_gate{suffix}": up, f"ffn_up{suffix}": up, f"ffn_down{suffix}": down}


def write(path: Path, config: Mapping[str, Any], form: str) -> Path:
    """The file with weights in format "Q4_0" or "Q8_0", written whole or not at all."""
    import gguf

    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "deepseek2")
    describe(writer, config)
    for name, shape in tensors(config):
        held, dtype = stored(name, shape, form)
        kind = gguf.GGMLQuantizationType[form] if coded(name, shape) else None
        writer.add_tensor_info(f"{name}.weight", held, dtype, nbytes(held, dtype), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(0)
    for name, shape in tensors(config):
        writer.write_tensor_data(drawn(random, shape, form) if coded(name, shape) else plain(random, shape))
    writer.close()
    partial.replace(path)
    return path


def nbytes(shape: Shape, dtype: Any) -> int:
    """Bytes of a tensor."""
    return int(np.prod(shape)) * int(dtype.itemsize)


def total(config: Mapping[str, Any], form: str) -> int:
    """Bytes of all tensors in the file."""
    return sum(nbytes(*stored(name, shape, form)) for name, shape in tensors(config))


def describe(writer: Any, config: Mapping[str, Any]) -> None:
    """What llama.cpp must know; it takes the variant without q_lora only at exactly 27 layers."""
    latent, nope, rope = (config[name] for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"))
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(4096)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(1)  # as it caches: one latent for all heads
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(rope)
    writer.add_kv_lora_rank(latent)
    writer.add_key_length(latent + rope)
    writer.add_value_length(latent)
    writer.add_key_length_mla(nope + rope)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])


def coded(name: str, shape: Shape) -> bool:
    """Whether a tensor is stored in codes."""
    return len(shape) > 1 and not name.endswith("ffn_gate_inp")


def stored(name: str, shape: Shape, form: str) -> tuple[Shape, Any]:
    """Shape and type of what the file holds: numbers, or blocks of a scale and codes as bytes."""
    if not coded(name, shape):
        return shape, np.dtype(np.float32)
    return (*shape[:-1], shape[-1] // BLOCK * (2 + FORMATS[form][0])), np.dtype(np.uint8)


def drawn(random: np.random.Generator, shape: Shape, form: str) -> Any:
    """Random codes u8 [.., N, bytes] under scales that give the weights a deviation of K ** -0.5."""
    codes, deviation = FORMATS[form]
    blocks = int(np.prod(shape)) // BLOCK
    held = random.integers(0, 256, (blocks, 2 + codes), np.uint8)
    held[:, :2] = np.array([shape[-1] ** -0.5 / deviation], np.float16).view(np.uint8)
    return held.reshape(*shape[:-1], -1)


def plain(random: np.random.Generator, shape: Shape) -> Any:
    """A gate's weights f32, or a norm's, all 1."""
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    return random.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
