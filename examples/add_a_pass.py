"""A pass of your own: x * sigmoid(x) becomes silu(x), and that lets the target fuse the whole gated MLP.

python examples/add_a_pass.py
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from moec.compiler import pipeline
from moec.compiler.ir import B, Graph, Miss, Node, Value
from moec.compiler.ops.elementwise import MUL, SIGMOID, SILU
from moec.compiler.ops.region import REGION
from moec.compiler.source import Source
from moec.compiler.text import show
from moec.compiler.trace import trace
from moec.targets.cpu.target import target


def fuse_silu(graph: Graph, misses: list[Miss]) -> Graph:
    """A pass takes a graph and gives one; graphs never change. Why something nearly matched goes to misses."""

    def step(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if node.op is MUL:
            for x, gate in (inputs, inputs[::-1]):
                if gate.op is SIGMOID and gate.node.inputs == (x,):
                    return [SILU(x, origin=node.origin)]
        return None  # keep the node

    return graph.rewrite(step)


class GatedMLP(nn.Module):
    """A gated MLP whose author spelled silu out."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(64, 96, bias=False) for _ in range(2))
        self.down = nn.Linear(96, 64, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, 64] -> [B, 64]"""
        gate = self.gate(x)
        return self.down(gate * torch.sigmoid(gate) * self.up(x))


def main() -> None:
    """Print which kernels the model needs without the pass, and with it first."""
    traced = trace(Source("gated mlp", "module", module=GatedMLP(), inputs=(torch.randn(3, 64),)))
    # With a check, a pass that moves the numbers is an error that names it.
    check = pipeline.Check(traced.weights, pipeline.random_feeds(traced.graph, {B: 5}))
    passes = target().passes
    for title, chosen in {"without": passes, "with": (fuse_silu, *passes)}.items():
        graph, reports = pipeline.run(traced.graph, chosen, check=check)
        kernels = Counter(node.attrs["kind"] for node in graph if node.op is REGION)
        print(f"{title} the pass: {', '.join(f'{count} {kind}' for kind, count in sorted(kernels.items()))}")
    print(
        f"\n{reports[0].name} took {reports[0].nodes_before} nodes to {reports[0].nodes_after}; the graph now:"
    )
    print(show(graph))


if __name__ == "__main__":
    main()
