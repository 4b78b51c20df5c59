"""Artifacts for NVIDIA GPUs on a machine without one: they are written, say what they need, and still run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from benchmarks import hollow, hollow_make
from command import printed, refused

from moec.compiler import compile_model, load
from moec.compiler.library import cached, versions
from moec.compiler.manifest import BadArtifact
from moec.compiler.rooms import target_of
from moec.compiler.session import CPU
from moec.targets.base import Kernel
from moec.targets.cuda import build, sm
from moec.targets.cuda.target import Target

NO_GPU = "no NVIDIA driver on this machine: libcuda.so.1 is not found"


@pytest.fixture(scope="module", autouse=True)
def without_gpu() -> Iterator[None]:
    """No GPU is found, and nothing is compiled: the kernels have tests of their own."""

    def absent() -> Any:
        raise ValueError(NO_GPU)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sm, "host", absent)
        patch.setattr("moec.compiler.library.emit_all", lambda target, jobs, tell: [])
        patch.setattr(build, "link", lambda emitted, out, sm: out.write_bytes(b"no library"))
        yield


@pytest.fixture(scope="module", params=("deepseek_v3", "qwen3_moe"))
def artifact(
    request: pytest.FixtureRequest, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any, Any]:
    """A tiny model's artifact, transformers' model of it, and the report."""
    folder = tmp_path_factory.mktemp(request.param)
    model = models.save(folder / "hub", request.param)
    return folder / "out", model, compile_model(str(folder / "hub"), "cuda", out=folder / "out")


def test_the_manifest_says_what_it_needs_and_that_it_is_not_proven(artifact: Any) -> None:
    out, _, report = artifact
    facts, found = report.manifest.target, report.manifest
    assert (facts["name"], facts["isa"], facts["library"]) == ("cuda", "sm_90a", "libmoec_cuda.so")
    assert facts["provider"] == {"memory": "gpu", "vendor": 0x10DE}
    assert facts["whole"] == ("qwen" not in out.parent.name)
    assert found.proof == {"skipped": f"not proven here: it is built for sm_90a, but {NO_GPU}"}
    assert "tilelang" in found.toolchain
    assert {weight.format for weight in found.weights if weight.name.endswith("proj.weight")} == {"bf16"}
    assert "not proven here" in (out / "report.html").read_text()


def test_loading_says_what_is_missing_in_one_sentence(artifact: Any) -> None:
    out, *_ = artifact
    with pytest.raises(BadArtifact, match=f"is built for sm_90a, but {NO_GPU}; run it where such a GPU is"):
        load(out)
    told = refused("run", out, "--tokens", "1,2,3")
    assert NO_GPU in told
    assert told.count("\n") <= 1
    assert NO_GPU in refused("bench", out)


def test_standard_ops_stand_in_for_the_kernels(artifact: Any) -> None:
    out, model, _ = artifact
    loaded = load(out, kernels=False)
    assert loaded.session.get_providers() == [CPU]
    ids, mask = models.tokens(2, 9), torch.ones(2, 9, dtype=torch.int64)
    mask[0, :3] = 0
    with torch.no_grad():
        wanted = model.to(torch.bfloat16).float()(ids, attention_mask=mask).logits.numpy()
    got = loaded.logits(ids.numpy(), mask.numpy())
    real = mask.numpy().astype(bool)
    error = np.sqrt(np.mean((got[real] - wanted[real]) ** 2) / np.mean(wanted[real] ** 2))
    assert error < 0.05
    tokens = loaded.generate(ids.numpy(), 4, mask.numpy())
    again = loaded.logits(tokens[:, :-1], np.hstack([mask.numpy(), np.ones((2, 3), np.int64)]))
    assert (again[:, 8:].argmax(-1) == tokens[:, 9:]).mean() > 0.7


def test_latents_in_fp8(home: Path, tmp_path: Path) -> None:
    models.save(tmp_path / "hub", "deepseek_v3")
    loaded = []
    for cache in ("bf16", "fp8"):
        compile_model(str(tmp_path / "hub"), "cuda", out=tmp_path / cache, cache=cache)
        loaded.append(load(tmp_path / cache, kernels=False))
    ids, room = models.tokens(2, 9).numpy(), loaded[1].cache(2, 12)
    assert {name: str(each.dtype) for name, each in room.items() if ".0." in name} == {
        "past.0.key": "uint8",
        "past.0.value": "bfloat16",
        "past.0.scale": "float32",
    }
    assert loaded[1].manifest.cache["bytes_per_token"] * 2 * 12 == sum(each.nbytes for each in room.values())
    exact, coded = (each.logits(ids) for each in loaded)
    assert 0 < np.sqrt(np.mean((coded - exact) ** 2)) < 0.05 * np.sqrt(np.mean(exact**2))
    steps = [loaded[1].step(ids[:, t : t + 1], np.ones((2, t + 1), np.int64), room) for t in range(9)]
    assert np.abs(np.concatenate(steps, axis=1) - coded).max() <= 0.03 * np.abs(coded).max()


def test_what_cuda_has_no_kernels_for_is_refused(tmp_path: Path) -> None:
    models.config("deepseek_v3").save_pretrained(tmp_path / "hub")
    model = ("--config", tmp_path / "hub", "--random-weights", 0)
    compile_ = ("compile", *model, "--target", "cuda", "-o", tmp_path / "out")
    assert "no format 'int4' for weights; there is none, bf16, fp8" in refused(*compile_, "--quant", "int4")
    assert "the cuda target keeps no cache in f32; there is bf16, fp8" in refused(*compile_, "--cache", "f32")
    assert "no code for 'sm_70'; there is sm_90a" in refused(*compile_, "--sm", "sm_70")
    assert "does not run sm_90a" in refused(*compile_, "--budget", "1t")


def test_a_rule_for_f32_weights_is_not_met_and_said(tmp_path: Path, home: Path) -> None:
    models.config("deepseek_v3").save_pretrained(tmp_path / "hub")
    (tmp_path / "rules.json").write_text(json.dumps({"lm_head*": "f32"}))
    explained = ("explain", "--config", tmp_path / "hub", "--target", "cuda")
    report = printed(*explained, "--quant-config", tmp_path / "rules.json")
    assert any("lm_head.weight is bf16, not f32: linear has no kernel" in miss for miss in report["misses"])
    assert {each["format"] for each in report["weights"] if each["name"] == "lm_head.weight"} == {"bf16"}


def test_devices_lists_it() -> None:
    (found,) = (each for each in printed("devices") if each["target"] == "cuda")
    assert not found["runs"]
    assert not found["measures"]
    assert found["isa"] == NO_GPU


def test_the_key_of_cached_code_depends_on_the_tools_that_write_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel("rms_norm", (("n", 8), ("width", 8), ("start", 0)), (("eps", 1e-6),))
    cuda, cpu = Target(sm.SMS[0]), target_of("cpu", "x86-64-v3")
    before = [cached(each, (kernel, {1: {}})) for each in (cuda, cpu)]
    other = lambda packages: {"tilelang": "9"} if "tilelang" in packages else versions(packages)  # noqa: E731
    monkeypatch.setattr("moec.compiler.library.versions", other)
    after = [cached(each, (kernel, {1: {}})) for each in (cuda, cpu)]
    assert [a == b for a, b in zip(before, after)] == [False, True]


def test_a_hollow_artifact_is_filled_where_it_runs(tmp_path: Path, home: Path) -> None:
    models.config("deepseek_v3").save_pretrained(tmp_path / "hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hollow_make, "LARGE", 256)
        hollow_make.make(tmp_path / "hub", tmp_path / "hollow", "cuda", "sm_90a")
    missing = {place.file for place in hollow.places_of(tmp_path / "hollow")}
    assert missing
    assert not any((tmp_path / "hollow" / name).exists() for name in missing)
    size = hollow.fill(tmp_path / "hollow", tmp_path / "whole")
    assert size <= sum((tmp_path / "whole" / name).stat().st_size for name in missing)
    loaded = load(tmp_path / "whole", verify="size", kernels=False)
    logits = loaded.logits(models.tokens(1, 5).numpy())
    assert np.isfinite(logits).all()
    assert logits.std() > 0.1
