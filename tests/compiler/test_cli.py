"""The command line: one model all the way through, and everything a user can get wrong."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import moec, printed
from rich.console import Console
from safetensors.numpy import load_file, save_file

from moec.compiler import bench, load
from moec.compiler.driver import explain
from moec.compiler.report import render
from moec.compiler.rooms import target_of
from moec.targets.base import Kernel
from moec.targets.cpu import isa
from moec.tuning.fingerprint import here
from moec.tuning.log import Log
from moec.tuning.record import Record

from .. import models

FAMILY = "deepseek_v3"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder in two shards."""
    folder = tmp_path_factory.mktemp("hub") / FAMILY
    models.save(folder, FAMILY, shard="60KB")
    return folder


@pytest.fixture(scope="module")
def compiled(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """An artifact, and what compiling it printed."""
    out = tmp_path_factory.mktemp("out") / "artifact"
    log = out.parent / "log.jsonl"
    return out, printed("compile", hub, "-o", out, "--log", log, "--threads", 1)


def test_compile_says_what_it_did(compiled: tuple[Path, Any]) -> None:
    out, report = compiled
    assert {path.name for path in out.iterdir()} == {*report["files"], "manifest.json", "report.html"}
    assert report["proof"]["max_error"] < 1e-4
    assert report["proof"]["tokens_equal"] == report["proof"]["tokens"] > 0
    assert report["cache"] == {"bytes_per_token": 176, "unfused_bytes_per_token": 960}
    assert {kernel["why"] for kernel in report["kernels"]} == {"default"}
    assert any(each["name"] == "fuse_mla" and each["fired"] == 2 for each in report["passes"])


def test_what_tuning_brought_is_told(compiled: tuple[Path, Any]) -> None:
    report = explain(str(compiled[0]))
    first, *others = report.manifest.kernels
    won = replace(first, why="tuned", gain=1.25, tried=9, reason="the best of 9 tried here")
    shown = io.StringIO()
    Console(file=shown, width=200).print(
        render(replace(report, manifest=replace(report.manifest, kernels=[won, *others])))
    )
    assert "tuned, 1.25x: the best of 9 tried here" in shown.getvalue()
    choices = [kernel for kernel in report.manifest.kernels if kernel.schedules[0]["schedule"]]
    kept = f"{len(choices)} of {len(choices)} kernels kept their default"
    assert f"0 s of tuning; {kept}" in shown.getvalue()


def test_schedules_by_tokens_are_told(compiled: tuple[Path, Any]) -> None:
    report = explain(str(compiled[0]))
    kernel = next(each for each in report.manifest.kernels if each.schedules[0]["schedule"])
    (one,) = kernel.schedules
    other = {**one["schedule"], "mr": 7}
    both = [{**one, "tokens": "1-4"}, {"tokens": "5+", "schedule": other, "gain": 1.5}]
    shown = io.StringIO()
    Console(file=shown, width=300).print(
        render(replace(report, manifest=replace(report.manifest, kernels=[replace(kernel, schedules=both)])))
    )
    few, many = (line for line in shown.getvalue().splitlines() if "nr=" in line)
    spelled = " ".join(f"{knob}={value}" for knob, value in one["schedule"].items())
    assert f" 1-4: {spelled} " in few
    assert " 5+: " in many
    assert " mr=7 " in many
    assert many.rstrip().endswith(", 1.50x")


def test_schedules_by_tokens_reach_the_library(compiled: tuple[Path, Any], hub: Path, tmp_path: Path) -> None:
    log, machine = Log(tmp_path / "log.jsonl"), target_of("cpu", None)
    place = here(machine.capabilities.name, 1, machine.folder)
    for each in compiled[1]["kernels"]:
        kind, *dims, dtype = each["kernel"].split()
        sizes = tuple((name, int(size)) for name, size in (dim.split("=") for dim in dims))
        kernel, schedule = Kernel(kind, sizes, dtype=dtype), each["schedules"][0]["schedule"]
        if "mr" in schedule:
            larger = {5: {**schedule, "mr": 4, "grain": 256}}
            log.append(
                Record(
                    *(kernel, place, schedule, "ok", "", {}, 0.8, True),
                    profile="standard warm",  # so small a model stays in caches
                    larger=larger,
                    ratios={1: 1.0, 5: 0.64},
                )
            )
    out = tmp_path / "out"
    report = printed("compile", hub, "-o", out, "--log", log.path, "--threads", 1)
    assert report["proof"]["max_error"] < 1e-4
    assert report["proof"]["tokens_equal"] == report["proof"]["tokens"] > 0
    found = [kernel for kernel in report["kernels"] if "mr" in kernel["schedules"][0]["schedule"]]
    assert {(kernel["why"], kernel["gain"]) for kernel in found} == {("log", 1.25)}
    assert {tuple((row["tokens"], row["gain"]) for row in kernel["schedules"]) for kernel in found} == {
        (("1-4", 1.0), ("5+", 1.562))
    }
    assert {kernel["name"] for kernel in found}.isdisjoint(each["name"] for each in compiled[1]["kernels"])
    (best, *_) = printed("log", "best", "--log", log.path)
    assert [row["tokens"] for row in best["schedules"]] == ["1-4", "5+"]
    assert "5+: " in moec("log", "best", "--log", log.path).stdout


def test_run_gives_the_tokens_of_transformers(compiled: tuple[Path, Any]) -> None:
    prompt = models.tokens(1, 5)
    wanted = models.build(FAMILY).generate(
        prompt, max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    tokens = ",".join(map(str, prompt[0].tolist()))
    assert printed("run", compiled[0], "--tokens", tokens, "--max-new", 64, "--threads", 1) == {
        "tokens": wanted[0].tolist()
    }


def test_an_artifact_that_chooses_tokens_draws_the_same(
    compiled: tuple[Path, Any], hub: Path, tmp_path: Path
) -> None:
    """PyTorch's tokens come out greedily, and draws are those of the other head."""
    report = printed("compile", hub, "-o", tmp_path / "next", "--head", "next", "--check", "--threads", 1)
    assert report["proof"]["head"] == "next"
    assert report["proof"]["max_error"] < 1e-4
    assert report["proof"]["tokens_equal"] == report["proof"]["tokens"] > 0
    wish = ("--tokens", "3,1,4", "--max-new", 40, "--temperature", 0.8, "--top-p", 0.9, "--top-k", 50)
    drawn = [printed("run", each, *wish, "--seed", 1) for each in (compiled[0], tmp_path / "next")]
    assert drawn[0] == drawn[1] != printed("run", tmp_path / "next", *wish, "--seed", 2)


def test_padded_prompts_of_a_batch_are_as_alone(compiled: tuple[Path, Any]) -> None:
    loaded = load(compiled[0], threads=1)
    ids, mask = models.tokens(2, 7).numpy(), np.ones((2, 7), np.int64)
    mask[0, :3] = 0
    together = loaded.generate(ids, 12, mask)
    np.testing.assert_array_equal(together[0, 3:], loaded.generate(ids[:1, 3:], 12)[0])
    np.testing.assert_array_equal(together[1], loaded.generate(ids[1:], 12)[0])


def test_without_the_library_the_functions_give_the_same(compiled: tuple[Path, Any]) -> None:
    ids = models.tokens(2, 6).numpy()
    with torch.no_grad():
        wanted = models.build(FAMILY)(torch.from_numpy(ids)).logits.numpy()
    for kernels in (True, False):
        got = load(compiled[0], threads=1, kernels=kernels).logits(ids)
        assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_bench_counts_bytes(compiled: tuple[Path, Any]) -> None:
    found = printed("bench", compiled[0], "--prompt", 5, "--max-new", 3, "--threads", 1)
    assert found["decode_tokens_per_second"] > 0
    assert found["cache_bytes_per_token"] == 176
    assert found["weights_per_token"] > found["active_bytes_per_token"] / 2


def test_bench_says_where_the_time_goes(compiled: tuple[Path, Any]) -> None:
    sizes = ("--prompt", 5, "--max-new", 3, "--batch", 2, "--runs", 1, "--threads", 1)
    prefill, decode = printed("bench", compiled[0], *sizes, "--profile")["phases"]
    assert (prefill["name"], prefill["tokens"]) == ("prefill", 10)
    assert (decode["name"], decode["tokens"]) == ("decode", 2)
    for phase in (prefill, decode):
        where = ("kernel_seconds", "other_seconds", "onnxruntime_seconds", "outside_seconds")
        assert sum(phase[part] for part in where) == pytest.approx(phase["seconds"])
        assert phase["kernel_seconds"] == pytest.approx(sum(part["seconds"] for part in phase["kernels"]))
        assert sum(part["calls"] for part in (*phase["kernels"], *phase["others"])) == phase["nodes"]
        assert phase["layers"] == models.LAYERS
        calls = {part["name"]: part["calls"] for part in phase["kernels"]}
        assert calls["latent_attention"] == models.LAYERS
        assert not set(calls) & {part["name"] for part in phase["others"]}
    shown = moec("bench", compiled[0], *sizes, "--profile").stdout
    assert f"{decode['nodes'] / models.LAYERS:.1f} a layer" in shown
    assert "onnxruntime between nodes" in shown


def test_bench_of_a_library_that_counts_otherwise(
    compiled: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.ctypes, "CDLL", lambda path: object())
    assert "counts as another moec did: compile the model again" in refused("bench", compiled[0])


def test_explain_of_the_artifact_and_of_the_config_agree(
    compiled: tuple[Path, Any], hub: Path, tmp_path: Path
) -> None:
    of_artifact = printed("explain", compiled[0])
    of_config = printed("explain", "--config", hub, "--log", tmp_path / "log.jsonl", "--threads", 1)
    (tmp_path / "config.json").write_bytes((hub / "config.json").read_bytes())
    of_folder = printed("explain", tmp_path, "--log", tmp_path / "log.jsonl", "--threads", 1)
    for part in ("kernels", "cache", "active_bytes_per_token", "misses"):
        assert of_config[part] == of_artifact[part] == of_folder[part]


def test_any_module_compiles_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no pattern matches becomes plain ONNX, correct all the same."""
    source = (
        "import torch\ndef make():\n  return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh()), "
    )
    (tmp_path / "somebodys_model.py").write_text(source + "(torch.ones(3, 5),)\n")
    monkeypatch.syspath_prepend(tmp_path)
    report = printed("compile", "somebodys_model:make", "-o", tmp_path / "out", "--threads", 1)
    assert report["proof"]["max_error"] < 1e-6
    assert load(tmp_path / "out").session.run(None, {"in.0": np.ones((3, 5), np.float32)})[0].shape == (3, 7)
    assert "is no language model" in refused("run", tmp_path / "out", "--tokens", "1")
    told = refused("compile", "somebodys_model:make", "-o", tmp_path / "next", "--head", "next")
    assert "somebodys_model:make: it gives no logits of tokens" in told


def test_tables_are_for_people(compiled: tuple[Path, Any]) -> None:
    shown = moec("explain", compiled[0]).stdout
    assert "fuse_mla" in shown
    assert "greedy tokens equal" in " ".join(shown.split())


def test_devices_and_an_empty_log(tmp_path: Path) -> None:
    assert [each["target"] for each in printed("devices")] == ["ascend", "cpu", "cuda"]
    assert printed("log", "show", "--log", tmp_path / "none.jsonl") == []


def test_help_has_examples() -> None:
    shown = moec("--help").stdout
    assert "moec compile ./DeepSeek-V2-Lite -o lite --budget 2m" in shown


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "moec.compiler", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "moec" in done.stdout or "version" in done.stdout


# what a user can get wrong: one sentence on stderr, exit code 2, and nothing written


@pytest.fixture
def broken(hub: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hub, tmp_path / "broken"))


def refused(*arguments: Any) -> str:
    """The sentence with which a command refuses."""
    result = moec(*arguments)
    assert result.exit_code == 2, result.output
    assert not result.stdout
    return " ".join(result.stderr.split())


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return edit


def truncate(folder: Path) -> None:
    data = shards(folder)[0].read_bytes()
    shards(folder)[0].write_bytes(data[: len(data) // 2])


def misshape(folder: Path) -> None:
    tensors = load_file(shards(folder)[0])
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    save_file({**tensors, name: np.ascontiguousarray(tensors[name][:-1])}, shards(folder)[0])


WRONG: list[tuple[str, Callable[[Path], Any], str]] = [
    ("a missing shard", lambda folder: shards(folder)[0].unlink(), "missing model-00001"),
    ("a truncated shard", truncate, "truncated"),
    ("a wrong shape", misshape, "the weights do not fit the config"),
    ("no config", lambda folder: (folder / "config.json").unlink(), "no config.json"),
    ("a torn config", lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
    ("an unknown family", edit_config(model_type="gpt2"), "unknown architecture 'gpt2'"),
    (
        "no experts",
        edit_config(n_routed_experts=None, num_experts=None, num_local_experts=None),
        "no routed experts",
    ),
]


@pytest.mark.parametrize(
    ("change", "sentence"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
def test_a_broken_model_is_refused(
    broken: Path, tmp_path: Path, change: Callable[[Path], Any], sentence: str
) -> None:
    change(broken)
    assert sentence in refused("compile", broken, "-o", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--target", "toaster"], "there is no target 'toaster'; there is ascend, cpu, cuda"),
        (["--isa", "z80"], "no instruction set is called 'z80'"),
        (["--budget", "soon"], "budget 'soon' is not understood"),
        (["--config", "x"], "either MODEL or --config, not both"),
    ],
)
def test_a_wrong_option_is_refused(hub: Path, tmp_path: Path, options: list[str], sentence: str) -> None:
    assert sentence in refused("compile", hub, "-o", tmp_path / "out", *options)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_refused(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("dear to me")
    assert "is not empty" in refused("compile", hub, "-o", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_machine_without_a_compiler_is_told_what_to_get(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "not on PATH" in refused("compile", hub, "-o", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_config_alone_has_no_weights_to_compile(hub: Path, tmp_path: Path) -> None:
    assert "--random-weights" in refused("compile", "--config", hub, "-o", tmp_path / "out")


@pytest.mark.parametrize("model", ["nowhere", "no_such_package.module:function", "json:dumps"])
def test_a_model_that_is_not_there_is_refused(model: str, tmp_path: Path) -> None:
    assert "moec: " in refused("compile", model, "-o", tmp_path / "out")


def test_a_broken_artifact_is_refused(compiled: tuple[Path, Any], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(compiled[0], tmp_path / "copy"))
    data = bytearray((copy / "libmoec_cpu.so").read_bytes())
    data[-1] ^= 1
    (copy / "libmoec_cpu.so").write_bytes(data)
    assert "libmoec_cpu.so was altered" in refused("run", copy, "--tokens", "1")
    assert "libmoec_cpu.so was altered" in refused("bench", copy)


def test_a_machine_may_compile_what_it_cannot_run(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moec.targets.cpu.isa.cpu_flags", lambda: frozenset(isa.V3.features))
    other = ("compile", hub, "-o", tmp_path / "out", "--isa", "x86-64-v4", "--log", tmp_path / "log.jsonl")
    assert "does not run x86-64-v4" in refused(*other, "--budget", "1t")
    skipped = printed(*other)["proof"]["skipped"]
    assert skipped.startswith("not proven here: it is built for x86-64-v4, but this CPU lacks avx512bw")
    assert "this CPU lacks avx512bw" in refused("run", tmp_path / "out", "--tokens", "1")


def test_tokens_must_be_numbers_of_the_vocabulary(compiled: tuple[Path, Any]) -> None:
    assert "not a list of token ids" in refused("run", compiled[0], "--tokens", "a,b")
    assert "vocabulary" in refused("run", compiled[0], "--tokens", f"1,{models.VOCAB}")


def test_a_log_that_is_none_is_refused_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("not a log\nat all\n")
    assert "is not a tuning log" in refused("log", "show", "--log", path)
