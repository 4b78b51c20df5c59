"""Projections merge where their readers can read columns, and nowhere else."""

from __future__ import annotations

import pytest
from layers import EDGES, assert_same, count, decoder

from moec.compiler.ir import Graph, Miss
from moec.compiler.ops.dense import LINEAR
from moec.passes.fold import fold
from moec.passes.mla import fuse_mla
from moec.passes.projections import merge_projections


def prepared(lora: bool = True, latent: bool = True) -> Graph:
    return fold(fuse_mla(decoder(2, lora, latent), []), [])


def test_down_projections_merge() -> None:
    before = prepared()
    after = fold(merge_projections(before, []), [])
    assert count(after)["linear"] == count(before)["linear"] - 2
    widths = [node.inputs[1].shape for node in after if node.op is LINEAR]
    assert (17, 8) in widths
    for sizes in EDGES:
        assert_same(before, after, **sizes)


@pytest.mark.parametrize("form", [{"lora": False}, {"latent": False}], ids=str)
def test_what_is_read_whole_stays_alone(form: dict[str, bool]) -> None:
    before = prepared(**form)
    misses: list[Miss] = []
    assert merge_projections(before, misses) == before
    assert not misses
