"""Kernels tried on this machine's CPU: which calls are compared with the reference, and what came of them.

A kernel that reads or writes where it must not ends the process: try it in one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ...compiler.ir import Array
from ..base import Kernel, Schedules, serving
from ..cases_bf16 import Example, Sample
from ..checks import checked, tokens, where
from ..sample import unwritten
from . import simulate
from .soc import Soc
from .space import steps

Checked = tuple[str, str | None, float]  # a call's name, what is wrong or None, the largest error


def checks(
    kernel: Kernel,
    schedules: Schedules,
    soc: Soc,
    told: Callable[[str], None] = lambda name: None,
    only: Callable[[dict[str, Any]], bool] = lambda options: True,
) -> Iterator[Checked]:
    """What came of each call; told: called with its name before it is made; only: which calls are made."""
    sample = Sample(kernel)
    for name, options in checked(kernel, schedules).items():
        if only(options):
            told(name)
            example = sample.example(**options)
            results = run(kernel, schedules, soc, example)
            wrong = example.wrong(results)
            why = f"{wrong}; {where(example, results)}" if wrong else None
            yield name, why, max(example.errors(results), default=0.0)


def run(
    kernel: Kernel, schedules: Schedules, soc: Soc, example: Example, before: bool = False
) -> list[Array]:
    """Results of a call, by the schedule that serves it; NaN or the lowest integer where nobody wrote.

    before: whether what lies in front of arrays is guarded, rather than what is behind them.
    """
    schedule = schedules[serving(schedules, tokens(kernel, example.operands))]
    results = [unwritten(like.astype(dtype)) for like, dtype in zip(example.results, example.dtypes)]
    return simulate.run(
        steps(kernel, schedule, soc),
        soc,
        example.operands,
        results,
        sizes_of(kernel, example.operands),
        dict(kernel.reals),
        example.in_place,
        before,
    )


def sizes_of(kernel: Kernel, operands: Sequence[Array]) -> dict[str, int]:
    """What a call's sizes are (see program.SIZES), as the runtime has them; 0 where they mean nothing."""
    shapes = [each.shape for each in operands]
    sizes = {"batch": 0, "tokens": 0, "seen": 0, "room": 0}

    def cached(batch: int, new: int, mask: int, cache: int) -> dict[str, int]:
        room = shapes[cache][2]
        return {"m": batch * new, "batch": batch, "tokens": new, "seen": shapes[mask][1], "room": room}

    match kernel.kind:
        case "append":
            return cached(shapes[0][0], shapes[1][2], 2, 0)
        case "latent_write":
            return cached(shapes[0][0], shapes[0][1], 6, 4)
        case "latent_attention":
            return cached(shapes[0][0], shapes[0][1], 5, 3)
        case "mla_decode":
            return cached(shapes[0][0], shapes[0][1], 3, 1)
        case "attention":
            return cached(shapes[0][0], shapes[0][2], 3, 1)
        case "angles":
            batch, new = shapes[1]
            return {**sizes, "m": batch * new, "batch": batch, "tokens": new, "seen": shapes[0][1]}
        case "rotary":
            rows = int(np.prod(shapes[0][:-1]))
            return {**sizes, "m": rows, "batch": shapes[0][0], "tokens": shapes[0][2]}
    return {**sizes, "m": tokens(kernel, operands)}
