"""The rows of a cache that hold tokens are worked out once, from the mask that the caller feeds."""

from __future__ import annotations

from layers import EDGES, assert_same, decoder, running

from moec.compiler.ir import B, Graph, T
from moec.compiler.ops.cache import POSITIONS, SPAN
from moec.compiler.ops.region import REGION
from moec.compiler.ops.shape import FULL
from moec.compiler.ops.sources import INPUT
from moec.compiler.pipeline import run
from moec.passes.partition import Partition
from moec.passes.spans import AddSpans, read_ids
from moec.targets.bf16 import SPANNED
from moec.targets.claims import CLAIMS
from moec.targets.cpu.pipeline import PASSES
from moec.targets.lookups import LOOKUPS

MASK = INPUT(name="mask", dtype="i64", shape=(B, T))
IDS = INPUT(name="ids", dtype="i64", shape=(B, T))
ONCE = AddSpans(SPANNED)


def parted(latent: bool, lookups: bool = True) -> Graph:
    """A model in regions, the angles among them or not."""
    claims = (*CLAIMS, *(LOOKUPS if lookups else ()))
    return run(decoder(2, latent=latent), (*PASSES[:-1], read_ids, Partition(claims)))[0]


def test_positions_read_what_is_fed() -> None:
    places = POSITIONS(MASK, FULL(shape=(B, T), value=0, dtype="i64"))
    fed = read_ids(Graph((IDS, MASK), (places,)), [])
    assert fed.outputs == (POSITIONS(MASK, IDS),)
    alone = Graph((), (places,))
    assert read_ids(alone, []) == alone


def test_every_layer_gets_the_one_span() -> None:
    for latent in (True, False):
        before = parted(latent)
        after = ONCE(before, [])
        (angles,) = (node for node in after if node.op is REGION and node.attrs["kind"] == "angles")
        readers = [node for node in after if node.op is REGION and node.attrs["kind"] in SPANNED]
        assert len(readers) == (4 if latent else 6)
        for node in readers:
            place = SPANNED[node.attrs["kind"]]
            assert node.inputs[place] == angles.values[-1]
            assert node.inputs[place - 1] == angles.inputs[0]
        assert "span" not in running(after)
        for sizes in EDGES:
            assert_same(before, after, **sizes)


def test_without_angles_the_span_is_a_node() -> None:
    before = parted(True, lookups=False)
    after = ONCE(before, [])
    assert sum(node.op is SPAN for node in after) == 1
    assert_same(before, after, **EDGES[0])
