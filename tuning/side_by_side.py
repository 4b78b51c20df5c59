"""Kernels searched at the same time, as many as there are devices to measure on."""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any, Protocol

from ..targets.base import Kernel, Space
from .fingerprint import Fingerprint, Here
from .log import Log
from .measure import Judge
from .record import bare
from .search import Budget, Progress, Summary, tune


class SharedJudge(Judge, Protocol):
    """A judge that several threads may ask at a time."""

    @property
    def lanes(self) -> int:
        """How many trials it does at a time."""

    def close(self) -> None:
        """Ends the trials in flight: those who wait for them see KeyboardInterrupt, and so do later ones."""


def tune_side_by_side(
    spaces: Mapping[Kernel, Space],
    judge: SharedJudge,
    budget: Budget,
    log: Log,
    place: Fingerprint | Here,
    *,
    weights: Mapping[Kernel, float] | None = None,
    retune: bool = False,
    progress: Callable[[Progress], None] = lambda event: None,
    **rest: Any,
) -> Summary:
    """search.tune, as many kernels at a time as the judge has lanes; arguments and errors are the same.

    Seconds are seconds of waiting, however many search meanwhile. Ctrl-C ends all searches and loses nothing
    but the trials in flight.
    """
    started, weights = time.monotonic(), weights or {}
    left = [
        kernel
        for kernel, space in spaces.items()
        if any(len(values) > 1 for values in space.choices.values())
        and (retune or not log.tuned(kernel, place.of(kernel)))
    ]
    groups = shared_out(left, weights, judge.lanes if math.isfinite(budget.seconds) else len(left))
    told, options = _Told(len(set(map(bare, left))), progress), {"weights": weights, "retune": retune, **rest}

    def search(kernels: Sequence[Kernel]) -> Summary:
        mine = {kernel: spaces[kernel] for kernel in kernels}
        return tune(mine, judge, budget, log, place, progress=told, **options)

    with ThreadPoolExecutor(max_workers=max(1, judge.lanes)) as pool:
        searches = [pool.submit(search, group) for group in groups]
        interrupted = _finish(searches, judge)
    each = [done.result() for done in searches if not done.cancelled()]
    return Summary(
        [kernel for summary in each for kernel in summary.kernels],
        sum(summary.trials for summary in each),
        time.monotonic() - started,
        interrupted or any(summary.interrupted for summary in each),
    )


def _finish(searches: Sequence[Future[Summary]], judge: SharedJudge) -> bool:
    """Waits for all; whether Ctrl-C came first. What one of them raises ends the others."""
    try:
        for done in as_completed(searches):
            done.result()
    except BaseException as error:
        for search in searches:
            search.cancel()
        judge.close()
        if not isinstance(error, KeyboardInterrupt):
            raise
        return True
    return False


class _Told:
    """Progress of several searches as if they were one."""

    def __init__(self, kernels: int, progress: Callable[[Progress], None]) -> None:
        self.kernels, self.progress = kernels, progress
        self.numbers: dict[Kernel, int] = {}
        self.started, self.turn = time.monotonic(), threading.Lock()

    def __call__(self, event: Progress) -> None:
        with self.turn:
            number = self.numbers.setdefault(bare(event.kernel), len(self.numbers) + 1)
            seconds = time.monotonic() - self.started
            self.progress(replace(event, number=number, kernels=self.kernels, seconds=seconds))


def shared_out(kernels: Sequence[Kernel], weights: Mapping[Kernel, float], groups: int) -> list[list[Kernel]]:
    """So many groups, or as many as there are kernels, of about the same weight, heaviest kernels first.

    Kernels that differ in reals only are searched as one, so they stay together.
    """
    alike: dict[Kernel, list[Kernel]] = {}
    for kernel in kernels:
        alike.setdefault(bare(kernel), []).append(kernel)
    heavy = {key: sum(weights.get(kernel, 1.0) for kernel in some) for key, some in alike.items()}
    lightest = [(0.0, index) for index in range(min(groups, len(alike)))]
    shares: list[list[Kernel]] = [[] for _ in lightest]
    for key in sorted(alike, key=lambda key: (-heavy[key], str(key))):
        weight, index = heapq.heappop(lightest)
        shares[index] += alike[key]
        heapq.heappush(lightest, (weight + heavy[key], index))
    return shares
