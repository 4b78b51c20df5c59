"""Linear layers and experts against float64: odd sizes, no rows, experts without tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random

import numpy as np
import pytest
from arrays import CHOICES

from moec.targets.base import Kernel, Schedule
from moec.targets.cases import CASES, operands
from moec.targets.cpu import isa
from moec.targets.cpu.device import Bench, Device
from moec.targets.cpu.sample import pack
from moec.targets.cpu.space import space

Build = Callable[..., Bench]
KINDS = ("linear", "linear_add", "linear_swiglu", "grouped_swiglu", "grouped_combine")
EXPERTS, SHARE = 8, 3


def kernel_of(kind: str, k: int, n: int, base: int = 1) -> Kernel:
    """A kernel; n is even where it must be."""
    n += n % 2 if kind.endswith("swiglu") else 0
    dims = [("k", k), ("n", n)]
    if kind.startswith("grouped"):
        dims += [("experts", EXPERTS), ("share", SHARE)]
    return Kernel(kind, tuple([*dims, ("base", base)] if kind == "grouped_combine" else dims))


def routed(chosen: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """order and ends of tokens that chose these experts."""
    flat = np.array(chosen, np.int64).reshape(-1)
    ends = np.cumsum(np.bincount(flat, minlength=EXPERTS)).astype(np.int64)
    return [np.argsort(flat, kind="stable").astype(np.int64), ends]


def grouped_feeds(bench: Bench, chosen: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Operands of a grouped kernel with a routing of the test's choice."""
    feeds = bench.feeds(len(chosen))
    feeds[1:3] = routed(chosen)
    return feeds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("k", "n"), [(7, 13), (129, 100)])
def test_any_count_of_rows(kind: str, k: int, n: int, level: isa.Isa, build: Build) -> None:
    bench = build(kernel_of(kind, k, n), level)
    tallest = int(bench.schedule["mr"])
    for rows in (*range(tallest + 2), 2 * tallest + 1, 100):
        assert (rows, bench.check_feeds(bench.feeds(rows))) == (rows, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [603, 1002, 1100])
def test_several_strips(kind: str, k: int, build: Build) -> None:
    """Of as many steps as they are unrolled by, whatever divides k."""
    bench = build(kernel_of(kind, k, 100), isa.V3)
    for rows in (8, 49, 150):
        assert (rows, bench.check_feeds(bench.feeds(rows))) == (rows, None)


@pytest.mark.parametrize("kind", ["linear_add", "grouped_combine"])
def test_the_size_of_a_model(kind: str, level: isa.Isa, build: Build) -> None:
    bench = build(kernel_of(kind, 1024, 1408), level)
    for rows in (1, 9):
        assert (rows, bench.check_feeds(bench.feeds(rows))) == (rows, None)


def test_one_by_one(level: isa.Isa, build: Build) -> None:
    assert build(kernel_of("linear", 1, 1), level).check() is None


@pytest.mark.parametrize("kind", ["grouped_swiglu", "grouped_combine"])
@pytest.mark.parametrize("chosen", CHOICES.values(), ids=CHOICES)
def test_experts_without_tokens(
    kind: str, chosen: Sequence[Sequence[int]], level: isa.Isa, build: Build
) -> None:
    bench = build(kernel_of(kind, 64, 96), level, mr=3, grain=1, group=16)
    assert bench.check_feeds(grouped_feeds(bench, chosen)) is None


def test_experts_without_tokens_are_not_read(build: Build) -> None:
    bench = build(kernel_of("grouped_combine", 64, 96), isa.V3)
    feeds = grouped_feeds(bench, [[1, 3, 5], [5, 1, 3]])
    wanted = bench.case.reference(bench.kernel, operands(feeds, bench.weights))
    packed = bench.packed[3][0]
    saved = packed.copy()
    packed[[0, 2, 4, 6, 7]] = np.nan
    try:
        assert np.isfinite(bench.run(feeds, wanted)[0]).all()
    finally:
        packed[...] = saved


def test_combine_without_a_base(level: isa.Isa, build: Build) -> None:
    bench = build(kernel_of("grouped_combine", 33, 50, base=0), level)
    assert bench.check() is None


@pytest.mark.parametrize("kind", KINDS)
def test_results_do_not_depend_on_threads_or_tasks(kind: str, build: Build) -> None:
    kernel, level = kernel_of(kind, 100, 300), isa.host()
    one, many = build(kernel, level, 1, mr=3, grain=4096), build(kernel, level, 3, mr=3, grain=1)
    feeds = one.feeds(50)
    wanted = one.case.reference(kernel, operands(feeds, one.weights))
    np.testing.assert_array_equal(one.run(feeds, wanted)[0], many.run(feeds, wanted)[0])


def test_sessions_side_by_side(build: Build) -> None:
    bench = build(kernel_of("grouped_combine", 64, 96), isa.V3, mr=3, grain=1)
    feeds = bench.feeds(40)
    wanted = bench.case.reference(bench.kernel, operands(feeds, bench.weights))
    (alone,) = bench.run(feeds, wanted)
    with ThreadPoolExecutor(4) as pool:
        for (together,) in pool.map(lambda _: bench.run(feeds, wanted), range(40)):
            np.testing.assert_array_equal(together, alone)


def test_leading_axes_are_rows(level: isa.Isa, build: Build) -> None:
    bench = build(kernel_of("linear_add", 20, 30), level)
    x, residual = bench.feeds(6)
    (flat,) = bench.run([x, residual], [np.zeros((6, 30))])
    (deep,) = bench.run([x.reshape(2, 3, 20), residual.reshape(2, 3, 30)], [np.zeros((2, 3, 30))])
    np.testing.assert_array_equal(deep.reshape(6, 30), flat)


@pytest.mark.parametrize("kind", KINDS)
def test_schedules_of_the_space(kind: str, level: isa.Isa, build: Build) -> None:
    kernel = kernel_of(kind, 96, 200)
    for schedule in sample(kernel, level, 1):
        assert (schedule, build(kernel, level, 2, **schedule).check()) == (schedule, None)


def sample(kernel: Kernel, level: isa.Isa, count: int) -> list[Schedule]:
    """Some schedules the space admits, always the same."""
    dice, found, where = Random(str((kernel, level))), [], space(kernel, level)
    while len(found) < count:
        schedule = {knob: dice.choice(list(values)) for knob, values in where.choices.items()}
        if where.objection(schedule) is None:
            found.append(schedule)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 13, 64, 1408])
def test_defaults_are_in_the_space(kind: str, n: int) -> None:
    for level in isa.ISAS:
        kernel = kernel_of(kind, 512, n)
        where = space(kernel, level)
        for schedule in (where.default, *where.known):
            assert where.objection(schedule) is None


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (0, np.zeros((2, 19), np.float32), "input 0 has 19 columns; 20 were compiled in"),
        (1, np.full(6, 6, np.int64), "order[0] is 6; there are 6 slots"),
        (2, np.arange(8, dtype=np.int64), "ends[7] is 7 after 6; ends must rise to the 6 rows there are"),
        (2, np.array([3, 2, 6, 6, 6, 6, 6, 6], np.int64), "ends[1] is 2 after 3"),
        (2, np.full(7, 6, np.int64), "input 2 holds 7 elements; 8 were expected"),
    ],
)
def test_operands_that_do_not_fit_are_refused(
    place: int, value: np.ndarray, reason: str, build: Build
) -> None:
    bench = build(kernel_of("grouped_swiglu", 20, 30), isa.V3)
    feeds = bench.feeds(2)
    feeds[place] = value
    with pytest.raises(Exception, match=re.escape(reason)) as error:
        bench.run(feeds, [np.zeros((6, 15))])
    assert "grouped_swiglu_k20_n30_experts8_" in str(error.value)


def test_a_base_that_was_compiled_in_is_missed(build: Build) -> None:
    bench = build(kernel_of("grouped_combine", 33, 50), isa.V3)
    *others, _ = bench.feeds(2)
    with pytest.raises(Exception, match="input 5 holds 0 elements; 100 were expected"):
        bench.run(others, [np.zeros((2, 50))])


def test_a_wrong_kernel_is_noticed(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = build(kernel_of("linear", 20, 30), isa.V3)
    assert bench.check() is None
    other = CASES["linear"].weights(bench.kernel, np.random.default_rng(1))
    monkeypatch.setitem(bench.__dict__, "packed", pack(bench.kernel, bench.schedule, other))
    assert re.match(r"with 1 rows, output 0 is off by .* of its largest value", bench.check() or "")


def test_timing_a_point(build: Build) -> None:
    bench = build(kernel_of("grouped_swiglu", 64, 96), isa.V3)
    assert 0 < bench.time("m=8") < 1


def test_schedules_of_a_kernel_share_weights_and_references(level: isa.Isa) -> None:
    kernel, device = kernel_of("linear", 20, 30), Device(level.name)
    one, other = (device.bench(kernel, {1: {**space(kernel, level).default, "mr": mr}}) for mr in (2, 3))
    assert one.weights is other.weights
    assert one.sample.example(3)[1] is other.sample.example(3)[1]
    another = device.bench(kernel_of("linear", 20, 31), space(kernel, level).defaults)
    assert another.weights[1].shape == (31, 20)
