"""Schedules of products with weights: one family of kernels for few tokens, one for many.

The knob `path` says which; what only the other one reads says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..base import BUCKETS, Kernel, Rule, Schedule, Space
from . import space_gemm, space_gemv
from .sm import Sm

KINDS = ("linear", "linear_add", "linear_swiglu", "grouped_swiglu", "grouped_combine")
PATHS: Mapping[str, Callable[[Kernel, Sm], Space]] = {"gemv": space_gemv.space, "gemm": space_gemm.space}
MANY = 17  # tokens from which tiles of the tensor cores pay without tuning


def space(kernel: Kernel, sm: Sm) -> Space:
    """Both families' schedules, each with the other's knobs at rest."""
    spaces = {path: of(kernel, sm) for path, of in PATHS.items()}
    rest = {path: {knob: values[0] for knob, values in each.choices.items()} for path, each in spaces.items()}
    few, many = PATHS
    others = {few: rest[many], many: rest[few]}

    def whole(path: str, schedule: Schedule) -> Schedule:
        return {**others[path], **schedule, "path": path}

    def fits(schedule: Schedule) -> str | None:
        path = str(schedule["path"])
        return spaces[path].objection({knob: schedule[knob] for knob in spaces[path].choices})

    def default(tokens: int) -> Schedule:
        possible = [path for path in PATHS if not spaces[path].objection(serving(spaces[path], tokens))]
        path = possible[-1] if tokens >= MANY else possible[0]
        return whole(path, serving(spaces[path], tokens))

    rules: tuple[Rule, ...] = (fits,)
    ones = [(path, each) for path, own in spaces.items() for each in (*own.defaults.values(), *own.known)]
    return Space(
        choices={"path": tuple(PATHS), **{k: v for each in spaces.values() for k, v in each.choices.items()}},
        default=default(BUCKETS[0]),
        known=[whole(path, each) for path, each in ones if not spaces[path].objection(each)],
        rules=rules,
        larger={first: default(first) for first in BUCKETS[1:]},
    )


def serving(space: Space, tokens: int) -> Schedule:
    """The default for calls of so many tokens."""
    defaults = space.defaults
    return defaults[max(first for first in defaults if first <= tokens)]
