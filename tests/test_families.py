"""Every family all the way: from a Hugging Face folder through stock onnxruntime, against transformers."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moec.compiler import compile_model, load
from moec.compiler.bench import counters
from moec.compiler.checkpoint import RandomWeights
from moec.compiler.eager import Exact
from moec.compiler.report import outcome
from moec.compiler.runner import Artifact

from . import models
from .conftest import Compile, Compiled

LIMIT = 1e-4
LATENT = tuple(family for family in models.FAMILIES if family.startswith("deepseek"))
# kind of kernel -> how many a model of LAYERS layers has; the first layer of the latent families is dense
KERNELS = {
    family: {"latent_attention": 2, "latent_write": 2, "attention": 0, "append": 0, "experts": 1}
    for family in LATENT
} | {"qwen3_moe": {"latent_attention": 0, "latent_write": 0, "attention": 2, "append": 4, "experts": 2}}
EXPERTS = ("route", "grouped_swiglu", "grouped_combine")


@dataclass(frozen=True)
class Family:
    """A compiled family, opened with its kernels, and transformers' model of it in float64."""

    name: str
    compiled: Compiled
    artifact: Artifact
    exact: Any

    def wanted(self, ids: Any, mask: Any = None) -> np.ndarray:
        """Logits f64 [B, T, vocab] by transformers' eager model; rows of padding are not to be compared."""
        return logits_of(self.exact, ids, mask)


def logits_of(exact: Any, ids: Any, mask: Any = None) -> np.ndarray:
    ids = torch.as_tensor(ids)
    mask = torch.ones_like(ids) if mask is None else torch.as_tensor(mask)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), Exact(torch.float64):
        result = exact(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False)
    assert result.logits.dtype == torch.float64
    return np.asarray(result.logits)


def close(got: np.ndarray, wanted: np.ndarray, limit: float = LIMIT) -> None:
    assert got.shape == wanted.shape
    assert np.isfinite(got).all()
    assert np.abs(got - wanted).max() <= limit * np.abs(wanted).max()


@pytest.fixture(scope="session", params=models.FAMILIES)
def family(request: pytest.FixtureRequest, compiled: Compile) -> Family:
    made = compiled(request.param)
    return Family(request.param, made, load(made.out, threads=2), copy.deepcopy(made.model).double())


def padded() -> tuple[np.ndarray, np.ndarray]:
    """Three prompts of 9, 4 and 1 tokens, padded on the left with a token that is also a word."""
    ids, mask = models.tokens(3, 9, seed=4).numpy(), np.ones((3, 9), np.int64)
    for row, length in enumerate((9, 4, 1)):
        ids[row, : 9 - length], mask[row, : 9 - length] = 5, 0
    return ids, mask


def stale(artifact: Artifact, batch: int, rows: int) -> dict[str, np.ndarray]:
    """Caches full of what was there before: whoever reads a row before it is written gets NaN."""
    return {name: np.full_like(empty, np.nan) for name, empty in artifact.cache(batch, rows).items()}


# the numbers


def test_prefill_is_transformers(family: Family) -> None:
    ids = models.tokens(2, 23).numpy()
    close(family.artifact.logits(ids), family.wanted(ids))


def test_64_greedy_tokens_are_those_of_transformers(family: Family) -> None:
    prompt = models.tokens(1, 7, seed=2)
    wanted = family.compiled.model.generate(
        prompt, max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
    ).numpy()
    assert len(set(wanted[0, 7:])) > 8, "a text that repeats itself proves little; use another seed"
    np.testing.assert_array_equal(family.artifact.generate(prompt, 64), wanted)


def test_prompts_of_different_lengths_in_a_batch(family: Family) -> None:
    ids, mask = padded()
    real = mask.astype(bool)
    close(family.artifact.logits(ids, mask)[real], family.wanted(ids, mask)[real])
    options = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    prompts, attended = torch.from_numpy(ids), torch.from_numpy(mask)
    wanted = family.compiled.model.generate(prompts, attention_mask=attended, **options)
    np.testing.assert_array_equal(family.artifact.generate(ids, 16, mask), wanted.numpy())


def test_decoding_token_by_token_equals_one_shot(family: Family) -> None:
    ids, mask = padded()
    later = models.tokens(3, 6, seed=5).numpy()
    everything, every_mask = np.hstack([ids, later]), np.hstack([mask, np.ones_like(later)])
    wanted = family.wanted(everything, every_mask)
    cache = stale(family.artifact, 3, everything.shape[1])
    pieces = [family.artifact.step(ids, mask, cache)]
    for at in range(9, 15):
        pieces.append(family.artifact.step(everything[:, at : at + 1], every_mask[:, : at + 1], cache))
    real = every_mask.astype(bool)
    close(np.concatenate(pieces, axis=1)[real], wanted[real])


def test_a_prompt_in_pieces_equals_one_shot(family: Family) -> None:
    ids = models.tokens(2, 19, seed=6).numpy()
    cache, pieces = stale(family.artifact, 2, 19), []
    for start, stop in ((0, 5), (5, 6), (6, 19)):
        mask = np.ones((2, stop), np.int64)
        pieces.append(family.artifact.step(ids[:, start:stop], mask, cache))
    close(np.concatenate(pieces, axis=1), family.wanted(ids))


def test_one_token_on_an_empty_cache(family: Family) -> None:
    ids = models.tokens(1, 1, seed=7).numpy()
    close(family.artifact.logits(ids), family.wanted(ids))


@pytest.mark.parametrize("room", [6, 7, 40])
def test_room_in_the_cache_changes_nothing(family: Family, room: int) -> None:
    ids = models.tokens(2, 6, seed=8).numpy()
    got = family.artifact.step(ids, np.ones_like(ids), stale(family.artifact, 2, room))
    close(got, family.wanted(ids))


def test_plain_run_equals_the_cache_in_place(family: Family) -> None:
    ids = models.tokens(2, 6, seed=9).numpy()
    bound, past = (stale(family.artifact, 2, 8) for _ in range(2))
    names = [each.name for each in family.artifact.session.get_outputs()]
    for start, stop in ((0, 5), (5, 6)):
        new, mask = ids[:, start:stop], np.ones((2, stop), np.int64)
        before = {name: rows.copy() for name, rows in past.items()}
        feeds = {"input_ids": new, "attention_mask": mask, **past}
        results = dict(zip(names, family.artifact.session.run(None, feeds)))
        np.testing.assert_array_equal(family.artifact.step(new, mask, bound), results["logits"])
        for name, rows in past.items():
            np.testing.assert_array_equal(rows, before[name])  # onnxruntime's inputs are not written to
        past = {name: results[name.replace("past", "present")] for name in past}
        for name, rows in past.items():
            np.testing.assert_array_equal(rows, bound[name])


def test_without_the_kernel_library(family: Family) -> None:
    functions = load(family.compiled.out, threads=2, kernels=False)
    ids, mask = padded()
    real = mask.astype(bool)
    close(functions.logits(ids, mask)[real], family.wanted(ids, mask)[real])
    np.testing.assert_array_equal(functions.generate(ids, 3, mask), family.artifact.generate(ids, 3, mask))


# what was made of the graph


def test_everything_is_fused(family: Family) -> None:
    found = family.compiled.report.manifest
    uses: Counter[str] = Counter()
    for each in found.kernels:
        uses[each.kernel.split()[0]] += each.uses
    wanted = dict(KERNELS[family.name])
    experts = wanted.pop("experts")
    assert {kind: uses[kind] for kind in (*wanted, *EXPERTS)} == wanted | dict.fromkeys(EXPERTS, experts)
    assert not found.misses


def test_the_cache_is_as_small_as_the_model_allows(family: Family) -> None:
    config, found = family.compiled.model.config, family.compiled.report
    widths = {each.name: each.shape[1::2] for each in family.artifact.session.get_inputs()[2:]}
    stored = sum(heads * width for heads, width in widths.values()) * 4
    assert len(widths) == 2 * models.LAYERS
    assert found.manifest.cache["bytes_per_token"] == stored
    expanded = 2 * config.num_key_value_heads * getattr(config, "head_dim", 0)
    if family.name in LATENT:
        assert widths["past.0.key"] == [1, config.kv_lora_rank]
        assert widths["past.0.value"] == [1, config.qk_rope_head_dim]
        per_head = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
        expanded = config.num_attention_heads * per_head
    assert found.manifest.cache["unfused_bytes_per_token"] == models.LAYERS * expanded * 4
    shown = str(next(iter(outcome(found).columns[1].cells)))
    assert shown.startswith(
        f"{stored} B a token; all heads' keys and values: {models.LAYERS * expanded * 4} B"
    )


def test_the_checkpoint_was_in_shards(family: Family) -> None:
    assert len(list(family.compiled.hub.glob("*.safetensors"))) > 1


# routing


def routed(model: Any, ids: Any) -> list[np.ndarray]:
    """The experts [tokens, k] that transformers chooses in each layer that has any."""
    chosen: list[np.ndarray] = []
    hooks = [
        layer.mlp.experts.register_forward_pre_hook(lambda _, given: chosen.append(given[1].numpy()))
        for layer in model.model.layers
        if hasattr(layer.mlp, "experts")
    ]
    with torch.no_grad():
        model(torch.as_tensor(ids))
    for hook in hooks:
        hook.remove()
    return chosen


@pytest.mark.parametrize("tokens", [[[9] * 12], [[33] * 12]], ids=str)
def test_all_tokens_choose_the_same_experts(family: Family, tokens: list[list[int]]) -> None:
    chosen = routed(family.compiled.model, tokens)
    assert all((np.sort(layer) == np.sort(layer[0])).all() for layer in chosen)
    close(family.artifact.logits(tokens), family.wanted(tokens))


def test_every_expert_is_chosen_and_chosen_unevenly(family: Family) -> None:
    ids = models.tokens(1, 60, seed=3).numpy()
    for layer in routed(family.compiled.model, ids):
        counts = np.bincount(layer.ravel(), minlength=8)
        assert (counts > 0).sum() >= 7
        assert counts.max() >= 2 * counts.min()
    close(family.artifact.logits(ids), family.wanted(ids))


def test_the_routers_are_not_degenerate(family: Family) -> None:
    model = family.compiled.model
    choices = {tuple(np.sort(routed(model, [[token]])[-1][0])) for token in range(2, 30)}
    assert len(choices) > 4
    biases = [value for name, value in model.state_dict().items() if name.endswith("correction_bias")]
    assert len(biases) == (family.name == "deepseek_v3")
    assert all(bias.abs().min() > 0 for bias in biases)


@pytest.mark.parametrize("count", [8, 64])
def test_one_token_reads_the_weights_of_its_experts_only(compiled: Compile, count: int) -> None:
    changes = {} if count == 8 else {"n_routed_experts": count}
    made = compiled("deepseek_v3", **changes)
    artifact = load(made.out, threads=2)
    ids = models.tokens(1, 1, seed=10).numpy()
    before = weight_bytes(artifact)
    close(artifact.logits(ids), logits_of(copy.deepcopy(made.model).double(), ids))
    read = {kind: total - before[kind] for kind, total in weight_bytes(artifact).items()}
    config = made.model.config
    experts = config.num_experts_per_tok + config.n_shared_experts
    width, hidden = config.moe_intermediate_size, config.hidden_size
    expected = {
        "grouped_swiglu": hidden * in_panels(2 * width, "grouped_swiglu", artifact),
        "grouped_combine": width * in_panels(hidden, "grouped_combine", artifact),
    }
    assert {kind: read[kind] / experts / 4 for kind in expected} == expected


def in_panels(columns: int, kind: str, artifact: Artifact) -> int:
    """Columns of a weight up to the end of its last panel, as wide as the schedule says."""
    kernel = next(each for each in artifact.manifest.kernels if each.kernel.startswith(kind))
    panel = int(kernel.schedules[0]["schedule"]["nr"])
    return -(-columns // panel) * panel


def test_tokens_that_choose_the_same_experts_share_their_weights(compiled: Compile) -> None:
    artifact = load(compiled("deepseek_v3").out, threads=2)
    read = []
    for length in (1, 5):
        before = weight_bytes(artifact)
        artifact.logits([[9] * length])
        read.append(weight_bytes(artifact)["grouped_swiglu"] - before["grouped_swiglu"])
    assert read[0] == read[1] > 0


def weight_bytes(artifact: Artifact) -> Counter[str]:
    """Bytes of weights that kernels of each kind have read so far."""
    found: Counter[str] = Counter()
    for each in counters(artifact):
        found[each.kind.decode()] += each.weight_bytes
    return found


# other ways to give a model


def test_a_config_with_random_weights(compiled: Compile, tmp_path: Path) -> None:
    made = compiled("deepseek_v3")
    found = compile_model(config=made.hub, random_weights=3, out=tmp_path / "out", threads=2).manifest
    assert found.proof is not None
    assert found.proof["max_error"] < LIMIT
    assert found.proof["tokens_equal"] == found.proof["tokens"] > 0
    exact = copy.deepcopy(made.model).double()
    state = exact.state_dict()
    weights = RandomWeights(3, {name: tuple(tensor.shape) for name, tensor in state.items()})
    for name, tensor in state.items():
        tensor.copy_(torch.from_numpy(weights.read(name)))
    ids = models.tokens(2, 11).numpy()
    close(load(tmp_path / "out", threads=2).logits(ids), logits_of(exact, ids))
