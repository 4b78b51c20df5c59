"""Models whose caches are in pages: through stock onnxruntime, with the kernels and without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moec.compiler import compile_model, load
from moec.compiler.runner import Artifact
from moec.compiler.texts import BadRequest, Texts

from . import models
from .command import printed, refused
from .conftest import Compile

PAGE = 64
FAMILIES = ("deepseek_v3", "qwen3_moe")
Both = tuple[Path, Path]


@pytest.fixture(scope="module", params=FAMILIES)
def both(request: pytest.FixtureRequest, compiled: Compile, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """The artifacts of one model, without pages and with them."""
    made, out = compiled(request.param), tmp_path_factory.mktemp(request.param) / "out"
    compile_model(str(made.hub), out=out, cache_pages=PAGE, threads=2, prove=False)
    return made.out, out


@pytest.fixture(params=[True, False], ids=["kernels", "standard ops"])
def pair(request: pytest.FixtureRequest, both: Both) -> tuple[Artifact, Artifact]:
    contiguous, paged = (load(out, threads=2, kernels=request.param) for out in both)
    return contiguous, paged


def shuffled(artifact: Artifact, batch: int, rows: int, seed: int = 0) -> dict[str, Any]:
    """A cache whose pages lie in random order among others of nobody; all hold what nobody should read."""
    cache = artifact.cache(batch, rows)
    count = cache["pages"].size
    for name in cache.keys() - {"pages"}:
        cache[name] = np.full((count + 3, *cache[name].shape[1:]), 7, cache[name].dtype)
    cache["pages"] = np.random.default_rng(seed).permutation(count + 3)[:count].reshape(batch, -1)
    return cache


def steps(artifact: Artifact, cache: Any, ids: Any, mask: Any) -> Any:
    """Logits of a prompt, and of the tokens after it one by one."""
    first = 70
    ends = range(first + 1, ids.shape[1] + 1)
    whole = artifact.step(ids[:, :first], mask[:, :first], cache)
    return [whole, *(artifact.step(ids[:, end - 1 : end], mask[:, :end], cache) for end in ends)]


def text() -> tuple[Any, Any]:
    """Two texts, one of them padded, longer than a page."""
    ids = models.tokens(2, 74, seed=4).numpy()
    mask = np.ones_like(ids)
    mask[1, :20] = 0
    return ids, mask


def test_shuffled_pages_give_what_caches_without_give(pair: tuple[Artifact, Artifact]) -> None:
    (contiguous, paged), (ids, mask) = pair, text()
    wanted = steps(contiguous, contiguous.cache(*ids.shape), ids, mask)
    found = steps(paged, shuffled(paged, *ids.shape), ids, mask)
    for mine, its in zip(found, wanted):
        np.testing.assert_array_equal(mine[:, -1:], its[:, -1:])


def test_rows_go_to_their_pages_and_nowhere_else(pair: tuple[Artifact, Artifact]) -> None:
    (_, paged), (ids, mask) = pair, text()
    cache = shuffled(paged, *ids.shape)
    others = np.setdiff1d(np.arange(len(cache["past.0.key"])), cache["pages"])
    steps(paged, cache, ids, mask)
    for name in cache.keys() - {"pages"}:
        pool = cache[name]
        assert (pool[others] == 7).all()
        assert (pool[cache["pages"][:, 1], :, ids.shape[1] - PAGE :] == 7).all()
        assert (pool[cache["pages"][:, 0]] != 7).any(axis=-1).all()


def test_generation(pair: tuple[Artifact, Artifact]) -> None:
    contiguous, paged = pair
    ids, mask = text()
    np.testing.assert_array_equal(paged.generate(ids, 6, mask), contiguous.generate(ids, 6, mask))


def test_a_page_that_no_pool_has(pair: tuple[Artifact, Artifact]) -> None:
    _, paged = pair
    texts = Texts(paged, 1, 70)
    assert texts.cache["pages"].tolist() == [[0, 1]]
    texts.cache["pages"][0, 1] = 2
    with pytest.raises(BadRequest, match="there is no page 2: the pool has 2, from 0 to 1"):
        texts.step(np.ones((1, 2), np.int64), np.ones((1, 2), np.int64))
    ones = np.ones((1, 2), np.int64)
    for wrong in (2, -1):
        feeds = {**texts.cache, "pages": np.array([[0, wrong]]), "input_ids": ones, "attention_mask": ones}
        with pytest.raises(Exception, match=r"out of data bounds|invalid indice|outside"):
            paged.session.run(["logits"], feeds)


def test_it_is_said_what_reads_pages(both: Both) -> None:
    found = printed("explain", both[1])["cache"]
    layers = 2
    assert found["page_rows"] == PAGE
    assert found["page_nodes"] == 4 * layers  # written and gathered, keys and values
    assert found["bytes_per_token"] == printed("explain", both[0])["cache"]["bytes_per_token"]


def test_refusals(compiled: Compile, tmp_path: Path) -> None:
    hub, out = compiled("qwen3_moe").hub, ("-o", tmp_path / "out")
    assert "pages of 32 rows; there is pages of 64 rows" in refused("compile", hub, *out, "--cache-pages", 32)
    said = refused("explain", "--config", hub, "--target", "ascend", "--cache-pages", 64)
    assert "the ascend target keeps no cache in pages of 64 rows; there is none in pages" in said
    said = refused("explain", "--config", hub, "--target", "cuda", "--isa", "sm_90a", "--cache-pages", 64)
    assert "kernels for pages of latents, and none for append_pages(" in said
    assert "--cache-pages is for one --target" in refused(
        "explain", "--config", hub, "--target", "cpu", "--target", "cuda", "--cache-pages", 64
    )
