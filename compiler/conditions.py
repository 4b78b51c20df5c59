"""How a model's kernels will be called, as far as their speed depends on it: what tuning has to imitate."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..targets import routing
from ..targets.base import Kernel
from ..tuning.record import PROFILE
from . import costs
from .ir import Graph


@dataclass(frozen=True, slots=True)
class Conditions:
    """threads that share a kernel's work; cold: whether its weights are in memory, not in a cache, when it is
    called; trace: which experts tokens choose, as recorded in the file `path`.
    """

    machine: Any
    threads: int
    cold: bool
    trace: routing.Trace | None = None
    path: Path | None = None

    def profile(self, kernel: Kernel) -> str:
        """Their name in the key of a kernel's records."""
        chosen = self.trace.name if self.trace and self.trace.times(kernel) else PROFILE
        return chosen if self.cold else f"{chosen} warm"

    @property
    def device(self) -> Any:
        """What measures under them: module and function, and its arguments."""
        return self.machine.device(self.threads, self.cold, str(self.path.absolute()) if self.path else "")


def conditions(
    machine: Any, graph: Graph, kernels: Collection[Kernel], threads: int, path: Path | None = None
) -> Conditions:
    """Those of a model by its graph, before weights are packed, and its kernels. path: a recorded routing.

    Raises BadTrace where that is none, or not of this model.
    """
    trace = routing.read(path) if path else None
    if trace and not any(map(trace.times, kernels)):
        dims = [dict(kernel.dims) for kernel in kernels]
        routing.expect(trace, [(sizes["experts"], sizes["share"]) for sizes in dims if "share" in sizes])
    return Conditions(machine, threads, machine.is_cold(costs.stored_bytes(graph)), trace, path)
