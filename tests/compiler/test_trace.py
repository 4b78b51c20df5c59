"""Tracing: the graph of every family computes what transformers does in float64, whatever the input."""

from __future__ import annotations

from typing import Any

import models
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moec.compiler.checkpoint import BadModel
from moec.compiler.eager import Eager
from moec.compiler.interpret import interpret
from moec.compiler.ir import B, L, S, T, Type
from moec.compiler.ops.vocabulary import OPS
from moec.compiler.source import Source, resolve
from moec.compiler.trace import Traced, UnsupportedOp, trace

ROOM = 16  # rows of the cache in these tests


@pytest.fixture(scope="module", params=models.FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A family's graph, and the same weights in transformers, in float64."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    models.save(folder, request.param)
    source = resolve(str(folder))
    return trace(source), Eager(source, double=True)


def empty_cache(traced: Traced, batch: int) -> dict[str, np.ndarray]:
    """A cache of nothing but nan: rows that are not filled must not count."""
    caches = [value for value in traced.graph.inputs if value.node.attrs["name"].startswith("past.")]
    shapes = {value.node.attrs["name"]: (batch, value.shape[1], ROOM, value.shape[3]) for value in caches}
    return {name: np.full(shape, np.nan) for name, shape in shapes.items()}


def logits_of(traced: Traced, ids: Tensor, mask: Tensor, steps: list[int]) -> np.ndarray:
    """Logits of all tokens, given in steps of these lengths."""
    cache, results, done = empty_cache(traced, len(ids)), [], 0
    for new in steps:
        rows = slice(done, done + new)
        feeds = {"input_ids": ids[:, rows].numpy(), "attention_mask": mask[:, : done + new].numpy(), **cache}
        outputs = interpret(traced.graph, feeds, traced.weights, double=True)
        cache = {
            name.replace("present", "past"): array for name, array in outputs.items() if name != "logits"
        }
        results.append(outputs["logits"])
        done += new
    return np.concatenate(results, 1)


def check(case: Any, ids: Tensor, steps: list[int], padding: int = 0) -> None:
    traced, eager = case
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    wanted = eager.run(ids, mask).logits
    got = logits_of(traced, ids, mask, steps)
    real = mask.numpy().astype(bool)
    assert wanted.dtype == np.float64
    np.testing.assert_allclose(got[real], wanted[real], rtol=0, atol=1e-12 * np.abs(wanted).max())


def test_prefill_with_padding(case: Any) -> None:
    check(case, models.tokens(2, 9), [9], padding=4)


def test_prefill_then_decode(case: Any) -> None:
    check(case, models.tokens(2, 9, seed=2), [5, 1, 1, 2], padding=3)


def test_one_token_of_one_sequence(case: Any) -> None:
    check(case, models.tokens(1, 1, seed=3), [1])


def test_routing_is_not_that_of_the_example(case: Any) -> None:
    same = torch.full((1, 6), 7)
    check(case, same, [6])
    for seed in range(4, 8):
        check(case, models.tokens(3, 7, seed), [7])


def test_signature(case: Any) -> None:
    graph = case[0].graph
    inputs = {value.node.attrs["name"]: value.type for value in graph.inputs}
    assert list(inputs)[:4] == ["input_ids", "attention_mask", "past.0.key", "past.0.value"]
    assert inputs["input_ids"] == Type("i64", (B, T))
    assert inputs["attention_mask"] == Type("i64", (B, S + T))
    assert inputs["past.1.key"].shape[::2] == (B, L)
    assert graph.names[:3] == ("logits", "present.0.key", "present.0.value")
    assert graph.outputs[0].type == Type("f32", (B, T, models.VOCAB))
    assert [value.type for value in graph.outputs[1:]] == [value.type for value in graph.inputs[2:]]


def test_constants_are_the_parameters_and_only_they(case: Any) -> None:
    traced = case[0]
    constants = {n.attrs["name"]: n.attrs["shape"] for n in traced.graph if n.op.name == "constant"}
    assert constants == traced.shapes
    assert all(len(n.attrs["data"]) <= 64 for n in traced.graph if n.op.name == "literal")


def test_where_a_node_came_from(case: Any) -> None:
    (gate,) = {n.origin for n in case[0].graph if n.op.name == "top_k" and "layers.1" in n.origin}
    assert gate == "model.layers.1.mlp.gate"
    assert {n.op.name for n in case[0].graph} <= set(OPS)


def test_tied_embeddings(tmp_path: Any) -> None:
    models.save(tmp_path, "qwen3_moe", tie_word_embeddings=True, num_hidden_layers=1)
    source = resolve(str(tmp_path))
    traced = trace(source)
    assert "lm_head.weight" not in traced.shapes
    check((traced, Eager(source, double=True)), models.tokens(2, 4), [4])


def test_config_alone_has_no_weights(tmp_path: Any) -> None:
    models.config("deepseek_v3", num_hidden_layers=2).save_pretrained(tmp_path)
    traced = trace(resolve(config=tmp_path))
    with pytest.raises(BadModel, match="--random-weights SEED"):
        traced.weights.read("model.norm.weight")


def of(module: nn.Module, *inputs: Tensor) -> Traced:
    return trace(Source("test", "module", module=module, inputs=inputs))


def run(traced: Traced, *inputs: Tensor) -> list[np.ndarray]:
    feeds = {f"in.{i}": x.numpy() for i, x in enumerate(inputs)}
    return list(interpret(traced.graph, feeds, traced.weights).values())


class Many(nn.Module):
    """Many calls at once, as an export takes seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.table = nn.Parameter(torch.randn(9, 6))
        self.register_buffer("scale", torch.linspace(1, 2, 6), persistent=False)

    def forward(self, x: Tensor, ids: Tensor) -> dict[str, Tensor]:
        left, middle, right = x.split([1, 2, 3], -1)
        y = x.clone()
        y[:, 1:3] *= 2
        y[:, 0] = 0.5
        inverse = torch.empty_like(ids)
        order = torch.sort(ids).indices
        inverse[order] = torch.arange(ids.shape[0])
        return {
            "norm": self.norm(x) * self.scale,
            "clamp": x.clamp(-0.5, 0.5).abs().sqrt() + 2 * x - (1 - x),
            "chunks": torch.cat(torch.chunk(x, 2, -1)[::-1], -1),
            "split": torch.cat([right, left.expand(-1, 2), middle], 1),
            "stack": torch.stack([x, -x], 1).flatten(1),
            "write": y,
            "embed": nn.functional.embedding(ids, self.table) @ self.table.T,
            "where": torch.where(x > 0, x, x.mean(-1, keepdim=True)).masked_fill((x > 1) | (x < -1), 0.25),
            "order": torch.cat([x.topk(3, -1, largest=False)[0], x.sort(-1, descending=True).values], -1),
            "least": x.max(0).indices.float() + x.amax(1).sum(),
            "inverse": inverse,
            "repeat": x.repeat(1, 2).view(-1, 3, 4)[..., -1].cumsum(1),
            "each": x.repeat_interleave(2, dim=1)[:, ::3],
            "tril": torch.tril(x.unsqueeze(2) * x.unsqueeze(1), 1).transpose(1, 2).softmax(1),
            "ints": (ids // 2 * 3).float() / 2 + ids.new_ones(ids.shape),
            "one": torch.full_like(x, 3) ** 2 * torch.ones(6) - torch.zeros_like(x) + nn.functional.gelu(x),
        }


def test_many_calls_of_a_module() -> None:
    module = Many()
    traced = of(module, torch.randn(5, 6), torch.randint(0, 9, (5,)))
    assert [str(value.type) for value in traced.graph.inputs] == ["f32[B, 6]", "i64[T]"]
    inputs = torch.randn(7, 6), torch.randperm(8)
    wanted = module(*inputs)
    for (name, value), got in zip(wanted.items(), run(traced, *inputs), strict=True):
        np.testing.assert_allclose(got, value.detach().numpy(), rtol=1e-5, atol=1e-5, err_msg=name)


class StaleView(nn.Module):
    """Reads a view that was taken before its tensor was written."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.5
        view = y[:, :2]
        y.add_(1)
        return view * 2


def test_a_view_read_after_a_write() -> None:
    x = torch.randn(4, 3)
    (got,) = run(of(StaleView(), x), x)
    np.testing.assert_allclose(got, StaleView()(x).numpy(), rtol=1e-6)


class Grouped(nn.Module):
    """torch's own grouped matmul, which is what experts in bfloat16 become."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8, 16))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        return nn.functional.grouped_mm(x.bfloat16(), self.weight.bfloat16(), offs=ends).float()


def test_torchs_grouped_mm() -> None:
    ends = torch.tensor([2, 2, 5], dtype=torch.int32)
    x = torch.randn(5, 8)
    module = Grouped()
    traced = of(module, x, ends)
    assert "grouped_mm" in {n.op.name for n in traced.graph}
    (got,) = run(traced, x, ends)
    np.testing.assert_allclose(got, module(x, ends).detach().numpy(), rtol=2e-2, atol=2e-2)


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x).real


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"spectrum": Spectrum()})

    def forward(self, x: Tensor) -> Tensor:
        return self.inner["spectrum"](x + 1)


def test_a_call_without_a_meaning_is_named_with_its_module() -> None:
    with pytest.raises(UnsupportedOp) as error:
        of(Deep(), torch.randn(3, 4))
    assert "fft" in str(error.value)
    assert "inner.spectrum" in str(error.value)
    assert "write it with other torch operations" in str(error.value)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def test_state_that_changes_is_refused() -> None:
    with pytest.raises(UnsupportedOp, match="the model changes calls"):
        of(Counting(), torch.randn(3, 2))
