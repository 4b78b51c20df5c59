"""A causal language model of transformers, exported as it is but for its cache, its mask and its positions.

These become custom operators that mean what the graph's own ops mean, so one graph serves prefill and decode.
Sizes: B batch, T new tokens, S tokens in the cache, L rows the cache has room for, h heads, d width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from .checkpoint import BadModel
from .ir import B, L, S, T, Value
from .ops.sources import INPUT


@dataclass(frozen=True)
class Facts:
    """What reports say of a causal language model, by its config.

    `chosen` of `experts` run for a token. `expanded`: the values a token takes, per layer, in a cache of full
    keys and values. `eos`: the tokens that end a text.
    """

    family: str
    layers: int
    hidden: int
    vocab: int
    heads: int
    experts: int
    chosen: int
    positions: int
    expanded: int
    eos: tuple[int, ...]


def facts_of(family: str, config: Any) -> Facts:
    """The facts in a config of transformers."""
    heads, eos = config.num_attention_heads, config.eos_token_id
    expanded = 2 * config.num_key_value_heads * getattr(config, "head_dim", 0)
    if _is_latent(config):
        expanded = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim)
    return Facts(
        family=family,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        vocab=config.vocab_size,
        heads=heads,
        experts=next(getattr(config, n) for n in ("n_routed_experts", "num_experts") if hasattr(config, n)),
        chosen=config.num_experts_per_tok,
        positions=config.max_position_embeddings,
        expanded=expanded,
        eos=tuple(eos) if isinstance(eos, list | tuple) else () if eos is None else (eos,),
    )


def _is_latent(config: Any) -> bool:
    return bool(getattr(config, "kv_lora_rank", None))


def _cache_widths(config: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Heads and width of the two things a layer caches: latent and rotated key, or keys and values."""
    if _is_latent(config):
        return (1, config.kv_lora_rank), (1, config.qk_rope_head_dim)
    return ((config.num_key_value_heads, config.head_dim),) * 2


def step_inputs(config: Any) -> list[Value]:
    """The graph's inputs: what the artifact will be fed."""
    inputs = [
        INPUT(name="input_ids", dtype="i64", shape=(B, T)),
        INPUT(name="attention_mask", dtype="i64", shape=(B, S + T)),
    ]
    for layer in range(config.num_hidden_layers):
        for kind, (heads, width) in zip(("key", "value"), _cache_widths(config)):
            inputs.append(INPUT(name=f"past.{layer}.{kind}", dtype="f32", shape=(B, heads, L, width)))
    return inputs


def example_of(config: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Inputs of sizes that are all different, and not 1, which torch would take for fixed."""
    batch, new, total, room = 2, 3, 8, 11
    widths = _cache_widths(config) * config.num_hidden_layers
    past = [torch.zeros(batch, heads, room, width) for heads, width in widths]
    return torch.zeros(batch, new, dtype=torch.int64), torch.ones(batch, total, dtype=torch.int64), past


def load_config(file: Path) -> Any:
    """The config of a model as transformers has it, without the quantization of its checkpoint.

    Raises BadModel where transformers makes no sense of it.
    """
    from transformers import AutoConfig

    with quiet():
        try:
            config = AutoConfig.from_pretrained(str(file))
        except Exception as error:  # of many kinds; all of them are about what the file says
            raise BadModel(f"{file}: transformers refuses it: {' '.join(str(error).split())}") from error
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    _expect_same_for_any_length(file, config)
    return config


def _expect_same_for_any_length(file: Path, config: Any) -> None:
    """Raises BadModel for what a model does otherwise once a text is long: our mask and positions do not."""
    window, rope = getattr(config, "sliding_window", None), (config.rope_parameters or {}).get("rope_type")
    if window is not None and window < config.max_position_embeddings:
        raise BadModel(
            f"{file}: sliding_window is {window}, but attention is compiled to all earlier tokens only; "
            f"set use_sliding_window to false and max_position_embeddings to {window} for texts up to that"
        )
    if rope in ("dynamic", "longrope"):
        raise BadModel(
            f"{file}: rope_type {rope!r} changes its frequencies as a text grows, which is not compiled; "
            "expected one that does not: default, linear, yarn or llama3"
        )


def build(config: Any, attention: str = "sdpa", experts: str = "grouped_mm") -> nn.Module:
    """The model of a config in f32, in eval mode, its weights wherever the caller's context puts tensors."""
    from transformers import AutoModelForCausalLM

    with quiet():
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, experts_implementation=experts, dtype=torch.float32
        )
    return model.eval()


@contextmanager
def quiet(who: str = "transformers") -> Iterator[None]:
    """Without a library's words to those who work on models: its exceptions say what counts here."""
    logger = logging.getLogger(who)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def export_step(model: nn.Module, example: tuple[Tensor, Tensor, list[Tensor]]) -> ExportedProgram:
    """The program of one step, for any batch, number of tokens, and cache."""
    two_any = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    sizes = (two_any, two_any, [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC} for _ in example[2]])
    with torch.no_grad():
        return export(Step(model), example, dynamic_shapes=sizes, strict=False)


def append(cache: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
    """The cache [B,h,L,d] with new rows [B,h,T,d] after the S it has; mask [B,S+T]."""
    stop = mask.shape[1]
    result = cache.clone()
    result[:, :, stop - rows.shape[2] : stop] = rows
    return result


def filled(cache: Tensor, mask: Tensor) -> Tensor:
    """The rows of the cache that hold something: [B,h,S+T,d]."""
    return cache[:, :, : mask.shape[1]].clone()


def causal_mask(mask: Tensor, ids: Tensor) -> Tensor:
    """bool [B,1,T,S+T]: which keys a new token sees, being real tokens and not after it."""
    keys = torch.arange(mask.shape[1])
    queries = keys[mask.shape[1] - ids.shape[1] :]
    return (keys <= queries[:, None]) & (mask != 0)[:, None, None, :]


def positions(mask: Tensor, ids: Tensor) -> Tensor:
    """i64 [B,T]: how many real tokens precede each new one."""
    return (mask.cumsum(1) - 1).clamp(min=0)[:, mask.shape[1] - ids.shape[1] :].clone()


def _fake_mask(mask: Tensor, ids: Tensor) -> Tensor:
    return mask.new_empty(ids.shape[0], 1, ids.shape[1], mask.shape[1], dtype=torch.bool)


# What each function above returns, by shape alone: all that export needs of it.
_FAKES = {
    append: lambda cache, rows, mask: torch.empty_like(cache),
    filled: lambda cache, mask: cache.new_empty(*cache.shape[:2], mask.shape[1], cache.shape[3]),
    causal_mask: _fake_mask,
    positions: lambda mask, ids: torch.empty_like(ids),
}
for _function, _fake in _FAKES.items():
    _name = f"moec::{_function.__name__}"
    torch.library.custom_op(_name, _function, mutates_args=()).register_fake(_fake)


class Cache:
    """What a model of transformers takes for its cache: two tensors a layer, replaced when written."""

    is_compileable = False

    def __init__(self, tensors: Sequence[Tensor], mask: Tensor) -> None:
        self.tensors = list(tensors)
        self.mask = mask

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any) -> tuple[Tensor, Tensor]:
        """Write the new rows of a layer, and give it all rows so far."""
        pair = slice(2 * layer_idx, 2 * layer_idx + 2)
        self.tensors[pair] = [
            torch.ops.moec.append(tensor, rows, self.mask)
            for tensor, rows in zip(self.tensors[pair], (keys, values), strict=True)
        ]
        all_keys, all_values = (torch.ops.moec.filled(tensor, self.mask) for tensor in self.tensors[pair])
        return all_keys, all_values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Not asked for what counts: mask and positions are given to the model."""
        return 0


class Step(nn.Module):  # type: ignore[misc]  # torch is not typed here
    """One step of a causal language model, prefill or decode, with everything it depends on as inputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits [B,T,vocab], and the caches with the new rows in them."""
        cache = Cache(past, attention_mask)
        result = self.model(
            input_ids=input_ids,
            attention_mask=torch.ops.moec.causal_mask(attention_mask, input_ids),
            position_ids=torch.ops.moec.positions(attention_mask, input_ids),
            past_key_values=cache,
            use_cache=True,
        )
        return result.logits, cache.tensors
