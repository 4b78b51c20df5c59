"""The sizes of a tiled product of e4m3 codes: what a schedule's knobs come to for one kernel. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..base import Kernel, Schedule
from . import gemm_tiles
from .gemm_tiles import STAGED, Tiles
from .sm import Sm

DEPTH = 128  # of k in a stage: codes that share a scale, and a row of shared memory that is swizzled whole
VECTOR = 16  # codes in 16 bytes: rows of the weight are whole ones
LANES = 8  # bf16 in 16 bytes
ALIGNED = 4  # f32 in 16 bytes
# The weight is always wgmma's left operand, whose rows are 64, and tokens are its right one.
FIXED: Mapping[str, int] = {"t_depth": DEPTH, "t_swap": 1, "t_queue": 0}


def tiles_of(kernel: Kernel, schedule: Schedule, sm: Sm) -> Tiles:
    """The tiles of one of the five products under a schedule; rows of x lie by expert already."""
    return replace(gemm_tiles.tiles_of(kernel, {**schedule, **FIXED}, sm), gather=False)


def staged(t: Tiles) -> bool:
    """Whether a tile goes out through shared memory, 16 bytes at once."""
    return not t.plain and t.width % LANES == 0


def scales(t: Tiles) -> int:
    """Of tokens, that a stage loads: from whole 16 bytes on, where a row of a bulk copy has to begin."""
    return t.rows + (ALIGNED if t.ragged else 0)


def padded(t: Tiles) -> int:
    """Columns of a stage's scales of tokens: whole 128 bytes, where bulk copies may begin."""
    return -(-scales(t) // 32) * 32


def inline(schedule: Schedule) -> bool:
    """Whether blocks round tokens themselves, all of k before they multiply: no step does that before."""
    return int(schedule["t_inline"]) == 1


def shared_bytes(t: Tiles, inline: bool) -> int:
    """Of one block: the ring, tokens with their scales (of all of a part of k, or of stages as weights are),
    the tile on its way out, experts' ends, barriers, and alignment.
    """
    tokens = t.rows * DEPTH + 4 * (t.rows if inline else padded(t))
    ring = t.stages * t.parts * t.cols * DEPTH + (t.chunks if inline else t.stages) * tokens
    out = t.groups * t.rows * (STAGED + LANES) * 2 if staged(t) else 0
    return ring + out + 16 * (t.experts + 1) + 16 * t.stages + 3 * 1024


def registers(t: Tiles) -> int:
    """That hold sums in a multiplying thread: of all of k, and of one stage of gate or up."""
    return (t.parts + 1) * t.rows // 2


def most_registers(t: Tiles, sm: Sm) -> int:
    """That a thread can have: of the warpgroups that multiply, and of the warp that loads."""
    return min(255, sm.registers // ((128 * t.groups + 32) * t.per_sm) // 8 * 8)
