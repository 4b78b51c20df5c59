"""The PyTorch reference: transformers' own numbers, and the same in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch

from moec.compiler.eager import Eager, inputs, outputs, reference
from moec.compiler.source import Source, resolve


def padded(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = models.tokens(batch, length)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return ids, mask


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_moe"])
def test_the_model_of_transformers(tmp_path: Path, family: str) -> None:
    torch.set_num_threads(1)
    model = models.save(tmp_path, family)
    ids, mask = padded(2, 7)
    single = Eager(resolve(str(tmp_path))).run(ids, mask, new_tokens=6)
    options: dict[str, Any] = {
        "max_new_tokens": 6,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    wanted = model.generate(ids, attention_mask=mask, **options)
    np.testing.assert_array_equal(single.tokens, wanted[:, 7:].numpy())
    double = Eager(resolve(str(tmp_path)), double=True).run(ids, mask, new_tokens=2)
    assert double.logits.dtype == np.float64
    np.testing.assert_array_equal(double.tokens, single.tokens[:, :2])
    error = np.abs(single.logits - double.logits)[mask.numpy() == 1].max()
    assert 0 < error < 1e-5


def test_weights_are_dropped_in_double(tmp_path: Path) -> None:
    models.config("deepseek_v3").save_pretrained(tmp_path)
    eager = Eager(resolve(config=tmp_path, random_weights=1), double=True)
    eager.run(*padded(2, 5))
    assert all(tensor.is_meta for tensor in eager.model.parameters())


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    models.config("deepseek_v2_lite").save_pretrained(tmp_path)
    source = resolve(config=tmp_path, random_weights=1)
    ids, mask = padded(2, 6)
    apart = reference(source, ids.numpy(), mask.numpy(), new_tokens=3)
    here = Eager(source).run(ids, mask, new_tokens=3)
    np.testing.assert_allclose(apart.logits, here.logits, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(apart.tokens, here.tokens)


def test_any_other_module() -> None:
    module, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
    source = Source("test", "module", module=module, inputs=(x,))
    np.testing.assert_array_equal(inputs(source)[0], x.numpy())
    np.testing.assert_allclose(outputs(source)[0], outputs(source, double=True)[0], rtol=1e-5, atol=1e-6)
    assert outputs(source, double=True)[0].dtype == np.float64
    assert module.weight.dtype == torch.float32
