"""What is learned from a log: that it is right where the log is clear, judged honestly, and read strictly."""

from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moec.targets.base import Kernel, Space
from moec.tuning import heuristic
from moec.tuning.fingerprint import Fingerprint
from moec.tuning.heuristic import BadHeuristics, Heuristic
from moec.tuning.learn import CannotLearn, learn
from moec.tuning.record import Record

HERE = Fingerprint("x86-64-v3", "some cpu", 2, "00ff")
CHOICES = {"tile": (1, 2, 8), "nr": (8, 16), "idle": (0, 1)}
SPACE = Space(CHOICES, {"tile": 1, "nr": 16, "idle": 0}, layout=("nr",))
SIZES = (64, 128, 1024, 2048, 16384, 32768)


def linear(size: int) -> Kernel:
    return Kernel("linear", (("k", size), ("n", size)))


def ratio(size: int, tokens: int, tile: int, nr: int) -> float:
    """Small shapes like tile 2; large ones tile 8 from 17 tokens on; panels of 8 are a tenth faster."""
    best = 8 if size > 512 and tokens >= 17 else 2
    return 2 ** (0.4 * abs(math.log2(tile / best)) - 0.4) * (0.9 if nr == 8 else 1.0)


def record(size: int, tile: int, nr: int, idle: int, place: Fingerprint = HERE) -> Record:
    ratios = {tokens: ratio(size, tokens, tile, nr) for tokens in (1, 17)}
    mean = math.sqrt(math.prod(ratios.values()))
    schedule = {"tile": tile, "nr": nr, "idle": idle}
    return Record(linear(size), place, schedule, "ok", "", {}, mean, time="", ratios=ratios)


RECORDS = [record(size, *values) for size in SIZES for values in itertools.product(*CHOICES.values())]


@pytest.fixture(scope="module")
def learned() -> Heuristic:
    (only,) = learn(RECORDS)
    return only


def test_it_finds_what_is_best_for_a_shape_it_has_not_seen(learned: Heuristic) -> None:
    schedules, foreseen = learned.choose(linear(4096), SPACE, 2)
    assert schedules == {1: {"tile": 2, "nr": 8, "idle": 0}, 17: {"tile": 8, "nr": 8, "idle": 0}}
    assert foreseen == pytest.approx(0.9 * 2**-0.4, rel=0.05)
    assert learned.choose(linear(90), SPACE, 2)[0] == {1: {"tile": 2, "nr": 8, "idle": 0}}


def test_the_space_has_the_last_word(learned: Heuristic) -> None:
    narrow = replace(SPACE, rules=(lambda schedule: "too narrow" if schedule["nr"] == 8 else None,))
    assert learned.choose(linear(90), narrow, 2)[0] == {1: {"tile": 2, "nr": 16, "idle": 0}}
    small = replace(SPACE, choices={**CHOICES, "tile": (1,)})
    assert learned.choose(linear(90), small, 2)[0][1]["tile"] == 1


def test_it_says_what_it_comes_from(learned: Heuristic) -> None:
    assert (learned.kind, learned.dtype, learned.isa, learned.generator) == (
        "linear",
        "f32",
        HERE.isa,
        "00ff",
    )
    assert (learned.records, learned.shapes) == (len(RECORDS), len(SIZES))
    assert learn(RECORDS[1:])[0].digest != learned.digest


def test_it_is_judged_by_shapes_unlike_those_it_learned_from(learned: Heuristic) -> None:
    assert learned.judged == len(SIZES)
    assert learned.sound
    close = [record(size, tile, 8, 0) for size in (64, 80, 100, 128) for tile in CHOICES["tile"]]
    assert learn(close)[0].judged == 0
    assert not learn(close)[0].sound


def test_shapes_that_have_nothing_in_common_make_it_unsound() -> None:
    """The best tile of each size is the worst of the others."""
    best = dict(zip(SIZES, (1, 2, 4, 8, 1, 2)))

    def odd(each: Record) -> Record:
        far = 1.5 if each.schedule["tile"] != best[each.kernel["k"]] else 0.9
        return replace(each, ratios={1: far, 17: far}, ratio=far)

    (found,) = learn(map(odd, RECORDS))
    assert found.judged == len(SIZES)
    assert not found.sound


def test_equal_records_in_any_order_give_equal_bytes(tmp_path: Path, learned: Heuristic) -> None:
    for name, records in (("one", RECORDS), ("other", [*reversed(RECORDS), *RECORDS])):
        heuristic.write(tmp_path / name, learn(records))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert heuristic.read(tmp_path / "one") == [learned]


def test_only_what_was_timed_counts() -> None:
    assert learn(replace(each, status="wrong") for each in RECORDS) == []
    assert learn(each for each in RECORDS if each.kernel["k"] < 1024) == []  # two shapes


def test_machines_and_profiles_that_differ_have_trees_of_their_own() -> None:
    other = replace(HERE, isa="x86-64-v4")
    found = learn([*RECORDS, *(replace(each, fingerprint=other) for each in RECORDS)])
    assert [each.isa for each in found] == ["x86-64-v3", "x86-64-v4"]
    found = learn([*RECORDS, *(replace(each, profile="trace:00ff") for each in RECORDS)])
    assert [each.profile for each in found] == ["standard", "trace:00ff"]


def test_learning_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.tree", None)
    with pytest.raises(CannotLearn, match=r"pip install 'moec\[learn\]'"):
        learn(RECORDS)


def test_reading_needs_no_learning(
    tmp_path: Path, learned: Heuristic, monkeypatch: pytest.MonkeyPatch
) -> None:
    heuristic.write(tmp_path / "file", [learned])
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert heuristic.read(tmp_path / "file")[0].choose(linear(90), SPACE, 2)[0][1]["tile"] == 2
    assert heuristic.read(tmp_path / "none") == []


def broken(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The data with another value at a path, or without it."""
    *parents, last = path.split(".")
    node: Any = data
    for parent in parents:
        node = node[int(parent) if parent.isdigit() else parent]
    node[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("schema", 2, "schema 2, this moec reads 1"),
        ("heuristics", {}, "heuristics is dict, expected list"),
        ("heuristics.0.kind", 3, "kind is int, expected str"),
        ("heuristics.0.judged", "3", "judged is str, expected int"),
        ("heuristics.0.ratio", 0.0, "ratio or worst is not positive"),
        ("heuristics.0.knobs", ["tile"], "asks about feature"),
        ("heuristics.0.tree", [], "tree is list, expected dict"),
        ("heuristics.0.tree.value", [0.0], "the tree's columns are not of one length"),
        ("heuristics.0.tree.left", "left", "left is str"),
        ("heuristics.0.tree.threshold", ["x"], "threshold holds another type than float"),
    ],
)
def test_a_file_with_something_else_in_it_is_refused(
    tmp_path: Path, learned: Heuristic, path: str, value: Any, why: str
) -> None:
    file = tmp_path / "learned.json"
    heuristic.write(file, [learned])
    file.write_text(json.dumps(broken(json.loads(file.read_text()), path, value)))
    with pytest.raises(BadHeuristics, match=why):
        heuristic.read(file)


def test_a_tree_that_would_never_end_is_refused(tmp_path: Path, learned: Heuristic) -> None:
    heuristic.write(tmp_path / "file", [learned])
    data = json.loads((tmp_path / "file").read_text())
    data["heuristics"][0]["tree"]["left"][0] = 0
    (tmp_path / "file").write_text(json.dumps(data))
    with pytest.raises(BadHeuristics, match="node 0 goes to"):
        heuristic.read(tmp_path / "file")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": NaN}', "\x80"])
def test_what_is_no_file_of_heuristics_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadHeuristics, match="delete it, or write it anew with `moec log learn`"):
        heuristic.read(tmp_path / "file")
