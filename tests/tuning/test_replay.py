"""Recorded spaces: their format, the judge that replays them, and the search's strategy on real ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from moec.targets.base import Kernel
from moec.tuning.fingerprint import Fingerprint
from moec.tuning.replay import PAIRS, Replay
from moec.tuning.sweep import BadSweep, Outcome, Sweep, read

from ..benchmarks.strategies import STRATEGIES, SWEEPS, trials_needed

SEEDS, MOST = 3, 60
PATHS = sorted(SWEEPS.glob("*.json.gz"))
OUTCOMES = {
    (1, 8): Outcome("ok", "", 0.25, {"m=1": [2e-6, 4e-6], "m=64 zipf": [1e-4, 2e-4]}),
    (1, 16): Outcome("ok", "", 0.5, {"m=1": [1e-6, 2e-6], "m=64 zipf": [2e-4, 4e-4]}),
    (2, 8): Outcome("refused", "two rows of 8 do not fit"),
    (2, 16): Outcome("crashed", "killed by SIGSEGV"),
}
SWEEP = Sweep(
    about="made up",
    kernel=Kernel("linear", (("k", 64), ("n", 64))),
    fingerprint=Fingerprint("x86-64-v3", "some cpu", 2, "00ff"),
    choices={"rows": [1, 2], "lanes": [8, 16]},
    default={"rows": 1, "lanes": 8},
    known=[{"rows": 1, "lanes": 16}],
    layout=["rows"],
    larger={17: {"lanes": 16}},
    points=["m=1", "m=64 zipf"],
    outcomes=OUTCOMES,
)
SLOW, FAST = {"rows": 1, "lanes": 8}, {"rows": 1, "lanes": 16}


@pytest.mark.parametrize("name", ["sweep.json", "sweep.json.gz"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    SWEEP.write(tmp_path / name)
    back = read(tmp_path / name)
    for values, outcome in OUTCOMES.items():
        assert back.outcomes[values].samples == {
            point: pytest.approx(seconds, rel=1e-3) for point, seconds in outcome.samples.items()
        }
        assert back.outcomes[values].took == outcome.took
        assert back.outcomes[values].reason == outcome.reason
    assert [
        getattr(back, part) for part in ("kernel", "fingerprint", "choices", "default", "known", "larger")
    ] == [getattr(SWEEP, part) for part in ("kernel", "fingerprint", "choices", "default", "known", "larger")]


FAULTS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda data: data.update(replay=2), "replay is 2, this moec reads 1"),
    (lambda data: data["outcomes"].pop(), "3 outcomes for 4 schedules"),
    (lambda data: data["outcomes"].__setitem__(0, 7), "outcome 7 is none of 2 failures"),
    (lambda data: data["outcomes"][0].pop(), "is no outcome of"),
    (lambda data: data["outcomes"][0][1].append(-1), "are no samples"),
    (lambda data: data["failures"].append(["ok", ""]), "is no failure"),
    (lambda data: data["units"].pop(), "units are not seconds"),
    (lambda data: data["choices"].update(rows=[[1], 2]), "choices of rows"),
    (lambda data: data.pop("kernel"), "kernel is NoneType, expected dict"),
    (lambda data: data["fingerprint"].update(threads="2"), "threads is str, expected int"),
    (lambda data: data.update(larger={"many": {}}), "larger begins at many"),
    (lambda data: data.update(default={"rows": 3, "lanes": 8}), "default .* is not among"),
]


@pytest.mark.parametrize(("spoil", "sentence"), FAULTS, ids=[sentence for _, sentence in FAULTS])
def test_a_file_that_is_none_is_refused(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    path = tmp_path / "sweep.json"
    SWEEP.write(path)
    data = json.loads(path.read_text())
    spoil(data)
    path.write_text(json.dumps(data))
    with pytest.raises(BadSweep, match=rf"sweep\.json: .*{sentence}"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"{", gzip.compress(b"[1]", mtime=0)[:-9]])
def test_a_torn_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sweep.json.gz"
    path.write_bytes(content)
    with pytest.raises(BadSweep, match=r"sweep\.json\.gz"):
        read(path)


def test_the_space_refuses_what_was_refused() -> None:
    space = SWEEP.space
    assert space.objection({"rows": 2, "lanes": 8}) == "two rows of 8 do not fit"
    assert space.objection({"rows": 2, "lanes": 16}) is None
    assert space.objection({"rows": 3, "lanes": 16}) is not None
    assert space.defaults == {1: SLOW, 17: FAST}


def test_pairs_are_of_one_round() -> None:
    seen = Replay(SWEEP).trial(SWEEP.kernel, {1: FAST}, {1: SLOW})
    assert seen.against is not None
    ratios = {mine / its for mine, its in zip(seen.samples["m=1"], seen.against["m=1"])}
    assert ratios == {0.5}
    assert len(set(seen.samples["m=1"])) == 2
    assert len(seen.samples["m=1"]) == PAIRS


def test_each_point_is_served_by_its_schedule() -> None:
    assert SWEEP.seconds({1: FAST, 17: SLOW}) < min(SWEEP.seconds({1: FAST}), SWEEP.seconds({1: SLOW}))
    seen = Replay(SWEEP).trial(SWEEP.kernel, {1: FAST, 17: SLOW}, None, ["m=64 zipf"])
    assert set(seen.samples) == {"m=64 zipf"}
    assert set(seen.samples["m=64 zipf"]) == {1e-4, 2e-4}


def test_failures_are_replayed_and_the_clock_counts() -> None:
    judge = Replay(SWEEP)
    seen = judge.trial(SWEEP.kernel, {1: {"rows": 2, "lanes": 16}}, {1: SLOW})
    assert (seen.status, seen.reason) == ("crashed", "killed by SIGSEGV")
    assert judge.clock == 0
    judge.trial(SWEEP.kernel, {1: FAST}, {1: SLOW})
    assert 0.5 < judge.clock < 0.51


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name.split(".")[0])
def test_recorded_spaces_are_sound(path: Path) -> None:
    sweep = read(path)
    assert sweep.space.objection(sweep.default) is None
    assert all(sweep.outcome(schedule).status == "ok" for schedule in (sweep.default, *sweep.known))
    assert len(sweep.schedules()) > 100


@pytest.mark.parametrize("slow", [False, True], ids=["default", "slow"])
def test_the_chosen_strategy_is_not_worse_than_random(slow: bool) -> None:
    """Trials to come within 5 % of the best, as in tests/benchmarks/strategies, on all recorded spaces."""
    needed = {
        name: [
            trials_needed(sweep, STRATEGIES[name], seed, slow, MOST)
            for sweep in map(read, PATHS)
            for seed in range(SEEDS)
        ]
        for name in ("chosen", "random")
    }
    assert mean(needed["chosen"]) <= mean(needed["random"])
    assert mean(needed["chosen"]) < MOST / 2
