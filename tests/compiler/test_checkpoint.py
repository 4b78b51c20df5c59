"""Weights: what is on disk in many pieces and dtypes is read as the module has it; what is wrong is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import models
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from moec.compiler.checkpoint import BadModel, Checkpoint, RandomWeights

Arrays = dict[str, Any]


def state_of(model: Any) -> Arrays:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def rewrite(folder: Path, change: Any) -> None:
    """Replace the tensors in a folder's only shard by change(tensors)."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


@pytest.mark.parametrize("family", models.FAMILIES)
@pytest.mark.parametrize("shard", ["50GB", "20KB"])
def test_every_parameter_as_the_module_has_it(tmp_path: Path, family: str, shard: str) -> None:
    model = models.save(tmp_path, family, shard=shard)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or shard == "20KB"
    checkpoint = Checkpoint(tmp_path)
    assert any(".experts.3.up_proj" in name for name in checkpoint.tensors)
    checkpoint.verify(shapes_of(model))
    for name, array in state_of(model).items():
        got = checkpoint.read(name)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, array)
        np.testing.assert_array_equal(checkpoint.read(name, 1, 3), array[1:3])


def test_f32_is_not_copied(tmp_path: Path) -> None:
    models.save(tmp_path, "deepseek_v3")
    checkpoint = Checkpoint(tmp_path)
    first, again = (checkpoint.read("lm_head.weight") for _ in range(2))
    assert np.shares_memory(first, again)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_floats(tmp_path: Path, dtype: torch.dtype) -> None:
    model = models.build("qwen3_moe").to(dtype)
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(checkpoint.read(name, 2), tensor[2:].float().numpy())


def to_fp8(array: Any, block: int) -> tuple[Any, Any]:
    """An array in fp8, with the scale of each block."""
    rows, columns = (-(-size // block) for size in array.shape)
    scales = np.random.default_rng(0).uniform(0.01, 0.1, (rows, columns)).astype(np.float32)
    whole = scales.repeat(block, 0)[: array.shape[0]].repeat(block, 1)[:, : array.shape[1]]
    return (array / whole).astype(ml_dtypes.float8_e4m3fn), scales


def test_fp8_blocks_with_ragged_edges(tmp_path: Path) -> None:
    model = models.save(tmp_path, "deepseek_v3")
    block, wanted = 12, state_of(model)  # 12 divides neither 22 rows nor 32 columns of kv_a_proj_with_mqa
    config = json.loads((tmp_path / "config.json").read_text())
    quantization = {"quant_method": "fp8", "weight_block_size": [block, block]}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))

    def change(tensors: Arrays) -> Arrays:
        for name in [name for name in tensors if "_proj" in name]:
            tensors[name], tensors[f"{name}_scale_inv"] = to_fp8(tensors[name], block)
        return tensors

    rewrite_fp8(tmp_path, change)
    checkpoint = Checkpoint(tmp_path)
    checkpoint.verify(shapes_of(model))
    for name in (
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
        "model.layers.1.mlp.experts.gate_up_proj",
    ):
        whole = checkpoint.read(name)
        np.testing.assert_allclose(whole, wanted[name], rtol=0.07, atol=2e-3)
        np.testing.assert_array_equal(checkpoint.read(name, 3, 7), whole[3:7])


def rewrite_fp8(folder: Path, change: Any) -> None:
    """As rewrite, through torch, which writes fp8."""
    from safetensors.torch import save_file as save_torch

    def as_tensor(array: Any) -> torch.Tensor:
        if array.dtype == ml_dtypes.float8_e4m3fn:
            return torch.from_numpy(array.view(np.uint8)).view(torch.float8_e4m3fn)
        return torch.from_numpy(array)

    file = folder / "model.safetensors"
    save_torch({name: as_tensor(array) for name, array in change(load_file(file)).items()}, file)


def test_truncated_shard(tmp_path: Path) -> None:
    models.save(tmp_path, "qwen3_moe")
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadModel, match=r"model.safetensors: truncated: \d+ bytes, but its header describes"):
        Checkpoint(tmp_path)
    file.write_bytes(b"\xff\xff\xff")
    with pytest.raises(BadModel, match="truncated"):
        Checkpoint(tmp_path)
    file.write_bytes((8).to_bytes(8, "little") + b"not json")
    with pytest.raises(BadModel, match="not a safetensors file"):
        Checkpoint(tmp_path)


def test_missing_shard(tmp_path: Path) -> None:
    models.save(tmp_path, "qwen3_moe", shard="20KB")
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(BadModel, match=f"missing {gone.name}"):
        Checkpoint(tmp_path)


def test_no_shards(tmp_path: Path) -> None:
    models.config("qwen3_moe").save_pretrained(tmp_path)
    with pytest.raises(BadModel, match=r"no \*\.safetensors in it; .* --random-weights"):
        Checkpoint(tmp_path)


def test_everything_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    model = models.save(tmp_path, "deepseek_v3")
    experts = "model.layers.1.mlp.experts"

    def change(tensors: Arrays) -> Arrays:
        del tensors["model.norm.weight"], tensors[f"{experts}.2.up_proj.weight"]
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1]
        tensors[f"{experts}.5.down_proj.weight"] = np.zeros((32, 3), np.float32)
        tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((48, 32), np.int16)
        return tensors

    rewrite(tmp_path, change)
    with pytest.raises(BadModel) as error:
        Checkpoint(tmp_path).verify(shapes_of(model))
    for line in (
        "model.norm.weight: missing, expected [32]",
        f"{experts}.2.up_proj.weight: missing, expected [16, 32]",
        "lm_head.weight: [63, 32], expected [64, 32] [model.safetensors]",
        f"{experts}.5.down_proj.weight: [32, 3], expected [32, 16] [model.safetensors]",
        "model.layers.0.mlp.up_proj.weight: stored as I16; understood: F64,",
    ):
        assert line in str(error.value)


def test_number_of_experts(tmp_path: Path) -> None:
    models.save(tmp_path, "deepseek_v3")
    more = models.build("deepseek_v3", n_routed_experts=12)
    with pytest.raises(BadModel, match=r"experts\.gate_up_proj: 8 experts on disk, expected 12"):
        Checkpoint(tmp_path).verify(shapes_of(more))


def test_fingerprint(tmp_path: Path) -> None:
    prints = []
    for name, hidden in (("a", 32), ("b", 32), ("c", 34)):
        models.save(tmp_path / name, "qwen3_moe", hidden_size=hidden)
        prints.append(Checkpoint(tmp_path / name).fingerprint())
    assert prints[0] == prints[1] != prints[2]


SHAPES = {
    "model.embed_tokens.weight": (500, 64),
    "model.norm.weight": (64,),
    "model.layers.0.mlp.gate.weight": (16, 64),
    "model.layers.0.mlp.gate.e_score_correction_bias": (16,),
    "model.layers.0.mlp.experts.gate_up_proj": (5, 96, 700),
    "model.layers.7.mlp.experts.down_proj": (3, 64, 48),
    "model.layers.7.self_attn.o_proj.weight": (64, 64),
    "lm_head.weight": (3000, 64),
}


def test_random_rows_are_those_of_the_whole() -> None:
    weights = RandomWeights(3, SHAPES)
    for name, shape in SHAPES.items():
        whole = weights.read(name)
        assert whole.shape == shape
        assert whole.dtype == np.float32
        for start, stop in ((0, 1), (1, 4), (shape[0] // 2, shape[0]), (3, None), (shape[0], None)):
            np.testing.assert_array_equal(weights.read(name, start, stop), whole[start:stop])


def test_random_weights_follow_seed_and_name() -> None:
    name = "lm_head.weight"
    first = RandomWeights(3, SHAPES).read(name)
    np.testing.assert_array_equal(first, RandomWeights(3, {name: (3000, 64)}).read(name))
    assert not np.array_equal(first, RandomWeights(4, SHAPES).read(name))
    assert not np.array_equal(first[:500], RandomWeights(3, SHAPES).read("model.embed_tokens.weight"))
    assert len(np.unique(first)) > 0.99 * first.size * 0.9
    assert RandomWeights(3, SHAPES).fingerprint() != RandomWeights(4, SHAPES).fingerprint()


def test_random_weights_keep_activations_in_size() -> None:
    weights = RandomWeights(0, SHAPES)
    assert abs(weights.read("model.embed_tokens.weight").std() - 1) < 0.02
    assert abs(weights.read("lm_head.weight").std() * 8 - 1) < 0.02
    assert abs(weights.read("model.norm.weight").mean() - 1) < 0.05
    for name in ("model.layers.7.mlp.experts.down_proj", "model.layers.7.self_attn.o_proj.weight"):
        array = weights.read(name)  # of 8 layers, each of which adds to the residual twice
        assert abs(array.std() * np.sqrt(array.shape[-1]) * 4 - 1) < 0.05
    bias = weights.read("model.layers.0.mlp.gate.e_score_correction_bias")
    assert 0 < np.abs(bias).max() < 0.5
    logits = (
        np.random.default_rng(0).standard_normal((200, 64)) @ weights.read("model.layers.0.mlp.gate.weight").T
    )
    assert len(np.unique(logits.argmax(1))) >= 14
