"""What the CUDA target does to a graph, in order: every node of a model becomes a kernel."""

from __future__ import annotations

from ...compiler.pipeline import Pass
from ...passes.activations import NarrowActivations
from ...passes.experts import fuse_swiglu
from ...passes.fold import fold
from ...passes.mla import fuse_mla
from ...passes.norm import fuse_rms_norm, fuse_rotary
from ...passes.partition import Partition
from ...passes.projections import merge_projections
from ...passes.residual import gather_residuals
from ...passes.routing import fuse_gate, lower_routing
from ...passes.rows import drop_flattening
from ...passes.shared import join_shared
from ...passes.spans import AddSpans, read_ids
from ..claims import CLAIMS
from ..lookups import LOOKUPS
from .lower import EITHER, SPANNED, WIDE_OPERANDS, WIDE_RESULTS

PASSES: tuple[Pass, ...] = (
    fuse_rms_norm,
    fuse_rotary,
    fuse_gate,
    lower_routing,
    fuse_swiglu,
    fuse_mla,
    fold,
    merge_projections,
    gather_residuals,
    drop_flattening,
    join_shared,
    fold,
    read_ids,
    Partition((*CLAIMS, *LOOKUPS)),
    AddSpans(SPANNED),
    NarrowActivations(WIDE_OPERANDS, WIDE_RESULTS, EITHER),
)
