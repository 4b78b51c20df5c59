"""The guessed constants of the timeline, fitted to times that a device took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...compiler.ir import Array
from . import timeline
from .hivm.constants import GUESSED, Constants
from .hivm.sampled import Ran
from .soc import Soc

ROUNDS = 12
STEP = 0.05  # by how much a constant's logarithm is changed to see what comes of it
PULL = 0.02  # how much of a time's logarithm it costs to change a constant's by one
FURTHEST = 1.0  # that a constant's logarithm goes in one round


@dataclass(frozen=True, slots=True)
class Record:
    """What a call's blocks do (timeline.sampled), and the microseconds that the device took for it."""

    ran: Sequence[Ran]
    soc: Soc
    us: float


def fit(
    records: Sequence[Record], start: Constants = timeline.PUBLISHED, names: Sequence[str] = GUESSED
) -> Constants:
    """The constants whose simulated times have the smallest squares of log ratios to the measured.

    Names of constants that no record depends on stay as they are, for each change has a small price.
    Raises ValueError without records, or with a time that is none.
    """
    if not records or any(not record.us > 0 for record in records):
        raise ValueError(
            "expected records of calls with microseconds greater than 0; there is none to fit to"
        )
    moved = np.zeros(len(names))
    for _ in range(ROUNDS):
        error, slopes = errors(records, at(start, names, moved), names)
        change = solved(np.vstack([slopes, PULL * np.eye(len(names))]), np.append(error, PULL * moved))
        moved -= np.clip(change, -FURTHEST, FURTHEST)
        if np.abs(change).max() < STEP / 10:
            break
    return at(start, names, moved)


def at(start: Constants, names: Sequence[str], moved: Array) -> Constants:
    """Constants multiplied by powers of e."""
    values = {name: getattr(start, name) * float(np.exp(each)) for name, each in zip(names, moved)}
    return replace(start, **values)


def errors(records: Sequence[Record], known: Constants, names: Sequence[str]) -> tuple[Array, Array]:
    """Logarithms of simulated by measured [records], and how they change with each constant's."""
    sets = [known, *(known.changed(name, float(np.exp(STEP))) for name in names)]
    logs = np.array(
        [
            [np.log(found.us / record.us) for found in timeline.timed(record.ran, record.soc, sets)]
            for record in records
        ]
    )
    return logs[:, 0], (logs[:, 1:] - logs[:, :1]) / STEP


def solved(slopes: Array, error: Array) -> Array:
    """Least squares."""
    return np.asarray(np.linalg.lstsq(slopes, error, rcond=None)[0])
