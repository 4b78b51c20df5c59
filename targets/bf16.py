"""What targets with memory of their own have in common: every node of a model becomes a kernel, in bf16 or
f16.

Which numbers stay f32 is said here, by kind of kernel; cases_bf16.py tries such kernels alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..compiler.ir import Node
from ..compiler.pipeline import Pass
from ..passes.activations import NarrowActivations
from ..passes.partition import Claim, Partition
from ..passes.spans import AddSpans, read_ids
from . import paged, regions
from .base import Kernel
from .claims import CLAIMS
from .fusing import FUSING
from .lookups import LOOKUPS

MATMULS = ("linear", "linear_add", "linear_swiglu", "grouped_swiglu", "grouped_combine")
# Kinds that write narrow numbers or, as a dim of their own says, f32.
EITHER = ("linear", "linear_add", "linear_swiglu")

DIMS: Mapping[str, tuple[str, ...]] = {
    **regions.DIMS,
    **{kind: (*regions.DIMS[kind], "wide") for kind in EITHER},
    "embedding": ("v", "n"),
    "angles": ("f",),
}
# Those of ENDS, which not every target has kernels for.
END_DIMS: Mapping[str, tuple[str, ...]] = {"last_norm": regions.DIMS["rms_norm"], "choose_token": ("v",)}

# kind -> operands in f32 (cos, sin, frequencies, logits, the weights of a gate): all other numbers are
# narrow, but for weights that no product reads.
WIDE_OPERANDS: Mapping[str, tuple[int, ...]] = {
    "angles": (2,),
    "top_k_gate": (0, 1),
    "route": (2,),
    "grouped_combine": (4,),
    "latent_write": (2, 3, 8),
    "latent_attention": (1, 2, 8),
    "mla_decode": (5,),
    "rotary": (1, 2),
    "choose_token": (0, 1, 3, 4),
}
# kind -> results in f32.
WIDE_RESULTS: Mapping[str, tuple[int, ...]] = {
    "angles": (0, 1),
    "top_k_gate": (1,),
    "route": (2,),
    "latent_write": (2,),
    "choose_token": (1,),
}

# kind -> the place of the span among its operands, right after the mask.
SPANNED: Mapping[str, int] = {
    "latent_write": 7,
    "latent_attention": 6,
    "mla_decode": 4,
    "append": 3,
    "attention": 4,
}

# The formats of weights for which there is a kernel of a kind; none reads f32.
FORMATS: Mapping[str, tuple[str, ...]] = paged.with_paged(
    dict.fromkeys((*MATMULS, "route", "latent_attention", "embedding"), ("bf16",))
)


def passes(*ends: Claim, half: str = "bf16") -> tuple[Pass, ...]:
    """What becomes of a graph; ends: claims of ENDS, where a target has kernels for them. half: the dtype of
    numbers between kernels.
    """
    return (
        *FUSING,
        read_ids,
        Partition((*ends, *paged.CLAIMS, *CLAIMS, *LOOKUPS)),
        AddSpans(paged.with_paged(SPANNED)),
        NarrowActivations(paged.with_paged(WIDE_OPERANDS), paged.with_paged(WIDE_RESULTS), EITHER, half),
    )


PASSES = passes()


def kernel_of(region: Node) -> Kernel:
    """The kernel for a region. Raises KeyError for an unknown kind."""
    return regions.kernel_of(region, paged.with_paged({**DIMS, **END_DIMS}))
