"""What the CPU target does to a graph, in order."""

from __future__ import annotations

from ...compiler.pipeline import Pass
from ...passes.partition import Partition
from ..claims import CLAIMS
from ..fusing import FUSING

PASSES: tuple[Pass, ...] = (*FUSING, Partition(CLAIMS))
