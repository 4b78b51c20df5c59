"""What targets with memory of their own have in common: every node of a model becomes a kernel, in bf16.

Which numbers stay f32 is said here, by kind of kernel; cases_bf16.py tries such kernels alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..compiler.ir import Node
from ..compiler.pipeline import Pass
from ..passes.activations import NarrowActivations
from ..passes.partition import Partition
from ..passes.spans import AddSpans, read_ids
from . import regions
from .base import Kernel
from .claims import CLAIMS
from .fusing import FUSING
from .lookups import LOOKUPS

MATMULS = ("linear", "linear_add", "linear_swiglu", "grouped_swiglu", "grouped_combine")
# Kinds that write bf16 or, as a dim of their own says, f32.
EITHER = ("linear", "linear_add", "linear_swiglu")

DIMS: Mapping[str, tuple[str, ...]] = {
    **regions.DIMS,
    **{kind: (*regions.DIMS[kind], "wide") for kind in EITHER},
    "embedding": ("v", "n"),
    "angles": ("f",),
}

# kind -> operands in f32 (cos, sin, frequencies, logits, the weights of a gate): all other numbers are bf16,
# but for weights that no product reads.
WIDE_OPERANDS: Mapping[str, tuple[int, ...]] = {
    "angles": (2,),
    "top_k_gate": (0, 1),
    "route": (2,),
    "grouped_combine": (4,),
    "latent_write": (2, 3),
    "latent_attention": (1, 2),
    "rotary": (1, 2),
}
# kind -> results in f32.
WIDE_RESULTS: Mapping[str, tuple[int, ...]] = {"angles": (0, 1), "top_k_gate": (1,), "route": (2,)}

# kind -> the place of the span among its operands, right after the mask.
SPANNED: Mapping[str, int] = {
    "latent_write": 7,
    "latent_attention": 6,
    "mla_decode": 4,
    "append": 3,
    "attention": 4,
}

# The formats of weights for which there is a kernel of a kind; none reads f32.
FORMATS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys((*MATMULS, "route", "latent_attention", "embedding"), ("bf16",))
}


PASSES: tuple[Pass, ...] = (
    *FUSING,
    read_ids,
    Partition((*CLAIMS, *LOOKUPS)),
    AddSpans(SPANNED),
    NarrowActivations(WIDE_OPERANDS, WIDE_RESULTS, EITHER),
)


def kernel_of(region: Node) -> Kernel:
    """The kernel for a region. Raises KeyError for an unknown kind."""
    return regions.kernel_of(region, DIMS)
