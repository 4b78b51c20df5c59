"""What tuning reaches beyond this machine: devices of a fleet, and a storage that others watch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..targets.base import CannotBuild, Kernel, Space
from ..tuning.fingerprint import Here, of_target
from ..tuning.judge import Worker
from ..tuning.search import Summary, tune
from . import library
from .conditions import Conditions

if TYPE_CHECKING:
    from ..tuning.fleet import Fleet
    from ..tuning.mirror import Mirror

MOST_BUILDERS = 8  # processes that build candidates; each takes half a gigabyte


@dataclass(frozen=True, slots=True)
class Beyond:
    """fleet: an address, empty to measure here; the target is then as its workers measure it (see
    rooms.measured_on). mirror: is shown the records. warnings: what the user should know after a search.
    """

    fleet: str = ""
    mirror: Mirror | None = None
    warnings: list[str] = field(default_factory=list)

    def place(self, conditions: Conditions) -> Here:
        """What is measured depends on."""
        threads = conditions.machine.sharers(conditions.threads)
        return of_target(conditions.machine, threads)

    def expect(self, machine: Any) -> None:
        """Raises CannotBuild where kernels for the machine cannot be measured."""
        if not (self.fleet or machine.runs_here):
            isa = machine.capabilities.name
            raise CannotBuild(f"this machine does not run {isa}: tune there, or --budget 0 without --verify")

    def judge(self, conditions: Conditions, place: Here) -> Worker | Fleet:
        """What measures, to be started and closed."""
        (device, options), most = conditions.device, conditions.machine.addresses
        if not self.fleet:
            builders = min(len(os.sched_getaffinity(0)), MOST_BUILDERS)
            return Worker(device, options, memory_bytes=most, builders=builders)
        from ..tuning.fleet import Fleet, Wanted

        builders = min(conditions.threads, MOST_BUILDERS)  # its cores, not those here
        kind, limits = f"{conditions.machine.unit}:{place.whole.cpu}", {"memory_bytes": most}
        wanted = Wanted(place.whole, library.packages(conditions.machine), dict(conditions.machine.versions))
        return Fleet(self.fleet, kind, (device, options), wanted, **limits, builders=builders)

    def tune(self, spaces: Mapping[Kernel, Space], judge: Worker | Fleet, *most: Any, **rest: Any) -> Summary:
        """search.tune, on one device or on all of them."""
        if isinstance(judge, Worker):
            summary = tune(spaces, judge, *most, **rest, mirror=self.mirror)
        else:
            from ..tuning.side_by_side import tune_side_by_side

            summary = tune_side_by_side(spaces, judge, *most, **rest, mirror=self.mirror)
            self.warnings.extend(f"a worker of the fleet was lost: {why}" for why in judge.lost)
        if self.mirror and self.mirror.warning:
            self.warnings.append(self.mirror.warning)
        return summary
