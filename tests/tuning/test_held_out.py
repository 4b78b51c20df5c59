"""Schedules of other shapes on shapes that were held out, replayed from recorded sweeps."""

from __future__ import annotations

import pytest

from ..benchmarks.transfer import MEDIAN, TENTH, Shape, Speeds, held_out, kinds

KINDS = kinds()


@pytest.fixture(scope="module", params=KINDS)
def speeds(request: pytest.FixtureRequest) -> dict[str, Speeds]:
    """How each source of schedules does on the shapes of a kind."""
    return {each.source: each for each in held_out(KINDS[request.param])}


def test_both_kinds_are_there() -> None:
    assert {kind: len(shapes) for kind, shapes in KINDS.items()} == {
        "linear f32": 12,
        "grouped_swiglu int8": 12,
    }


@pytest.mark.parametrize("source", ["used", "nearest"])
def test_schedules_of_others_are_close_to_tuned_ones(speeds: dict[str, Speeds], source: str) -> None:
    assert speeds[source].median >= MEDIAN
    assert speeds[source].tenth >= TENTH


def test_what_a_build_uses_unmeasured_does_not_cost_speed(speeds: dict[str, Speeds]) -> None:
    assert speeds["used"].median >= speeds["default"].median - 0.02
    assert speeds["used"].tenth >= speeds["default"].tenth - 0.02


def test_random_schedules_are_slower(speeds: dict[str, Speeds]) -> None:
    for source in ("used", "nearest"):
        assert speeds[source].median > speeds["random"].median
        assert speeds[source].tenth > speeds["random"].tenth


def test_a_shape_without_others_near_gets_its_default() -> None:
    alone: list[Shape] = KINDS["linear f32"][:1]
    found = {each.source: each for each in held_out(alone)}
    assert found["used"].each == found["default"].each
    assert "nearest" not in found
