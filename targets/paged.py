"""Kernels over caches in pages: of latents, and of targets with memory of their own.

Such a kernel is that of the same name without PAGED, with pools for caches and one more operand, the last:
the table of pages. Its dims and reals are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from ..compiler.ir import Graph, Node
from ..compiler.ops.pages import APPEND_PAGES, GATHER_PAGES
from ..compiler.ops.region import REGION
from ..passes.match import made_by
from ..passes.partition import Claim, Cluster, Users
from . import claims
from .base import Kernel

PAGED = "_paged"
KINDS = ("latent_write", "latent_attention", "mla_decode")
PAGE = 64  # rows of a page
CACHES = (3, 4, 7)  # operands of latent_attention: latents, keys and, of codes, their scales
Value = TypeVar("Value")


def with_paged(table: Mapping[str, Value]) -> dict[str, Value]:
    """A table by kind of kernel with the same for paged ones."""
    return {**table, **{kind + PAGED: table[kind] for kind in KINDS if kind in table}}


def is_paged(kernel: Kernel) -> bool:
    """Whether its caches are in pages."""
    return kernel.kind.endswith(PAGED)


def unpaged(kernel: Kernel) -> Kernel:
    """The kernel of the same sizes whose caches are not."""
    return replace(kernel, kind=kernel.kind.removesuffix(PAGED))


def left_over(graph: Graph) -> list[Node]:
    """What is done to pages outside of kernels."""
    return [node for node in graph if node.op is not REGION and node.op in (APPEND_PAGES, GATHER_PAGES)]


def latent_write_paged(node: Node, users: Users) -> Cluster | None:
    """As claims.latent_write, into pages."""
    found = claims.latent_write(node, users, APPEND_PAGES)
    return found and replace(found, kind=found.kind + PAGED)


def latent_attention_paged(node: Node, users: Users) -> Cluster | None:
    """As claims.latent_attention, over pages."""
    found = claims.latent_attention(node, users)
    if not found:
        return None
    caches = [found.operands[i] for i in CACHES if i < len(found.operands)]
    if not all(made_by(each, GATHER_PAGES) for each in caches):
        return None
    pools = {each: each.node.inputs[0] for each in caches}
    table, *others = {each.node.inputs[1] for each in caches}
    operands = (*(pools.get(each, each) for each in found.operands), table)
    return None if others else Cluster(found.kind + PAGED, operands, found.results)


CLAIMS: Sequence[Claim] = (latent_write_paged, latent_attention_paged)
