"""Gains told from noise: the bounds of a ratio, and what wins, alone or together."""

from __future__ import annotations

import math
import random

import pytest

from moec.tuning.measure import CHANCE, Ratio, between, bucket_of, by_bucket, compare, ranks, won


def test_bounds_are_those_of_signed_ranks() -> None:
    assert [ranks(count, 0.025) for count in (5, 6, 10, 20)] == [None, 0, 8, 52]  # Wilcoxon's table
    assert ranks(8, CHANCE) == 0


def test_the_middle_shrugs_at_outliers() -> None:
    mine = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.0, 50.0, 1.0]
    low, middle, high = between(mine, [1.0] * 10, CHANCE)
    assert abs(middle) < 0.006
    assert -0.03 < low <= middle
    assert math.exp(high) < 8, "one outlier of ten pairs is half a bound"


def test_few_pairs_say_little() -> None:
    once = compare({"m=1": [0.5]}, {"m=1": [1.0]})
    assert (once.value, once.wins, once.open, once.noise) == (pytest.approx(0.5), False, True, None)
    widths = [
        compare({"m=1": [0.9, 1.1] * pairs}, {"m=1": [1.0] * 2 * pairs}).noise for pairs in (1, 2, 4, 8)
    ]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 3 * widths[-1]


def test_noise_is_half_the_width() -> None:
    assert Ratio(0.8, 0.84, 0.76).noise == pytest.approx(0.05)


def test_points_add_up_in_squares() -> None:
    dice = random.Random(0)
    some = {f"m={m}": [dice.lognormvariate(0, 0.05) for _ in range(20)] for m in (1, 3, 8, 32)}
    its = {point: [1.0] * 20 for point in some}
    each = [compare({point: some[point]}, its).noise or 0 for point in some]
    together = compare(some, its).noise
    assert together == pytest.approx(math.hypot(*each) / 4, rel=0.05)


@pytest.mark.parametrize(
    ("ratios", "buckets"),
    [
        ({"m=1": 0.9, "m=8": 1.0, "m=512": 1.2}, {1}),
        ({"m=1": 1.0, "m=8": 1.0}, set()),
        ({"m=1": 1.2, "m=3": 1.3}, set()),
        ({"m=1": 0.97, "m=3": 0.97, "m=8": 0.97, "m=32": 0.97, "m=512": 1.3}, {1, 2, 5, 17}),
    ],
    ids=["one", "none", "a loser", "together"],
)
def test_buckets_that_are_won(ratios: dict[str, float], buckets: set[int]) -> None:
    spread = [1 + step / 100 for step in range(-5, 6)]
    mine = {point: [ratio * noise for noise in spread] for point, ratio in ratios.items()}
    assert won(mine, {point: [1.0] * 11 for point in ratios}) == buckets


def test_points_of_a_bucket_are_judged_together() -> None:
    its = {"m=64": [1.0] * 9, "m=64 zipf": [1.0] * 9}
    (ratio,) = by_bucket({"m=64": [0.5] * 9, "m=64 zipf": [2.0] * 9}, its).values()
    assert ratio.value == pytest.approx(1)


@pytest.mark.parametrize(
    ("point", "first"),
    [("m=1", 1), ("m=2", 2), ("m=4 zipf", 2), ("m=16", 5), ("m=64 trace", 17), ("m=9999", 257)],
)
def test_buckets(point: str, first: int) -> None:
    assert bucket_of(point) == first


def test_points_one_of_them_lacks_are_left_out() -> None:
    assert compare({"m=1": [2.0]}, {"m=1": [1.0], "m=64": [9.0]}).value == pytest.approx(2)


def test_drift_hits_both_and_cancels_out() -> None:
    drift = [1 + step / 3 for step in range(11)]
    slower = {"m=1": [1.1 * factor for factor in drift]}
    assert compare(slower, {"m=1": drift}).value == pytest.approx(1.1)


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        compare({"m=1": [1.0]}, {"m=2": [1.0]})
