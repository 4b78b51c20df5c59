"""What the user can do something about, among all that may be raised."""

from __future__ import annotations

import sys


def refusals() -> tuple[type[Exception], ...]:
    """The errors that the user can do something about; only modules that are loaded can have raised any."""
    homes = {
        "checkpoint": ("BadModel",),
        "convert": ("UnsupportedOp",),
        "manifest": ("BadArtifact",),
        "policy": ("BadPolicy",),
        "artifact": ("OutputTaken",),
        "proof": ("NotProven",),
        "runner": ("BadRequest",),
        "tuning_progress": ("CannotTell",),
    }
    rooms = {f"{__package__}.{name}": errors for name, errors in homes.items()}
    parent = str(__package__).rpartition(".")[0]
    rooms |= {f"{parent}.targets.base": ("CannotBuild",), f"{parent}.tuning.log": ("BadLog",)}
    rooms |= {f"{parent}.tuning.heuristic": ("BadHeuristics",), f"{parent}.tuning.learn": ("CannotLearn",)}
    rooms |= {f"{parent}.passes.precision": ("UnmetRule",), f"{parent}.targets.routing": ("BadTrace",)}
    return tuple(
        getattr(sys.modules[room], name)
        for room, names in rooms.items()
        if room in sys.modules
        for name in names
    )
