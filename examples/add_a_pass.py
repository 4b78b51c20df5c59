"""A pass of your own: a product with a weight that is stored the other way round becomes a linear.

    python examples/add_a_pass.py

The target has kernels for linear, not for any matmul; so this one pass brings the model its kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from moec.compiler import pipeline
from moec.compiler.ir import B, Graph, Miss, Node, Value
from moec.compiler.ops.dense import LINEAR, MATMUL
from moec.compiler.ops.region import REGION
from moec.compiler.ops.shape import TRANSPOSE
from moec.compiler.source import Source
from moec.compiler.text import show
from moec.compiler.trace import trace
from moec.passes.layout import is_weight
from moec.targets.cpu.target import target


def matmul_to_linear(graph: Graph, misses: list[Miss]) -> Graph:
    """matmul(x[..,K], w[K,N])  ->  linear(x, transpose(w)), for a weight w, which is turned at compile time.

    Graphs never change: a pass makes another one, and says in `misses` what it nearly could take.
    """

    def step(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if node.op is not MATMUL or inputs[1].type.rank != 2:
            return None  # keep the node
        x, weight = inputs
        if not is_weight(weight):
            misses.append(Miss(node.origin, f"the matrix {weight.type} is computed by {weight.op.name}"))
            return None
        return [LINEAR(x, TRANSPOSE(weight, perm=(1, 0)), origin=node.origin)]

    return graph.rewrite(step)


class Turned(nn.Module):
    """A gated MLP with its weights stored as [K, N]."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Parameter(torch.randn(64, 96) / 8) for _ in range(2))
        self.down = nn.Parameter(torch.randn(96, 64) / 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, 64] -> [B, 64]"""
        return x + (nn.functional.silu(x @ self.gate) * (x @ self.up)) @ self.down


def main() -> None:
    """Print which kernels the model needs without the pass, and with it."""
    traced = trace(Source("turned", "module", module=Turned(), inputs=(torch.randn(3, 64),)))
    # With a check, a pass that moves the numbers is an error that names it.
    check = pipeline.Check(traced.weights, pipeline.random_feeds(traced.graph, {B: 5}))
    passes = target().passes
    for title, chosen in {"without": passes, "with": (matmul_to_linear, *passes)}.items():
        graph, _ = pipeline.run(traced.graph, chosen, check=check)
        kernels = sorted(node.attrs["kind"] for node in graph if node.op is REGION)
        print(f"{title} the pass: {', '.join(kernels) or 'no kernel'}")
    print(show(graph))


if __name__ == "__main__":
    main()
