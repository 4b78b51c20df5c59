"""The sizes of a tiled matrix product: what a schedule's t_ knobs come to for one kernel. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ..base import Kernel, Schedule
from .sm import Sm

BAND = 16  # tiles of rows that stay in the L2 cache while all columns pass
STAGED = 64  # columns that a warpgroup writes at once, through shared memory


@dataclass(frozen=True, slots=True)
class Tiles:
    """One kernel's tiles. k, width: columns of the weight, and of the result; parts: 2 for gate and up;
    experts: 0 for a plain product; rows, cols, depth: of x, of each part, and of k in a stage of the ring;
    groups: warpgroups that multiply; split: parts of k that are summed afterwards; blocks: of the grid,
    per_sm of them at once on a multiprocessor; once: whether weights leave the L2 cache first; queue: whether
    blocks take tiles as they come free, not each every so many.
    """

    k: int
    width: int
    parts: int
    experts: int
    share: int
    gather: bool
    scatter: bool
    residual: bool
    wide: bool
    rows: int
    cols: int
    depth: int
    stages: int
    groups: int
    swap: bool
    split: int
    per_sm: int
    blocks: int
    once: bool
    queue: bool

    @property
    def ragged(self) -> bool:
        """Whether rows are of different experts."""
        return self.experts > 0

    @property
    def plain(self) -> bool:
        """Whether f32 numbers are written, straight from registers."""
        return self.wide or self.split > 1

    @property
    def across(self) -> int:
        """Tiles of columns."""
        return -(-self.width // self.cols)

    @property
    def steps(self) -> int:
        """Stages that all of k takes."""
        return -(-self.k // self.depth)

    @property
    def chunks(self) -> int:
        """Stages of one part of k; the last part may have fewer."""
        return -(-self.steps // self.split)

    @property
    def shared_bytes(self) -> int:
        """Of one block: the ring, the tile on its way out, the experts' ends, barriers, and alignment."""
        ring = self.stages * (self.rows + self.parts * self.cols) * self.depth * 2
        lines = self.rows if self.swap else 64
        staged = 0 if self.plain else self.groups * lines * (STAGED + 8) * 2
        return ring + staged + 8 * (self.experts + 1) + 16 * self.stages + 3 * 1024

    @property
    def sums(self) -> int:
        """Registers of a multiplying thread that hold sums."""
        return self.parts * (self.rows if self.swap else self.cols) // 2


def tiles_of(kernel: Kernel, schedule: Schedule, sm: Sm) -> Tiles:
    """The tiles of one of the five products under a schedule."""
    sizes, kind = dict(kernel.dims), kernel.kind
    knob = {name[2:]: int(value) for name, value in schedule.items() if name.startswith("t_")}
    parts, swap = 2 if kind.endswith("swiglu") else 1, knob["swap"] == 1
    groups = (knob["cols"] if swap else knob["rows"]) // 64
    return Tiles(
        k=sizes["k"],
        width=sizes["n"] // parts,
        parts=parts,
        experts=sizes.get("experts", 0),
        share=sizes.get("share", 1),
        gather=kind == "grouped_swiglu",
        scatter=kind == "grouped_combine",
        residual=kind == "linear_add" and knob["split"] == 1,
        wide=bool(sizes.get("wide", 0)),
        rows=knob["rows"],
        cols=knob["cols"],
        depth=knob["depth"],
        stages=knob["stages"],
        groups=groups,
        swap=swap,
        split=knob["split"],
        per_sm=knob["blocks"],
        blocks=sm.multiprocessors * knob["blocks"],
        once=knob["once"] == 1,
        queue=knob["queue"] == 1,
    )


def registers(groups: int, per_sm: int, sm: Sm) -> int:
    """Registers that each thread can have. (ptxas 13.0 holds warpgroups that multiply to what threads
    start with, so the one that loads has none to give them.)
    """
    return min(255, sm.registers // (128 * (groups + 1) * per_sm) // 8 * 8)
