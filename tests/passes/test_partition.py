"""Regions are convex, own what they compute, and mean what their nodes meant."""

from __future__ import annotations

import networkx as nx
import pytest
from layers import EDGES, assert_same, decoder

from moec.compiler.ir import B, Graph, Miss, Node, Value
from moec.compiler.ops.dense import LINEAR
from moec.compiler.ops.elementwise import ADD, EXP, MUL, NEG, SUB
from moec.compiler.ops.region import REGION
from moec.compiler.ops.shape import RESHAPE
from moec.compiler.ops.sources import CONSTANT, INPUT
from moec.passes.partition import Claim, Cluster, Partition, Users, partition, picture
from moec.targets.claims import CLAIMS

X = INPUT(name="x", dtype="f32", shape=(B, 4))
Y = INPUT(name="y", dtype="f32", shape=(B, 4))
W = CONSTANT(name="w", dtype="f32", shape=(4, 4))


def wants(*clusters: Cluster) -> tuple[Claim, ...]:
    """A claim for each of these clusters, at the node of its first result."""

    def claim_of(cluster: Cluster) -> Claim:
        return lambda node, users: cluster if node is cluster.results[0].node else None

    return tuple(claim_of(cluster) for cluster in clusters)


def cut(graph: Graph, *clusters: Cluster) -> tuple[Graph, list[str]]:
    misses: list[Miss] = []
    return partition(graph, wants(*clusters), misses), [miss.reason for miss in misses]


def kinds(graph: Graph) -> list[str]:
    return [node.attrs["kind"] for node in graph if node.op is REGION]


def test_a_cluster_becomes_a_region_with_its_operands_in_order() -> None:
    product = LINEAR(X, W)
    total = ADD(product, Y)
    graph, misses = cut(Graph((X, Y), (total,)), Cluster("linear_add", (X, W, Y), (total,)))
    (region,) = (node for node in graph if node.op is REGION)
    assert not misses
    assert region.inputs == (X, W, Y)
    assert [value.node.attrs["name"] for value in region.attrs["body"].inputs] == ["x0", "x1", "x2"]
    assert [node.op for node in region.attrs["body"] if node.inputs] == [LINEAR, ADD]


def test_one_kernel_has_one_body_whatever_the_order_of_a_sum() -> None:
    bodies = []
    for total in (ADD(LINEAR(X, W), Y), ADD(Y, LINEAR(X, W))):
        graph, _ = cut(Graph((X, Y), (total,)), Cluster("linear_add", (X, W, Y), (total,)))
        bodies += [node.attrs["body"] for node in graph if node.op is REGION]
    assert bodies[0] == bodies[1]


def test_a_value_read_elsewhere_keeps_its_node() -> None:
    inner = NEG(X)
    graph = Graph((X,), (EXP(inner), SUB(inner, X)))
    after, misses = cut(graph, Cluster("k", (X,), (graph.outputs[0],)))
    assert after == graph
    assert misses == ["no k kernel: f32[B, 4] from neg inside it is also read by sub"]


def test_a_value_the_caller_reads_keeps_its_node() -> None:
    inner = NEG(X)
    graph = Graph((X,), (EXP(inner), inner))
    after, misses = cut(graph, Cluster("k", (X,), (graph.outputs[0],)))
    assert after == graph
    assert misses == ["no k kernel: f32[B, 4] from neg inside it is also read by the graph's caller"]


def test_a_view_read_elsewhere_is_in_both_places() -> None:
    view = RESHAPE(X, shape=(4 * B,))
    graph = Graph((X,), (EXP(view), NEG(view)))
    after, misses = cut(graph, Cluster("k", (X,), (graph.outputs[0],)))
    assert not misses
    assert kinds(after) == ["k"]
    assert [node.op.name for node in after if node.inputs] == ["region", "reshape", "neg"]


def test_a_path_out_and_back_in_is_refused() -> None:
    first = NEG(X)
    outside = EXP(first)
    last = ADD(first, outside)
    graph = Graph((X,), (last,))
    after, misses = cut(graph, Cluster("k", (X, outside), (first, last)))
    assert after == graph
    assert misses == ["no k kernel: what it gives comes back into it through other nodes"]


def test_two_regions_that_would_wait_for_each_other_are_refused() -> None:
    a1, b1 = NEG(X), EXP(Y)
    a2, b2 = ADD(b1, X), MUL(a1, Y)
    graph = Graph((X, Y), (a2, b2))
    a, b = (
        Cluster(kind, (X, y, Y), results) for kind, y, results in (("a", b1, (a1, a2)), ("b", a1, (b1, b2)))
    )
    after, misses = cut(graph, a, b)
    assert kinds(after) == ["a"]
    assert misses == ["no b kernel: what it gives comes back into it through other nodes"]
    assert kinds(cut(graph, b)[0]) == ["b"]


def test_the_first_claim_has_the_node() -> None:
    product = LINEAR(X, W)
    total = ADD(product, Y)
    both = Cluster("both", (X, W, Y), (total,))
    graph, misses = cut(Graph((X, Y), (total,)), both, Cluster("one", (X, W), (product,)))
    assert kinds(graph) == ["both"]
    assert not misses


def test_a_claim_past_its_operands_is_refused() -> None:
    total = ADD(LINEAR(X, W), Y)
    graph = Graph((X, Y), (total,))
    assert cut(graph, Cluster("k", (X, Y), (total,)))[1] == [
        "no k kernel: it would reach past its operands to w"
    ]
    assert cut(graph, Cluster("k", (X, W, X, Y), (total,)))[1] == [
        "no k kernel: two of its operands are one value"
    ]


def test_no_claims_leave_all_alone() -> None:
    graph = decoder()
    assert partition(graph, (), []) == graph


@pytest.mark.parametrize("latent", [True, False])
def test_regions_mean_what_their_nodes_meant(latent: bool) -> None:
    before = decoder(2, latent=latent)
    after = Partition(CLAIMS)(before, [])
    assert len(kinds(after)) > 20
    for sizes in EDGES:
        assert_same(before, after, **sizes)


def test_the_picture_has_regions_as_nodes_and_no_weights() -> None:
    graph = Partition(CLAIMS)(decoder(), [])
    drawn = picture(graph)
    assert nx.is_directed_acyclic_graph(drawn)
    assert {node for node in graph if node.op is REGION} <= set(drawn)
    assert not any(node.op is CONSTANT for node in drawn)


def test_a_claim_is_asked_once_for_every_free_node() -> None:
    asked: list[Node] = []

    def claim(node: Node, users: Users) -> None:
        asked.append(node)

    graph = Graph((X,), (NEG(X),))
    partition(graph, (claim,), [])
    assert asked == list(graph)


def test_a_long_chain_does_not_take_long() -> None:
    def single(node: Node, users: Users) -> Cluster | None:
        return Cluster("one", node.inputs, node.values) if node.op is NEG else None

    value: Value = X
    for _ in range(3000):
        value = NEG(value)
    assert len(kinds(partition(Graph((X,), (value,)), (single,), []))) == 3000
