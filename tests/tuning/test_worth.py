"""What tuning cost and bought, and which knobs matter, from made-up logs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from moec.targets.base import Kernel, Schedules, Space
from moec.tuning.importance import FEWEST, importance
from moec.tuning.log import Log
from moec.tuning.plan import Choice, Plan, make_plan
from moec.tuning.record import Record
from moec.tuning.worth import Worth, seconds_of, worth

from .log_records import HERE, KERNEL, OTHER

SPACE = Space({"tile": (1, 2, 3)}, {"tile": 1})
SPACES = {KERNEL: SPACE, OTHER: SPACE}
USES = {KERNEL: 2, OTHER: 10}


def tried(
    kernel: Kernel, tile: int, milliseconds: Mapping[str, float], ratios: Mapping[int, float]
) -> Record:
    samples = {point: [each * 1e-3, each * 1e-3, each] for point, each in milliseconds.items()}
    (mean,) = {*ratios.values()} if len({*ratios.values()}) == 1 else (0.9,)
    return Record(kernel, HERE, {"tile": tile}, "ok", "", samples, mean, True, ratios=ratios)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """KERNEL won twice the speed on one token and nothing on 500; OTHER kept its default."""
    log = Log(tmp_path / "log.jsonl")
    for record in (
        tried(KERNEL, 1, {"m=1": 4, "m=500": 50}, {1: 1.0, 257: 1.0}),
        tried(KERNEL, 2, {"m=1": 2, "m=500": 50}, {1: 0.5, 257: 1.0}),
        tried(OTHER, 1, {"m=1": 0.4, "m=250": 5}, {1: 1.0, 65: 1.0}),
    ):
        log.append(record)
    return log


def judged(log: Log, spaces: Mapping[Kernel, Space] = SPACES) -> Worth:
    plan = make_plan(spaces, spaces, log, HERE)
    return worth(plan, spaces, {**USES, **dict.fromkeys(spaces.keys() - USES, 1)}, log, HERE, 41.2, 30)


def test_kernels_weigh_as_much_as_they_take(log: Log) -> None:
    found = judged(log)
    assert found.decode == pytest.approx((2 * 4 + 10 * 0.4) / (2 * 2 + 10 * 0.4))
    assert found.prefill == pytest.approx(1.0)
    assert (found.kernels, found.kept, found.timed) == (2, 1, 2)


def test_the_line(log: Log) -> None:
    assert str(judged(log)) == (
        "41 s of tuning: decode 1.50x, prefill 1.00x, estimated from the times of 2 kernels; "
        "1 of 2 kernels kept their default"
    )
    assert judged(log).json()["line"] == str(judged(log))


def test_a_gain_on_many_tokens_is_one_of_prefill(log: Log) -> None:
    log.append(tried(KERNEL, 3, {"m=1": 2, "m=500": 25}, {1: 0.5, 257: 0.5}))
    default, now = (2 * 50 / 500 + 10 * 5 / 250), (2 * 25 / 500 + 10 * 5 / 250)
    assert judged(log).prefill == pytest.approx(default / now)


def test_what_was_never_timed_says_nothing(log: Log, tmp_path: Path) -> None:
    unknown = Kernel("linear", (("k", 7), ("n", 7)))
    nothing_to_choose = Space({"tile": (1,)}, {"tile": 1})
    found = judged(log, {**SPACES, unknown: SPACE, Kernel("rms_norm", ()): nothing_to_choose})
    assert (found.kernels, found.kept, found.timed) == (3, 2, 2)
    assert found.decode == judged(log).decode
    empty = judged(Log(tmp_path / "empty.jsonl"))
    assert (empty.decode, empty.prefill) == (None, None)
    assert str(empty) == "41 s of tuning; 2 of 2 kernels kept their default"


def test_a_guess_buys_nothing_until_it_is_measured(log: Log) -> None:
    plan = Plan({KERNEL: Choice({1: {"tile": 3}}, "neighbour"), OTHER: Choice(SPACE.defaults, "default")})
    found = worth(plan, SPACES, USES, log, HERE)
    assert (found.decode, found.timed, found.kept) == (1.0, 1, 1)


def test_seconds_are_those_of_the_schedule_that_serves() -> None:
    both: Schedules = {1: {"tile": 1}, 17: {"tile": 2}}
    records = [
        tried(KERNEL, 1, {"m=1": 1, "m=64": 9}, {}),
        tried(KERNEL, 2, {"m=1": 7, "m=64": 3, "m=64 zipf": 5}, {}),
    ]
    assert seconds_of(both, 1, records) == pytest.approx(1e-3)
    assert seconds_of(both, 64, records) == pytest.approx(4e-3)
    assert seconds_of(both, 3, records) is None


def grid(weights: Mapping[str, float]) -> list[Record]:
    """Every schedule of knobs of four values, each of which slows by its weight and its value."""
    return [
        Record(KERNEL, HERE, dict(zip(weights, values)), "ok", "", {}, 2**slow)
        for values in itertools.product(range(4), repeat=len(weights))
        for slow in [sum(weight * value for weight, value in zip(weights.values(), values))]
    ]


def test_the_knob_that_decides_matters_most() -> None:
    shares = importance(grid({"a": 0.1, "b": 0.3, "c": 0.0}))
    assert list(shares) == ["b", "a", "c"]
    assert shares["b"] == pytest.approx(0.9, abs=0.02)
    assert shares["a"] == pytest.approx(0.1, abs=0.05)
    assert shares["c"] == 0


def test_luck_is_not_importance() -> None:
    """Ten values, tried three times each: alone by luck they would explain a third of the variance."""
    dice, found = random.Random(0), list[float]()
    for _ in range(20):
        noise = [Record(KERNEL, HERE, {"a": i % 10}, "ok", "", {}, 2 ** dice.gauss()) for i in range(30)]
        found.append(importance(noise)["a"])
    assert sum(found) / len(found) < 0.12
    many = [Record(KERNEL, HERE, {"a": i}, "ok", "", {}, 1 + i % 3) for i in range(20)]
    assert importance(many) == {"a": 0.0}, "a value that was tried once explains nothing"


def test_few_trials_say_nothing_of_knobs() -> None:
    assert importance(grid({"a": 1.0})[: FEWEST - 1]) == {}
    assert importance([]) == {}
