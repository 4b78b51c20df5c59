"""Cut the graph into regions, one kernel of a target each, and single ops that any runtime has.

    before   linear(x, w) -> h; add(h, residual) -> y             (a claim wants both in one kernel)
    after    region[linear_add](x, w, residual) -> y              (its body says what it computes)

A set of nodes can be one kernel only if it is convex: no path leaves it and comes back. Regions made earlier
may close such a path too, so a claim is judged on the graph as contracted so far.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx

from ..compiler.ir import Graph, Miss, Node, Value, make, renew, walk
from ..compiler.ops.region import REGION
from ..compiler.ops.sources import CONSTANT, INPUT

Users = Mapping[Value, Sequence[Node]]

MAKES = (REGION,)

# Ops that cost nothing worth sharing: a kernel that reads through one leaves it to others as well.
FREE = ("reshape", "slice", "expand", "filled", "causal_mask")

# Ops whose operands may change places.
COMMUTES = ("add", "mul")


class Refused(Exception):
    """A cluster cannot be one kernel; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What one kernel would compute: results from operands, in the order the kernel gives and takes them."""

    kind: str
    operands: tuple[Value, ...]
    results: tuple[Value, ...]

    def entries(self) -> dict[Value, Value]:
        """The body's input for each operand: x0, x1, ..."""
        types = [value.type for value in self.operands]
        inputs = (INPUT(name=f"x{i}", dtype=type_.dtype, shape=type_.shape) for i, type_ in enumerate(types))
        return dict(zip(self.operands, inputs))

    def nodes(self) -> list[Node]:
        """What lies between operands and results, operands first."""
        entries = self.entries()
        stops = {value.node for value in entries.values()}
        return [node for node in walk(self.results, entries) if node not in stops]

    def body(self) -> Graph:
        """The cluster as a graph of its own; the same for all clusters that one kernel computes."""
        entries = self.entries()
        done = {entry: entry for entry in entries.values()}
        for node in self.nodes():
            order = sorted(node.inputs, key=entries.__contains__) if node.op.name in COMMUTES else node.inputs
            inputs = tuple(done[entries.get(value, value)] for value in order)
            done.update(zip(node.values, renew(node, inputs).values))
        return Graph(tuple(entries.values()), tuple(done[value] for value in self.results))


# A target's claim: the cluster it wants around this node, or None.
Claim = Callable[[Node, Users], Cluster | None]


@dataclass(frozen=True, slots=True)
class Partition:
    """The pass of one target: partition with its claims."""

    claims: tuple[Claim, ...]

    def __call__(self, graph: Graph, misses: list[Miss]) -> Graph:
        return partition(graph, self.claims, misses)


def partition(graph: Graph, claims: Sequence[Claim], misses: list[Miss]) -> Graph:
    """Regions for all claims that hold, earlier claims first, then earlier nodes; what none wants stays."""
    users = graph.users()
    contracted = Contracted.of(graph)
    replacements: dict[Value, Value] = {}
    for claim in claims:
        for node in graph:
            if node in contracted.taken or (cluster := claim(node, users)) is None:
                continue
            try:
                contracted.merge(cluster, members(cluster, cluster.nodes(), users, graph.outputs))
                replacements.update(zip(cluster.results, region(cluster).values))
            except Refused as refused:
                misses.append(Miss(node.origin, f"no {cluster.kind} kernel: {refused}"))
    return graph.replace(replacements)


def region(cluster: Cluster) -> Node:
    """The node that stands for the cluster."""
    origin = cluster.results[0].node.origin
    return make(REGION, *cluster.operands, kind=cluster.kind, body=cluster.body(), origin=origin)


def members(cluster: Cluster, nodes: Sequence[Node], users: Users, outputs: Sequence[Value]) -> set[Node]:
    """Those of the nodes that will be gone, being the cluster's own; raises Refused where they cannot be.

    What has no operands, and what costs nothing, may be read outside as well: then it is in both places.
    """
    if len({*cluster.operands}) < len(cluster.operands):
        raise Refused("two of its operands are one value")
    own = {node for node in nodes if node.inputs}
    for node in reversed(nodes):
        if node.op in (INPUT, CONSTANT):
            raise Refused(f"it would reach past its operands to {node.attrs['name']}")
        for value in node.values if node in own else ():
            readers = [user.op.name for user in users.get(value, ()) if user not in own]
            readers += ["the graph's caller"] if value in outputs else []
            if readers and value not in cluster.results:
                if node.op.name not in FREE:
                    raise Refused(f"{value.type} from {node.op.name} inside it is also read by {readers[0]}")
                own.discard(node)
    return own


@dataclass(slots=True)
class Contracted:
    """The graph with accepted clusters as single nodes, and a topological order of it (with holes)."""

    flow: nx.DiGraph
    order: list[Node | Cluster | None]
    place: dict[Node | Cluster, int]
    taken: set[Node] = field(default_factory=set)

    @staticmethod
    def of(graph: Graph) -> Contracted:
        """Nothing contracted yet."""
        flow = nx.DiGraph()
        flow.add_nodes_from(graph)
        flow.add_edges_from((value.node, node) for node in graph for value in node.inputs)
        return Contracted(flow, list(graph), {node: i for i, node in enumerate(graph)})

    def merge(self, cluster: Cluster, own: set[Node]) -> None:
        """Make the cluster one node, or raise Refused. Looks only at what lies between in the order."""
        if own & self.taken:
            raise Refused("another kernel has a part of it")
        places = [self.place[node] for node in own]
        start, stop = min(places), max(places) + 1
        window = [unit for unit in self.order[start:stop] if unit is not None]
        after: set[Node | Cluster] = set()
        for unit in window:
            feeds = set(self.flow.predecessors(unit))
            if unit in own and feeds & after:
                raise Refused("what it gives comes back into it through other nodes")
            if unit not in own and (feeds & after or feeds & own):
                after.add(unit)
        before = [unit for unit in window if unit not in after and unit not in own]
        self.contract(cluster, own)
        self.reorder(start, stop, [*before, cluster, *(unit for unit in window if unit in after)])

    def contract(self, cluster: Cluster, own: set[Node]) -> None:
        """Replace the nodes by the cluster in the flow."""
        feeds = {unit for node in own for unit in self.flow.predecessors(node)} - own
        readers = {unit for node in own for unit in self.flow.successors(node)} - own
        self.flow.remove_nodes_from(own)
        self.flow.add_node(cluster)
        self.flow.add_edges_from([(unit, cluster) for unit in feeds] + [(cluster, unit) for unit in readers])
        self.taken |= own

    def reorder(self, start: int, stop: int, units: Sequence[Node | Cluster]) -> None:
        """Put the units into start..stop of the order, holes after them."""
        self.order[start:stop] = [*units, *[None] * (stop - start - len(units))]
        self.place.update((unit, start + i) for i, unit in enumerate(units))


def picture(graph: Graph) -> nx.DiGraph:
    """What reads what, for people: a node for each op and region (kind, origin), none for weights."""
    drawn = nx.DiGraph()
    for node in graph:
        if node.inputs or node.op is INPUT:
            drawn.add_node(node, kind=node.attrs.get("kind", node.op.name), origin=node.origin)
            drawn.add_edges_from((value.node, node) for value in node.inputs if value.node in drawn)
    return drawn
