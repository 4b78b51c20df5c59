"""The targets there are, each found by its folder."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..targets.base import CannotBuild, Halving
from ..tuning.fingerprint import cpu_model
from .manifest import BadArtifact


def target_of(name: str, isa: str | None, quant: str = "none") -> Any:
    """The target of that name for a level of its machines and what --quant says.

    Raises CannotBuild with what there is.
    """
    if name not in rooms():
        raise CannotBuild(f"there is no target {name!r}; there is {', '.join(rooms())}")
    try:
        found = room_of(name).target(isa)
        return found.halved(quant) if isinstance(found, Halving) else found
    except ValueError as error:
        raise CannotBuild(str(error)) from None


def measured_on(machine: Any, worker: str) -> Any:
    """The target where workers of a fleet measure that declare this ("gpu:NVIDIA H200"); nothing: those of
    what it measures on itself. Raises CannotBuild for what it cannot be measured on.
    """
    unit, _, name = worker.partition(":")
    if worker and not (unit == machine.unit and name):
        wanted = f"{machine.unit}:NAME"
        raise CannotBuild(
            f"target {machine.name} is measured by workers that declare {wanted}, not {worker!r}"
        )
    try:
        return machine.measured_on(name)
    except ValueError as error:
        raise CannotBuild(str(error)) from None


def unit_here() -> str:
    """What this machine measures on, as workers of a fleet declare it: its GPU or NPU, else its CPU."""
    return next(filter(None, (room_of(name).accelerator() for name in rooms())), f"cpu:{cpu_model()}")


def devices() -> list[dict[str, Any]]:
    """What each target finds on this machine."""
    return [{"device": cpu_model(), **room_of(room).here()} for room in rooms()]


def room_for(facts: Mapping[str, Any]) -> Any:
    """The module of the target that an artifact is of. Raises BadArtifact for one that is not known."""
    name = facts.get("name")
    if name not in rooms():
        raise BadArtifact(f"the artifact is for {name!r}; this moec runs those for {', '.join(rooms())}")
    return room_of(str(name))


def room_of(name: str) -> Any:
    """The module of a target."""
    return importlib.import_module(f"..targets.{name}.target", __package__)


def rooms() -> list[str]:
    """The targets there are."""
    targets = Path(__file__).parents[1] / "targets"
    return sorted(each.parent.name for each in targets.glob("*/target.py"))
