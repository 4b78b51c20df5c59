"""What every target does to a graph before it cuts it into kernels; no number changes by it."""

from __future__ import annotations

from ..compiler.pipeline import Pass
from ..passes.experts import fuse_swiglu
from ..passes.fold import fold
from ..passes.last import take_rows_first
from ..passes.mla import fuse_mla
from ..passes.norm import fuse_rms_norm, fuse_rotary
from ..passes.projections import merge_projections
from ..passes.residual import gather_residuals
from ..passes.routing import fuse_gate, lower_routing
from ..passes.rows import drop_flattening
from ..passes.shared import join_shared

FUSING: tuple[Pass, ...] = (
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
    take_rows_first,
    fold,
)
