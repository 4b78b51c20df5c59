"""Projections merge where their readers can read columns, and nowhere else."""

from __future__ import annotations

from layers import EDGES, HEADS, LATENT, NOPE, ROPE, assert_same, count, decoder

from moec.compiler.ir import Graph, Miss
from moec.compiler.ops.dense import LINEAR
from moec.compiler.ops.latent import LATENT_ATTENTION
from moec.passes.fold import fold
from moec.passes.match import last_slice
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


def test_queries_and_latents_merge() -> None:
    before = prepared(lora=False)
    after = fold(merge_projections(before, []), [])
    assert count(after)["linear"] == count(before)["linear"] - 2
    for node in after:
        if node.op is LATENT_ATTENTION:
            wide, *bounds = last_slice(node.inputs[0]) or (node.inputs[0],)
            assert bounds == [0, HEADS * (NOPE + ROPE), 1]
            assert wide.shape[-1] == HEADS * (NOPE + ROPE) + LATENT + ROPE
    for sizes in EDGES:
        assert_same(before, after, **sizes)


def test_what_is_read_whole_stays_alone() -> None:
    before = prepared(latent=False)
    misses: list[Miss] = []
    assert merge_projections(before, misses) == before
    assert not misses
