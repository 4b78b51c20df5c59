"""What the CUDA target does to a graph, in order: every node of a model becomes a kernel."""

from __future__ import annotations

from ...compiler.pipeline import Pass
from ...passes.activations import NarrowActivations
from ...passes.partition import Partition
from ...passes.spans import AddSpans, read_ids
from ..claims import CLAIMS
from ..fusing import FUSING
from ..lookups import LOOKUPS
from .lower import EITHER, SPANNED, WIDE_OPERANDS, WIDE_RESULTS

PASSES: tuple[Pass, ...] = (
    *FUSING,
    read_ids,
    Partition((*CLAIMS, *LOOKUPS)),
    AddSpans(SPANNED),
    NarrowActivations(WIDE_OPERANDS, WIDE_RESULTS, EITHER),
)
