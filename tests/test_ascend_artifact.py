"""Artifacts for Ascend NPUs on a machine without one: what is in them, and that they are right.

Kernels run here by simulation, from what the vendor's compiler is given, and all that is said says so.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from command import moec, printed, refused

from moec.compiler import compile_model, load
from moec.compiler.artifact import fingerprint
from moec.compiler.manifest import BadArtifact
from moec.targets import flags
from moec.targets.ascend import npu
from moec.targets.ascend.target import SIMULATED, Target, unfit

# Families, the format of weights and of all that goes from kernel to kernel, and how far logits may be off in
# the proof.
FAMILIES = {"deepseek_v3": ("bf16", 0.05), "qwen3_moe": ("f16", 0.01)}
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


@dataclass(frozen=True)
class Made:
    """A tiny model's artifact, transformers' model of it, and the report."""

    family: str
    out: Path
    model: Any
    report: Any


@pytest.fixture(scope="module", params=FAMILIES)
def made(
    request: pytest.FixtureRequest,
    home: Path,
    ascend_toolchain: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    model = models.save(folder / "hub", request.param)
    half, _ = FAMILIES[request.param]
    report = compile_model(str(folder / "hub"), "ascend", out=folder / "out", threads=2, quant=half)
    return Made(request.param, folder / "out", model, report)


def test_the_manifest_says_what_it_is_for_and_that_here_it_is_simulated(made: Made) -> None:
    found = made.report.manifest
    facts = found.target
    assert (facts["name"], facts["isa"], facts["library"]) == ("ascend", "Ascend910B3", "libmoec_ascend.so")
    assert facts["provider"] == {"memory": "npu", "vendor": 0x19E5}
    assert facts["without_npu"] == SIMULATED
    assert {"triton-ascend", "ascendnpu-ir", "mlir"} <= set(found.toolchain)
    assert {each.format for each in found.weights if each.name.endswith("proj.weight")} == {
        FAMILIES[made.family][0]
    }
    assert "libmoec_ascend.so" in found.files


def test_every_function_lies_there_in_the_vendors_languages(made: Made) -> None:
    listed = made.report.manifest.files
    folder = made.out / "ascend"
    there = {path.relative_to(made.out).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == {name for name in listed if name.startswith("ascend/")}
    assert all(fingerprint(made.out / name) == listed[name] for name in there)
    names = {path.name.removesuffix(".json") for path in folder.glob("*.json")}
    assert names
    for name in names:
        told = json.loads((folder / f"{name}.json").read_text())
        assert told["soc"] == "Ascend910B3"
        assert told["notes"] == []
        assert told["launches"]
        assert f"@{name}(" in (folder / f"{name}.linalg.mlir").read_text()
        assert f"@{name}" in (folder / f"{name}.hivm.mlir").read_text()
        assert f"\nkernel {name} {told['workspace_bytes_per_block']} " in (folder / "finish.sh").read_text()
    subprocess.run(["sh", "-n", folder / "finish.sh"], check=True)


def test_a_file_that_is_altered_or_leads_elsewhere_is_noticed(made: Made, tmp_path: Path) -> None:
    (tmp_path / "artifact").symlink_to(made.out)
    script = made.out / "ascend" / "finish.sh"
    before = script.read_bytes()
    try:
        script.write_bytes(before.replace(b"set -eu", b"set +eu"))
        with pytest.raises(BadArtifact, match=r"finish\.sh was altered"):
            load(made.out)
    finally:
        script.write_bytes(before)
    moved = tmp_path / "elsewhere"
    (made.out / "ascend").rename(moved)
    try:
        with pytest.raises(BadArtifact, match="is missing"):
            load(made.out)
        (made.out / "ascend").symlink_to(moved)
        with pytest.raises(BadArtifact, match="is no folder; links are not followed"):
            load(made.out)
    finally:
        (made.out / "ascend").unlink(missing_ok=True)
        moved.rename(made.out / "ascend")
    load(made.out, kernels=False)


def test_it_is_proven_by_simulation_and_says_so(made: Made) -> None:
    proof = made.report.manifest.proof
    assert proof["simulated"] == SIMULATED
    assert proof["kernels"]
    assert max(each["max_error"] for each in proof["kernels"].values()) < 5e-2
    assert proof["logit_error"] < FAMILIES[made.family][1]
    assert proof["mean_error"] < 0.01
    page = (made.out / "report.html").read_text()
    assert f"{SIMULATED}: error" in page


def test_it_computes_what_transformers_does(made: Made) -> None:
    loaded = load(made.out, 2)
    assert loaded.on_device
    assert loaded.simulated == SIMULATED
    ids, mask = models.tokens(2, 9), torch.ones(2, 9, dtype=torch.int64)
    mask[0, :3] = 0
    rounded = made.model.to(DTYPES[FAMILIES[made.family][0]]).float()
    with torch.no_grad():
        wanted = rounded(ids, attention_mask=mask).logits.numpy()
    got = loaded.logits(ids.numpy(), mask.numpy())
    real = mask.numpy().astype(bool)
    error = np.sqrt(np.mean((got[real] - wanted[real]) ** 2) / np.mean(wanted[real] ** 2))
    assert error < 0.05
    tokens = loaded.generate(ids.numpy(), 4, mask.numpy())
    longer = np.hstack([mask.numpy(), np.ones((2, 3), np.int64)])
    again = loaded.logits(tokens[:, :-1], longer)
    assert (again[:, 8:].argmax(-1) == tokens[:, 9:]).mean() > 0.7
    with torch.no_grad():
        text, seen = torch.from_numpy(tokens[:, :-1]), torch.from_numpy(longer)
        logits = rounded(text, attention_mask=seen).logits.numpy()[:, 8:]
    chosen = np.take_along_axis(logits, tokens[:, 9:, None], -1)[..., 0]
    assert (logits.max(-1) - chosen).max() < 0.02, "each token decoded is PyTorch's best, or as good"


def test_run_and_bench_say_that_they_are_simulated(made: Made) -> None:
    told = printed("run", made.out, "--tokens", "1,2,3", "--max-new", 2)
    assert told["simulated"] == SIMULATED
    assert len(told["tokens"]) == 5
    assert f"is {SIMULATED}" in moec("run", made.out, "--tokens", "1,2,3", "--max-new", 1).stderr
    timed = ("bench", made.out, "--prompt", 4, "--max-new", 2, "--runs", 1)
    found = printed(*timed)
    assert (found["simulated"], found["read_bandwidth"], found["read_share"]) == (SIMULATED, 0.0, 0.0)
    assert SIMULATED in moec(*timed).stdout
    assert SIMULATED in moec("explain", made.out).stdout


def test_what_ascend_has_no_kernels_for_is_refused(tmp_path: Path) -> None:
    models.config("deepseek_v3").save_pretrained(tmp_path / "hub")
    model = ("--config", tmp_path / "hub", "--random-weights", 0)
    compile_ = ("compile", *model, "--target", "ascend", "-o", tmp_path / "out")
    assert "the ascend target keeps no cache in f32; there is bf16" in refused(*compile_, "--cache", "f32")
    told = refused(*compile_, "--soc", "310P3")
    assert "the ascend target has no code for '310P3'; there is 910B3, 910B1, 910B2, 910B4" in told
    assert not (tmp_path / "out").exists()


def test_where_an_artifact_does_not_run_a_sentence_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = Target(npu_free()).facts
    assert unfit(facts) == ""
    with monkeypatch.context() as patch:
        patch.setattr(flags, "cpu_flags", lambda: frozenset(flags.V3) - {"avx2"})
        assert "this CPU, which lacks avx2, cannot simulate it" in unfit(facts)
    monkeypatch.setattr(npu, "soc_here", lambda: "Ascend910B4")
    assert unfit(facts) == "is built for Ascend910B3, but this machine's NPU is Ascend910B4"
    monkeypatch.setattr(npu, "soc_here", lambda: "Ascend910B3")
    assert unfit(facts) == ""


def npu_free() -> Any:
    """The first SoC; this machine has none of them."""
    from moec.targets.ascend.soc import SOCS

    with pytest.raises(ValueError, match="no CANN on this machine"):
        npu.soc_here()
    return SOCS[0]


def test_devices_lists_it_as_simulated() -> None:
    (found,) = (each for each in printed("devices") if each["target"] == "ascend")
    assert found["simulated"]
    assert SIMULATED in found["device"]
    assert "runs (simulated)" in " ".join(moec("devices").stdout.split())
