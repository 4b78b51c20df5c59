"""Measures what a plan took from elsewhere, once, so that it is no longer a guess."""

from __future__ import annotations

from collections.abc import Mapping

from ..targets.base import Kernel, Space
from .contest import Contest
from .fingerprint import Fingerprint, Here
from .log import Log
from .measure import Judge
from .plan import Plan


def verify(
    plan: Plan,
    spaces: Mapping[Kernel, Space],
    judge: Judge,
    log: Log,
    place: Fingerprint | Here,
    versions: Mapping[str, str],
) -> None:
    """Races each schedule that was not measured here against the default, and logs what came of it.

    A plan made then has an answer of its own for these kernels; a search of them may still come. Raises
    CannotBuild if this machine cannot build or run kernels.
    """
    for kernel in plan.unmeasured:
        contest = Contest(kernel, spaces[kernel], judge, log, place.of(kernel), versions)
        for schedules in (spaces[kernel].defaults, plan[kernel].schedules):
            contest.enter(schedules)
