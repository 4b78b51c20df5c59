"""Artifacts that choose the next token themselves, and that others choose alike from their logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moec.compiler import load, runner, texts
from moec.compiler.bench import steps
from moec.compiler.exercise import following, logits, prompt
from moec.compiler.runner import Artifact
from moec.compiler.sampler import Sampler
from moec.compiler.texts import Recorded
from moec.passes.head import choosing
from moec.passes.last import take_rows_first

from . import toys

IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
LEFT = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
WISHES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "seed": 1},
    {"temperature": 2.0, "seed": 2},
    {"temperature": 1.0, "top_p": 0.3, "seed": 3},
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.write(tmp_path_factory.mktemp("plain") / "toy")


@pytest.fixture(scope="module")
def choosy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same that chooses."""
    whole = toys.model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toys, "model", lambda: take_rows_first(choosing(whole()), []))
        return toys.write(tmp_path_factory.mktemp("choosy") / "toy")


@pytest.fixture
def both(plain: Path, choosy: Path) -> tuple[Artifact, Artifact]:
    return load(plain, threads=1), load(choosy, threads=1)


def test_each_wish_is_obeyed() -> None:
    logits = np.array([[0.0, 3.0, 2.9, 2.0, -1.0]], np.float32)

    def drawn(times: int = 200, **wish: Any) -> list[int]:
        choose = Sampler(seed=0, **wish)
        return [int(choose(logits)[0]) for _ in range(times)]

    assert set(drawn()) == {1}
    assert set(drawn(temperature=1.0, top_k=1)) == {1}
    assert set(drawn(temperature=1.0, top_k=2)) == {1, 2}
    assert set(drawn(temperature=1.0, top_p=0.6)) == {1, 2}
    assert set(drawn(temperature=50.0)) == {0, 1, 2, 3, 4}
    assert drawn(temperature=1.0) == drawn(temperature=1.0)
    assert Sampler(1.0, seed=1)(np.zeros((8, 99), np.float32)).tolist() != (
        Sampler(1.0, seed=2)(np.zeros((8, 99), np.float32)).tolist()
    )


def test_what_goes_in_and_comes_out(both: tuple[Artifact, Artifact]) -> None:
    plain, choosy = both
    assert (plain.chooses, choosy.chooses) == (False, True)
    given = {each.name: each.type for each in choosy.session.get_inputs()}
    assert [given[name] for name in Sampler().wishes(1)] == [
        *("tensor(float)", "tensor(int64)", "tensor(float)", "tensor(float)")
    ]
    results = {each.name: each.shape for each in choosy.session.get_outputs()}
    assert list(results)[:3] == ["token", "log_probability", "logits"]
    assert results["logits"] == ["B", 1, toys.VOCABULARY]
    assert choosy.vocabulary == plain.vocabulary


@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_both_heads_say_the_same(both: tuple[Artifact, Artifact], wish: dict[str, Any]) -> None:
    texts = [each.generate(IDS, 9, LEFT, **wish) for each in both]
    np.testing.assert_array_equal(*texts)
    assert len(set(texts[0][:, 5:].ravel())) > 3


def test_a_long_prompt_goes_in_chunks_and_draws_once(
    both: tuple[Artifact, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = both[1].generate(IDS, 4, LEFT, **WISHES[2])
    monkeypatch.setattr(texts, "CHUNK", 2)
    np.testing.assert_array_equal(both[1].generate(IDS, 4, LEFT, **WISHES[2]), whole)


def test_logits_of_all_tokens_come_one_by_one(both: tuple[Artifact, Artifact]) -> None:
    want, got = (each.logits(IDS, LEFT) for each in both)
    np.testing.assert_allclose(got[LEFT > 0], want[LEFT > 0], rtol=1e-5, atol=1e-6)


def test_log_probabilities_are_the_models_own(both: tuple[Artifact, Artifact]) -> None:
    choosy = both[1]
    feeds = {"input_ids": IDS, "attention_mask": LEFT, **choosy.cache(2, 5), **Sampler(3.0, 2).wishes(2)}
    token, likely, last = choosy.session.run(["token", "log_probability", "logits"], feeds)
    wide = last[:, 0].astype(np.float64)
    every = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(likely, every[[0, 1], token], rtol=1e-5)


def test_timing_goes_on_greedily(both: tuple[Artifact, Artifact]) -> None:
    for each in both:
        assert len(list(steps(each, IDS, 3))) == 4


def test_it_is_proven_as_others_are(plain: Path, choosy: Path) -> None:
    want, got = (logits(each, IDS, LEFT)[1] for each in (plain, choosy))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    for feeds in (prompt(choosy, IDS, LEFT), following(prompt(choosy, IDS, LEFT))):
        token, *_ = load(choosy, threads=1).session.run(None, feeds)
        assert len(token) == len(feeds["input_ids"])


@pytest.fixture
def recorded(choosy: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Recorded]:
    """Texts as on a device, whose memory is the CPU's: what a step reads lies where it lay."""
    import onnxruntime

    def memory(facts: Any, shape: Any, dtype: Any) -> Any:
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype))

    def copy(source: Any, target: Any) -> None:
        held = source if isinstance(source, np.ndarray) else source.numpy()
        if isinstance(target, np.ndarray):
            target[...] = held
        else:
            target.update_inplace(held)

    for module in (runner, texts):
        monkeypatch.setattr(module, "memory", memory)
        monkeypatch.setattr(module, "copy", copy)
    artifact = load(choosy, threads=1)
    artifact.on_device = True
    artifact.manifest = replace(artifact.manifest, target={**artifact.manifest.target, "provider": {}})
    return lambda: Recorded(artifact, 2, 6)


def test_a_recorded_step_asks_anew_and_fetches_the_token(recorded: Callable[[], Recorded]) -> None:
    texts, mask, found = recorded(), np.ones((2, 6), np.int64), set()
    texts.feed(IDS, mask[:, :5])
    for seed in range(8):
        wish: dict[str, Any] = {"temperature": seed % 4 * 9.0, "top_k": seed, "seed": seed}
        token = texts.next(IDS[:, :1], mask, Sampler(**wish))
        wanted = Sampler(**wish)(texts.step(IDS[:, :1], mask)[:, -1])
        np.testing.assert_array_equal(token, wanted)
        found |= set(token.tolist())
    assert len(found) > 3
