"""Kernels with a schedule for each bucket of tokens: calls run theirs, and a wrong one is seen there only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from moec.targets.base import BUCKETS, Kernel, Schedule, Schedules, serving
from moec.targets.cases_attention import attention_feeds
from moec.targets.cpu import emit as emitting
from moec.targets.cpu import isa
from moec.targets.cpu.device import Device
from moec.targets.cpu.space import space
from moec.targets.cpu.table import op_name, table

LINEAR = Kernel("linear_add", (("k", 24), ("n", 40)))
KERNELS = (
    LINEAR,
    Kernel("linear_swiglu", (("k", 24), ("n", 40))),
    Kernel("grouped_swiglu", (("k", 24), ("n", 40), ("experts", 4), ("share", 3))),
    Kernel("grouped_combine", (("k", 24), ("n", 40), ("experts", 4), ("share", 3), ("base", 1))),
    Kernel("attention", (("heads", 6), ("groups", 2), ("dk", 16), ("dv", 16)), (("scale", 0.25),)),
)
EDGES = [tokens for first in BUCKETS for tokens in (first - 1, first) if tokens]


def apart(kernel: Kernel, level: isa.Isa) -> Schedules:
    """A schedule for each bucket, like no other, all with one layout."""
    knob, values = ("span", range(128, 1000, 64)) if kernel.kind == "attention" else ("mr", range(2, 9))
    return {first: {**space(kernel, level).default, knob: value} for first, value in zip(BUCKETS, values)}


def ids(kernel: Kernel) -> str:
    return kernel.kind


@pytest.mark.parametrize("kernel", KERNELS, ids=ids)
def test_every_count_of_tokens_is_right(kernel: Kernel) -> None:
    bench = Device(isa.V3.name, 2).bench(kernel, apart(kernel, isa.V3))
    for tokens in range(301) if kernel.kind != "attention" else EDGES:
        assert (tokens, bench.check_feeds(bench.feeds(tokens))) == (tokens, None)


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[Kernel, Schedule], None]:
    """Has code written for half the columns and the narrowest panels whenever it is for this kernel and
    schedule.
    """

    def spoiling(kernel: Kernel, wrong: Schedule) -> None:
        build = emitting.BUILDERS[kernel.kind]
        half = tuple((name, size // 2 if name in ("k", "dv") else size) for name, size in kernel.dims)

        def builder(kernel: Kernel, schedule: Schedule, level: isa.Isa, prefix: str) -> Sequence[Any]:
            if schedule != wrong:
                return build(kernel, schedule, level, prefix)
            narrow = {knob: level.lanes if knob == "nr" else value for knob, value in schedule.items()}
            return build(replace(kernel, dims=half), narrow, level, prefix)

        monkeypatch.setitem(cast(dict[str, Any], emitting.BUILDERS), kernel.kind, builder)

    return spoiling


Spoil = Callable[[Kernel, Schedule], None]


@pytest.mark.parametrize("kernel", KERNELS, ids=ids)
@pytest.mark.parametrize("wrong", [0, 2, 5])
def test_a_wrong_schedule_is_wrong_where_it_serves(kernel: Kernel, wrong: int, spoil: Spoil) -> None:
    schedules, first = apart(kernel, isa.V3), BUCKETS[wrong]
    spoil(kernel, schedules[first])
    bench = Device(isa.V3.name, 2).bench(kernel, schedules)
    for tokens in (*EDGES, 300):
        seen = bench.check_feeds(bench.feeds(tokens))
        assert (tokens, seen is not None) == (tokens, serving(BUCKETS, tokens) == first)
    assert bench.check() is not None, "a check tries each of the schedules"


def test_tokens_of_all_sequences_count(spoil: Spoil) -> None:
    kernel = KERNELS[-1]
    schedules = apart(kernel, isa.V3)
    spoil(kernel, schedules[5])
    bench = Device(isa.V3.name, 2).bench(kernel, schedules)
    four, six = (attention_feeds(kernel, tokens, np.random.default_rng(0), batch=2) for tokens in (2, 3))
    assert bench.check_feeds(four) is None
    assert bench.check_feeds(six) is not None


def test_equal_schedules_are_emitted_once() -> None:
    one, other = (dict(schedule) for schedule in [*apart(LINEAR, isa.V3).values()][:2])
    made = emitting.emit(LINEAR, {1: one, 5: other, 65: one}, isa.V3)
    assert made.symbols[0] == made.symbols[2]
    assert not set(made.symbols[0]) & set(made.symbols[1])
    assert len(made.symbols[1]) == 2 * int(other["mr"])  # tiles and strips


def test_the_name_says_all_schedules() -> None:
    one, other = [*apart(LINEAR, isa.V3).values()][:2]
    choices: list[Schedules] = [{1: one}, {1: other}, {1: one, 5: other}, {1: one, 17: other}]
    assert len({op_name(LINEAR, schedules) for schedules in choices}) == len(choices)


@pytest.mark.parametrize(("kernel", "rows"), zip(KERNELS, (1, 1, 1, 3, 6)), ids=lambda value: str(value))
def test_the_table_says_how_many_rows_are_a_token(kernel: Kernel, rows: int) -> None:
    made = emitting.emit(kernel, space(kernel, isa.V3).defaults, isa.V3)
    assert f"reals0, {rows}, variants0}}" in table([made], isa.V3)
