"""Artifacts on disk: written whole or not at all, refused when anything about them is wrong, run in place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from moec.compiler import artifact, load
from moec.compiler.interpret import interpret
from moec.compiler.manifest import SCHEMA, SEAL, BadArtifact, seal
from moec.compiler.runner import Artifact
from moec.compiler.sampler import Sampler
from moec.compiler.texts import BadRequest
from moec.targets.base import CannotBuild
from moec.targets.cpu.target import target

from . import toys

IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
LEFT = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of standard ops only."""
    return toys.write(tmp_path_factory.mktemp("plain") / "toy")


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with kernels."""
    try:
        return toys.write(tmp_path_factory.mktemp("fast") / "toy", target())
    except CannotBuild as cannot:
        pytest.skip(str(cannot))


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    manifest.pop(SEAL)
    manifest[SEAL] = seal(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def expected(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    empty = np.zeros((len(ids), 1, ids.shape[1], toys.WIDTH), np.float32)
    feeds = {"input_ids": ids, "attention_mask": mask, "past.0.key": empty, "past.0.value": empty}
    return interpret(toys.model(), feeds, toys.weights())["logits"]


def greedy(ids: np.ndarray, mask: np.ndarray, new: int) -> np.ndarray:
    """The whole prefix anew for every token, without a cache."""
    for _ in range(new):
        token = expected(ids, mask)[:, -1:].argmax(-1)
        ids, mask = np.hstack([ids, token]), np.hstack([mask, np.ones_like(token)])
    return ids


# running


@pytest.mark.parametrize("kind", ["plain", "fast"])
def test_logits_are_those_of_the_graph(kind: str, request: pytest.FixtureRequest) -> None:
    loaded = load(request.getfixturevalue(kind), threads=1)
    got, want = loaded.logits(IDS, LEFT), expected(IDS, LEFT)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[LEFT > 0], want[LEFT > 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "fast"])
def test_decoding_with_the_cache_equals_decoding_without(kind: str, request: pytest.FixtureRequest) -> None:
    loaded = load(request.getfixturevalue(kind), threads=1)
    np.testing.assert_array_equal(loaded.generate(IDS, 8, LEFT), greedy(IDS, LEFT, 8))


def test_a_long_prompt_goes_in_chunks(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moec.compiler.texts.CHUNK", 2)
    np.testing.assert_array_equal(load(plain, threads=1).generate(IDS, 4, LEFT), greedy(IDS, LEFT, 4))


def test_functions_equal_kernels(fast: Path) -> None:
    kernels, functions = (load(fast, threads=1, kernels=kernels) for kernels in (True, False))
    np.testing.assert_allclose(kernels.logits(IDS), functions.logits(IDS), rtol=1e-5, atol=1e-5)


def test_every_kernel_is_a_function_too(fast: Path) -> None:
    model = onnx.load(fast / "model.onnx", load_external_data=False)
    called = {node.op_type for node in model.graph.node if node.domain == "moec"}
    assert called
    assert called == {function.name for function in model.functions}


def test_plain_run_leaves_the_past_alone_and_agrees_with_the_cache_in_place(plain: Path) -> None:
    loaded = load(plain, threads=1)
    past = loaded.cache(2, 9)
    feeds = {"input_ids": IDS, "attention_mask": LEFT, **past}
    names = [each.name for each in loaded.session.get_outputs()]
    results = dict(zip(names, loaded.session.run(None, feeds)))
    assert not any(rows.any() for rows in past.values())
    assert not any(rows.ctypes.data % 64 for rows in past.values())  # else loads of rows would be two each
    bound = loaded.cache(2, 9)
    before = {name: rows.ctypes.data for name, rows in bound.items()}
    np.testing.assert_allclose(loaded.step(IDS, LEFT, bound), results["logits"], rtol=1e-6)
    for name, rows in bound.items():
        assert rows.ctypes.data == before[name]
        np.testing.assert_allclose(rows, results[name.replace("past", "present")], rtol=1e-6)


def test_stock_onnxruntime_needs_nothing_of_ours(fast: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(fast / "libmoec_cpu.so"))
    session = onnxruntime.InferenceSession(str(fast / "model.onnx"), options)
    assert [each.name for each in session.get_inputs()][:2] == ["input_ids", "attention_mask"]
    assert session.get_inputs()[2].shape == ["B", 1, "L", toys.WIDTH]


def test_a_sequence_that_ended_goes_on_with_the_end(plain: Path) -> None:
    loaded = load(plain, threads=1)
    end = int(loaded.generate(IDS, 1)[0, -1])
    tokens = loaded.generate(IDS, 6, eos_token_id=end)
    assert (tokens[0, IDS.shape[1] :] == end).all()


def test_one_sequence_stops_at_the_end(plain: Path) -> None:
    loaded = load(plain, threads=1)
    end = int(loaded.generate(IDS[:1], 1)[0, -1])
    assert loaded.generate(IDS[:1], 6, eos_token_id=end).shape == (1, IDS.shape[1] + 1)


def test_draws_repeat_with_a_seed_and_keep_to_the_likely() -> None:
    logits = np.array([[0.0, 5.0, 4.9, -3.0]] * 200)
    drawn = Sampler(1.0, 2, 1.0, seed=3)(logits)
    assert set(drawn) == {1, 2}
    np.testing.assert_array_equal(drawn, Sampler(1.0, 2, 1.0, seed=3)(logits))
    assert set(Sampler(1.0, None, 0.1, seed=3)(logits)) == {1}
    for least in (Sampler(0.0, None, 1.0, 3), Sampler(1.0, None, 0.0, 3), Sampler(1e-320, None, 1.0, 3)):
        assert set(least(logits)) == {1}


@pytest.mark.parametrize(
    ("ids", "mask"),
    [
        ([1, 2], None),
        ([[]], None),
        ([[1, 2]], [[1]]),
        ([[1, 2], [3]], None),
        ([[1 << 70]], None),
        ([[1, 2]], [[1, 2]]),
        ([[1, 2]], [[0.5, 1]]),
    ],
)
def test_a_bad_prompt_is_refused(plain: Path, ids: Any, mask: Any) -> None:
    with pytest.raises(BadRequest, match="got "):
        load(plain, threads=1).logits(ids, mask)


@pytest.mark.parametrize(("new", "temperature"), [(-1, 0.0), (2, -0.5), (2, float("nan"))])
def test_a_bad_request_is_refused(plain: Path, new: int, temperature: float) -> None:
    with pytest.raises(BadRequest, match="neither may be negative"):
        load(plain, threads=1).generate(IDS, new, temperature=temperature)


def test_padding_on_the_right_is_refused(plain: Path) -> None:
    with pytest.raises(BadRequest, match="put padding on its left"):
        load(plain, threads=1).generate(IDS, 2, LEFT[:, ::-1])


# verifying


def test_a_flipped_byte_is_found(copy: Path) -> None:
    path = copy / "weights-001.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadArtifact, match=r"weights-001\.bin was altered"):
        load(copy)
    assert isinstance(load(copy, verify="size"), Artifact)


def test_a_missing_or_shorter_file_is_found(copy: Path) -> None:
    path = copy / "weights-001.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadArtifact, match=r"has \d+ bytes, the manifest says"):
        load(copy, verify="size")
    path.unlink()
    with pytest.raises(BadArtifact, match="is missing"):
        load(copy)


def test_links_are_not_followed(copy: Path, tmp_path: Path) -> None:
    shutil.move(copy / "weights-001.bin", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", copy / "weights-001.bin")
    with pytest.raises(BadArtifact, match="no regular file"):
        load(copy)


@pytest.mark.parametrize("name", ["../manifest.json", "/etc/hostname", "a/../../b", "a//b", "a/", "", ".."])
def test_files_outside_are_refused(copy: Path, name: str) -> None:
    edit(copy, lambda manifest: manifest["files"].update({name: {"size": 1, "sha256": "0"}}))
    with pytest.raises(BadArtifact, match="no file name inside the artifact"):
        load(copy)


def test_a_library_the_manifest_does_not_list_is_not_loaded(copy: Path) -> None:
    edit(copy, lambda manifest: manifest["target"].update(library="../evil.so"))
    with pytest.raises(BadArtifact, match="does not list"):
        load(copy)


def test_an_instruction_set_this_cpu_lacks_is_refused(copy: Path) -> None:
    edit(copy, lambda manifest: manifest["target"].update(isa="x86-64-v9", features=["avx2048"]))
    with pytest.raises(BadArtifact, match=r"built for x86-64-v9, but this CPU lacks avx2048"):
        load(copy)


def test_a_newer_schema_is_refused(copy: Path) -> None:
    edit(copy, lambda manifest: manifest.update(schema=SCHEMA + 1, novelty=True))
    with pytest.raises(BadArtifact, match=f"has schema {SCHEMA + 1}"):
        load(copy)


def test_an_older_onnxruntime_is_refused(copy: Path) -> None:
    edit(copy, lambda manifest: manifest["onnxruntime"].update(oldest="9.0"))
    with pytest.raises(BadArtifact, match=r"needs onnxruntime 9\.0 or newer"):
        load(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("schema"),
        lambda manifest: manifest.pop("files"),
        lambda manifest: manifest.update(files=[]),
        lambda manifest: manifest.update(files={"model.onnx": {"size": "x", "sha256": 1}}),
        lambda manifest: manifest.update(target="cpu"),
        lambda manifest: manifest.update(kernels=[{"x": 1}]),
        lambda manifest: manifest["onnxruntime"].update(oldest="soon"),
        lambda manifest: manifest["files"].pop("model.onnx"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(
    copy: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    edit(copy, change)
    with pytest.raises(BadArtifact):
        load(copy)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"schema": 1', "\xff"])
def test_a_torn_manifest_is_refused(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(BadArtifact):
        load(copy)


def test_no_folder_and_no_manifest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(BadArtifact, match=r"has no manifest\.json"):
        load(tmp_path)


# writing


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("dear to me")
    for force in (False, True):
        with pytest.raises(artifact.OutputTaken, match="is not empty"), artifact.writing(tmp_path, force):
            pytest.fail("must not get here")
    assert (tmp_path / "mine").read_text() == "dear to me"


def test_an_artifact_is_replaced_by_force_only(copy: Path) -> None:
    with pytest.raises(artifact.OutputTaken, match="--force"):
        toys.write(copy)
    (copy / "extra").write_text("of the old one")
    toys.write(copy, force=True)
    assert not (copy / "extra").exists()
    load(copy)


def test_what_fails_leaves_nothing_behind(copy: Path) -> None:
    before = sorted(copy.parent.rglob("*"))

    def fail() -> None:
        with artifact.writing(copy, force=True) as partial:
            (partial / "model.onnx").write_text("half")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert sorted(copy.parent.rglob("*")) == before
    load(copy)


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(artifact.OutputTaken, match="is a file"), artifact.writing(tmp_path / "out"):
        pytest.fail("must not get here")


def test_weights_are_aligned_and_the_same_every_time(plain: Path, tmp_path: Path) -> None:
    again = toys.write(tmp_path / "again")
    for name in ("weights-001.bin", "model.onnx"):
        assert (plain / name).read_bytes() == (again / name).read_bytes()
    model = onnx.load(plain / "model.onnx", load_external_data=False)
    offsets = [
        int(entry.value)
        for t in model.graph.initializer
        for entry in t.external_data
        if entry.key == "offset"
    ]
    assert len(offsets) == 4
    assert all(offset % 4096 == 0 for offset in offsets)


def test_many_may_write_the_same_folder_at_once(tmp_path: Path) -> None:
    def write(_: int) -> None:
        with artifact.writing(tmp_path / "out"):
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(200)))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
