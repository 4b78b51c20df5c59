"""Every family with narrower weights: through onnxruntime, as its graph means it, and as an artifact."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from rich.console import Console

from moec.compiler import artifact, compile_model, costs, load, pipeline, proof
from moec.compiler.driver import SMALL
from moec.compiler.interpret import interpret
from moec.compiler.ops.region import REGION
from moec.compiler.proof import NotProven
from moec.compiler.report import render
from moec.compiler.rounding import Rounding, stored_weights
from moec.compiler.source import resolve
from moec.compiler.trace import trace
from moec.passes.layout import pack
from moec.passes.precision import POLICIES, Precision
from moec.targets.cpu import isa, table
from moec.targets.cpu.kernels import amx
from moec.targets.cpu.lower import FORMATS, layout_of
from moec.targets.cpu.pipeline import PASSES
from moec.targets.regions import kernel_of

from . import models
from .benchmarks.shapes import V3_460M, write_config

# Widths in whole groups of 32, all different where they may be.
LATENT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "kv_lora_rank": 32,
    "v_head_dim": 24,
    "qk_nope_head_dim": 16,
}
WIDE = {
    "deepseek_v2_lite": LATENT,
    "deepseek_v2": LATENT | {"q_lora_rank": 128},
    "deepseek_v3": LATENT | {"q_lora_rank": 128},
    "qwen3_moe": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "head_dim": 24,
    },
}
ERRORS = {"int4": (0.07, 0.09), "int8": (0.004, 0.007), "bf16": (0.001, 0.002)}
# Whole logits, RMS: the smallest models are the worst, as a token's experts may be others after rounding.
LOGITS = {"int4": 0.6, "int8": 0.6, "bf16": 0.05}


def rms(x: Any) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


@pytest.mark.parametrize("quant", POLICIES)
@pytest.mark.parametrize("family", models.FAMILIES)
def test_onnxruntime_computes_what_the_graph_means(family: str, quant: str, tmp_path: Path) -> None:
    models.save(tmp_path / "hub", family, **WIDE[family])
    traced = trace(resolve(str(tmp_path / "hub")))
    plain, _ = pipeline.run(traced.graph, PASSES)
    misses: list[Any] = []
    graph = Precision(POLICIES[quant], FORMATS)(plain, misses)
    assert not misses
    packed = pack(graph, {n: layout_of(kernel_of(n), {"nr": 16}) for n in graph if n.op is REGION})
    rounding, out = Rounding(), tmp_path / "out"
    out.mkdir()
    artifact.store(out, packed, traced.weights, lambda _: None, lambda *_: None, rounding.observe)
    feeds = pipeline.random_feeds(packed, SMALL)
    session = onnxruntime.InferenceSession(str(out / artifact.MODEL))
    real = feeds["attention_mask"][:, -feeds["input_ids"].shape[1] :].astype(bool)
    meant = interpret(packed, feeds, traced.weights)["logits"][real]
    got = session.run(["logits"], feeds)[0][real]
    exact = interpret(traced.graph, feeds, traced.weights, double=True)["logits"][real]
    # Nearly always 1e-6; where a number lies between two codes, onnxruntime's sum may round it the other way.
    assert np.median(np.abs(got - meant)) < 1e-3 * np.abs(meant).max()
    assert 1e-4 < rms(got - exact) / rms(exact) < LOGITS[quant]
    for each in stored_weights(packed, rounding):
        low, high = ERRORS.get(each.format, (0, 0))
        assert each.error is not None
        assert low <= each.error <= high, each
    assert (
        costs.active_bytes(graph) < costs.active_bytes(plain) * {"int4": 0.6, "int8": 0.6, "bf16": 0.7}[quant]
    )


@pytest.fixture(scope="module")
def hub(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized") / "hub"
    models.save(folder, "deepseek_v2_lite", **WIDE["deepseek_v2_lite"])
    return folder


@pytest.fixture(scope="module")
def compiled(hub: Path) -> tuple[Path, Any]:
    out = hub.parent / "out"
    return out, compile_model(str(hub), out=out, quant="int4", threads=2)


def test_an_artifact_is_proved_kernel_by_kernel_and_its_quality_is_told(compiled: tuple[Path, Any]) -> None:
    out, report = compiled
    found = load(out).manifest
    assert found.proof == report.manifest.proof is not None
    assert set(found.proof["kernels"]) == {each.name for each in found.kernels}
    folds = isa.host().dot == amx.INSTRUCTION  # tall tiles round to 16 bits
    assert max(each["max_error"] for each in found.proof["kernels"].values()) < (2e-4 if folds else 1e-5)
    assert 0 < found.proof["logit_error"] < LOGITS["int4"]
    assert 0 < found.proof["tokens_agreed"] <= found.proof["tokens"]
    kernels = {each.kernel.split()[0]: each.kernel.split()[-1] for each in found.kernels}
    assert kernels["grouped_swiglu"] == kernels["grouped_combine"] == kernels["linear_swiglu"] == "int4"
    assert kernels["latent_attention"].startswith("bf16")
    console = Console(record=True, width=200)
    console.print(render(report))
    shown = console.export_text()
    assert "int4" in shown
    assert "tokens the same after the same text" in shown
    assert "off standard ops" in shown


def test_the_table_of_weights_is_stored(compiled: tuple[Path, Any]) -> None:
    out, _ = compiled
    weights = {each.name: each for each in load(out).manifest.weights}
    assert weights["lm_head.weight"].format == "int8"
    assert weights["lm_head.weight"].bytes == models.VOCAB * (64 + 2 * 2)
    assert weights["model.embed_tokens.weight"].format == "bf16"
    assert weights["model.layers.1.mlp.gate.weight"].format == "f32"
    assert "lm_head.weight" in (out / "report.html").read_text()


def wrong(original: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel table with another eps for norms than the graph says."""

    def data(*arguments: Any) -> list[str]:
        return [re.sub(r"9\.9999\d*e-07", "0.5", line) for line in original(*arguments)]

    return data


def test_a_wrong_kernel_is_refused(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "data", wrong(table.data))
    with pytest.raises(
        NotProven, match=r"is wrong: its kernel (rms_norm|latent_write)\w* is .* standard ops"
    ):
        compile_model(str(hub), out=tmp_path / "out", quant="int4", threads=2)
    assert not (tmp_path / "out").exists()


def test_where_pytorch_does_not_fit_it_is_not_run(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "free_memory", lambda: 2 << 30)
    report = compile_model(str(hub), out=tmp_path / "out", threads=2)
    found = report.manifest.proof
    assert found is not None
    assert found["skipped"] == "PyTorch was not run: it needs 2.0 GiB of memory, 2.0 are free"
    assert max(each["max_error"] for each in found["kernels"].values()) < 1e-4
    assert "max_error" not in found


def test_this_machine_has_free_memory() -> None:
    assert 1 << 28 < proof.free_memory() < 1 << 50


@pytest.mark.slow
@pytest.mark.parametrize(("quant", "bar"), [("int8", 0.01), ("int4", 0.06)])
def test_logits_of_layers_of_real_width_stay_close(
    quant: str, bar: float, home: Path, tmp_path: Path
) -> None:
    """The mean difference from PyTorch over its largest logit, with routing as it comes."""
    config = write_config(tmp_path / "config", V3_460M | {"num_hidden_layers": 2, "n_routed_experts": 16})
    report = compile_model(config=config, random_weights=0, out=tmp_path / "out", quant=quant)
    assert report.manifest.proof is not None
    assert report.manifest.proof["mean_error"] < bar
