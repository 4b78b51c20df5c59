"""The parts of the benchmarks that can be wrong without anyone noticing: peers, their models, ceilings."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from moec.targets.flags import cpu_flags

from .benchmarks import gguf_model, hollow, llama, moe, nbits, shapes
from .benchmarks.absent import Absent, need, present
from .benchmarks.ceilings import FLOATS, INT8, MATRICES, READ, Ceiling, ceilings
from .benchmarks.quantized import floated
from .benchmarks.setting import Setting
from .benchmarks.timing import interleave

# What llama-bench prints of one test, without the fields that say how it was built.
PRINTED = {
    "model_type": "deepseek2 16B (guessed) Q4_0",
    "model_size": 8847046656,
    "model_n_params": 15706484224,
    "n_threads": 2,
    "n_prompt": 512,
    "n_gen": 0,
    "avg_ts": 19.1,
    "stddev_ts": 0.1,
    "samples_ns": [26943564220, 26666666666],
    "samples_ts": [19.0, 19.2],
}


def test_speeds_in_what_llama_bench_prints() -> None:
    decode = PRINTED | {"n_prompt": 0, "n_gen": 32, "samples_ts": [11.2]}
    found = llama.parse(json.dumps([PRINTED, decode]))
    assert found == [llama.Speed(512, 0, (19.0, 19.2)), llama.Speed(0, 32, (11.2,))]


@pytest.mark.parametrize("text", ["", "error: no model", '{"n_prompt": 1}', '[{"n_prompt": 1, "n_gen": 0}]'])
def test_a_program_that_prints_no_speeds(text: str) -> None:
    with pytest.raises(Absent, match="llama-bench printed no speeds but"):
        llama.parse(text)


def test_a_program_that_fails() -> None:
    with pytest.raises(Absent, match=r"`ls` failed: .*nowhere"):
        llama.told("ls", "/nowhere")


def test_absent_peers_are_skipped_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> int:
        need("no_such_package", "llama")
        return 1

    assert present({"here": lambda: 2, "llama.cpp": missing}) == {"here": 2}
    said = capsys.readouterr().err
    assert (
        "skipped: llama.cpp: the package no_such_package is not installed: pip install 'moec[llama]'" in said
    )


def test_a_model_that_disk_has_no_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "need", lambda package, extra: None)
    monkeypatch.setattr(llama.shutil, "disk_usage", lambda folder: SimpleNamespace(free=9 << 30))
    with pytest.raises(Absent, match=r"its model takes 8.8 GB and .* has 9.7 GB free"):
        llama.model(tmp_path, shapes.V2_LITE, "Q4_0")
    assert not list(tmp_path.iterdir())


def test_the_model_for_llama_is_that_of_deepseek_v2_lite() -> None:
    """As counted by llama.cpp itself."""
    sizes = [int(np.prod(shape)) for _, shape in gguf_model.tensors(shapes.V2_LITE)]
    assert sum(sizes) == PRINTED["model_n_params"]
    assert gguf_model.total(shapes.V2_LITE, "Q4_0") == PRINTED["model_size"]


TINY: dict[str, Any] = shapes.V2_LITE | {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 160,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "n_routed_experts": 4,
    "kv_lora_rank": 32,
}


@pytest.mark.parametrize("form", ["Q4_0", "Q8_0"])
def test_a_file_for_llama(form: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(gguf_model.write(tmp_path / "model.gguf", TINY, form))
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert set(found) == {f"{name}.weight" for name, _ in gguf_model.tensors(TINY)}
    down = found["blk.1.ffn_down_exps.weight"]
    assert (list(down.shape), down.tensor_type.name) == ([32, 64, 4], form)  # the fastest axis first
    weights = gguf.quants.dequantize(down.data, down.tensor_type)
    assert weights.std() == pytest.approx(32**-0.5, rel=0.1)
    assert found["blk.1.ffn_gate_inp.weight"].tensor_type.name == "F32"
    assert reader.get_field("deepseek2.attention.key_length").contents() == 32 + 64
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def random_codes(random: np.random.Generator, bits: int, *shape: int) -> tuple[Any, Any]:
    """Codes and scales of both signs."""
    low, high = (-8, 7) if bits == 4 else (-127, 127)
    scales = random.standard_normal((*shape[:-1], shape[-1] // nbits.GROUP)).astype(np.float16) / high
    return random.integers(low, high, shape, np.int8, endpoint=True), scales


@pytest.mark.parametrize(("bits", "accuracy", "most"), [(4, 0, 1e-5), (4, 4, 0.03), (8, 4, 0.03)])
def test_the_peer_for_products_means_the_same_codes(bits: int, accuracy: int, most: float) -> None:
    random = np.random.default_rng(0)
    codes, scales = random_codes(random, bits, 48, 64)
    x = random.standard_normal((3, 64), np.float32)
    exact = x.astype(np.float64) @ floated(codes, scales, bits).T
    y, other = nbits.linears(codes, scales, bits, accuracy, 2, 1).run(None, {"x": x})
    assert np.abs(y - exact).max() < most * np.abs(exact).max()
    assert (y != other).any()  # else onnxruntime would keep, and read, the weights of one


def test_the_codes_of_onnxruntimes_own_quantizer() -> None:
    w = np.random.default_rng(0).standard_normal((5, 96), np.float32)
    codes, scales = nbits.codes_of_onnxruntime(w)
    assert (codes.min(), codes.max()) == (-8, 7)
    assert 0.05 < np.linalg.norm(floated(codes, scales, 4) - w) / np.linalg.norm(w) < 0.15


@pytest.mark.parametrize(("accuracy", "most"), [(0, 1e-5), (4, 0.05)])
def test_the_peer_for_layers_means_the_same_routing_and_codes(accuracy: int, most: float) -> None:
    random = np.random.default_rng(0)
    gate = random.standard_normal((8, 64), np.float32) / 8
    first, second = random_codes(random, 4, 8, 2 * 96, 64), random_codes(random, 4, 8, 64, 96)
    x = random.standard_normal((5, 64), np.float32)
    exact = moe.exact(x, gate, lambda e: (moe.floated4(first, e), moe.floated4(second, e)))
    session = nbits.experts(gate, first, second, moe.CHOSEN, accuracy, 1)
    assert np.abs(session.run(None, {"x": x})[0] - exact).max() < most * np.abs(exact).max()


def test_ceilings_are_measured(tmp_path: Path) -> None:
    rates = {name: ceiling.rate() for name, ceiling in ceilings(1, tmp_path).items()}
    assert rates[READ] > 1e9
    assert rates[FLOATS] > 1e9
    assert rates[INT8] > rates[FLOATS]
    assert (rates.get(MATRICES, 0) > rates[INT8]) == ("amx_int8" in cpu_flags())


def test_a_ceiling_is_a_contender_whose_ratio_is_our_share() -> None:
    """A ceiling that does 4 units in 4 ms, beside a call of 4 ms that does 1 or half a unit."""
    slow = Ceiling(4.0, 1, lambda _: time.sleep(0.004), ThreadPoolExecutor(1))
    setting = Setting(1, "0", Path(), {READ: slow})
    for amount in (1.0, 0.5):
        taken = interleave({"moec": lambda: time.sleep(0.004), **setting.floors(read=amount, int8=1.0)}, 2)
        assert list(taken) == ["moec", READ]
        assert 0.2 < taken[READ] / taken["moec"] / (amount / 4) < 5


@pytest.mark.parametrize(("bits", "zero"), [(4, 8), (8, 128)])
def test_what_fills_codes_and_scales_keeps_the_variance(bits: int, zero: int, tmp_path: Path) -> None:
    """A weight of 3 panels of 16 rows and 64 columns, as a model without its large weights names it."""
    later, groups = f"{hollow.PREFIX}001.bin", 2
    codes, scales = 3 * 16 * 64 * bits // 8, 3 * groups * 16 * 2
    tensors = [
        placed("codes", onnx.TensorProto.UINT8, [3, codes // 3], later, 0, codes),
        placed("scales", onnx.TensorProto.FLOAT16, [3, groups, 16], later, 4096, scales),
        placed("there", onnx.TensorProto.FLOAT, [4], "weights-001.bin", 0, 16),
    ]
    graph = onnx.helper.make_graph([], "hollow", [], [], tensors)
    (tmp_path / "hollow").mkdir()
    onnx.save(onnx.helper.make_model(graph), tmp_path / "hollow" / "model.onnx")
    assert hollow.fill(tmp_path / "hollow", tmp_path / "whole") == codes + scales
    content = (tmp_path / "whole" / later).read_bytes()
    stored, each = np.frombuffer(content[:codes], np.uint8), np.frombuffer(content[4096:], np.float16)
    numbers = np.hstack([stored & 15, stored >> 4]) if bits == 4 else stored
    assert len(each) == 3 * groups * 16
    assert (numbers.astype(float) - zero).std() * each.max() == pytest.approx(64**-0.5, rel=0.1)


def placed(name: str, kind: int, dims: list[int], file: str, offset: int, length: int) -> onnx.TensorProto:
    """A tensor whose bytes lie in a file."""
    tensor = onnx.TensorProto(name=name, data_type=kind, dims=dims, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", file), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
