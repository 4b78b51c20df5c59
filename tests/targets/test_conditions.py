"""Kernels timed as a model calls them: weights cold or warm, tokens that choose experts evenly or not."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moec.compiler.conditions import Conditions, conditions
from moec.compiler.ir import Graph
from moec.compiler.rooms import target_of
from moec.targets.base import Kernel
from moec.targets.cpu import device as cpu_device
from moec.targets.cpu import isa, memory
from moec.targets.cpu.device import Device
from moec.targets.cpu.sample import FEW_ROWS, Sample
from moec.targets.cpu.space import space
from moec.targets.routing import BadTrace, Trace, even, read, zipf
from moec.tuning.judge import Worker

LINEAR = Kernel("linear", (("k", 64), ("n", 96)))
GROUPED = Kernel("grouped_swiglu", (("k", 32), ("n", 64), ("experts", 10), ("share", 3)))


def trace(path: Path, rows: Any) -> Path:
    np.save(path, np.array(rows))
    return path


@pytest.mark.parametrize("draw", [even, zipf])
def test_tokens_choose_different_experts(draw: Any) -> None:
    ids = draw(np.random.default_rng(0), 500, 16, 4)
    assert ids.shape == (500, 4)
    assert all(len(set(row)) == 4 for row in ids.tolist())
    shares = np.sort(np.bincount(ids.ravel(), minlength=16))[::-1] / ids.size
    assert shares[0] < 0.1 if draw is even else shares[0] > 0.15


def test_a_recording_is_drawn_from_with_the_shared_experts(tmp_path: Path) -> None:
    found = read(trace(tmp_path / "ids.npy", [[0, 5], [5, 8], [8, 1]]))
    assert (found.suits(10, 3), found.suits(9, 3), found.suits(10, 1)) == (True, False, False)
    rows = found.draw(np.random.default_rng(0), 50, 10, 3).tolist()
    assert {tuple(row) for row in rows} == {(0, 5, 9), (5, 8, 9), (8, 1, 9)}
    fewer = found.draw(np.random.default_rng(0), 50, 5, 3)
    assert fewer.max() == 4
    assert all(len(set(row)) == 3 for row in fewer.tolist()), "folded onto fewer experts they still differ"


def test_lines_and_arrays_of_the_same_ids_are_one_profile(tmp_path: Path) -> None:
    (tmp_path / "ids.jsonl").write_text("[0, 5]\n\n[5, 8]\n")
    lines, array = (
        read(tmp_path / "ids.jsonl"),
        read(trace(tmp_path / "ids.npy", np.array([[0, 5], [5, 8]], "u1"))),
    )
    assert lines.name == array.name == Trace(np.array([[0, 5], [5, 8]])).name
    assert lines.name.startswith("trace:")
    assert len(lines.name) == len("trace:") + 16
    assert Trace(np.array([[0, 5], [8, 5]])).name != lines.name


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("ids.npy", b"no array", "no .npy file of numbers"),
        ("ids.jsonl", b"[0, 1]\n[2]\n", "ids.jsonl:2: .* as the others"),
        ("ids.jsonl", b"[0, 1.5]\n", "ids.jsonl:1"),
        ("ids.jsonl", b"[0, true]\n", "ids.jsonl:1"),
        ("ids.jsonl", b"[0, -1]\n", "ids.jsonl:1"),
        ("ids.jsonl", b"[" * 100_000, "ids.jsonl:1"),
        ("ids.jsonl", b"\n", "expected integers"),
        ("ids.jsonl", b"[3, 3]\n", "token 0 chose .3, 3."),
    ],
)
def test_a_file_that_is_no_recording(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadTrace, match=why):
        read(tmp_path / name)


def test_arrays_of_another_kind_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}, []], object), allow_pickle=True)
    with pytest.raises(BadTrace, match="pickle"):
        read(tmp_path / "objects.npy")
    for name, rows, why in (
        ("floats", [[0.0, 1.0]], "float64"),
        ("flat", [0, 1], r"\[2\]"),
        ("less", [[-1, 0]], "-1"),
    ):
        with pytest.raises(BadTrace, match=why):
            read(trace(tmp_path / f"{name}.npy", rows))
    with pytest.raises(BadTrace, match="No such file"):
        read(tmp_path / "absent.npy")


def test_the_points_name_the_routing(tmp_path: Path) -> None:
    made = Device("x86-64-v3", 1, trace=str(trace(tmp_path / "ids.npy", [[0, 5], [5, 8]])))
    assert list(Device("x86-64-v3").draws(LINEAR)) == [""]
    assert list(made.draws(LINEAR)) == [""]
    assert list(Device("x86-64-v3").draws(GROUPED)) == ["", "zipf"]
    assert list(made.draws(GROUPED)) == ["trace"]


def test_grouped_kernels_are_timed_with_skewed_routing_too() -> None:
    mine = os.sched_getaffinity(0)
    device = Device(isa.host().name, len(mine), cold=False)
    bench = device.bench(GROUPED, space(GROUPED, isa.host()).defaults)
    assert bench.points[:3] == ["m=1", "m=3", "m=3 zipf"]
    assert all(0 < bench.time(point) < 1 for point in ("m=1", "m=8", "m=8 zipf"))
    assert os.sched_getaffinity(0) == mine, "to be on one processor is for a timing only"


def test_threads_that_have_all_processors_have_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_device, "processors", lambda: [2, 3, 7])
    assert [cpu_device.places(threads) for threads in (1, 2, 3, 4)] == ["", "", "4;8", ""]


@pytest.mark.parametrize(("rows", "kernel"), [(1, LINEAR), (1, GROUPED), (8, GROUPED), (FEW_ROWS, LINEAR)])
@pytest.mark.parametrize("cold", [True, False])
def test_so_many_weights_are_read_between_two_uses(
    monkeypatch: pytest.MonkeyPatch, rows: int, kernel: Kernel, cold: bool
) -> None:
    sample, schedule = Sample(kernel), space(kernel, isa.V3).default
    size = sum(part.nbytes for parts in sample.packed(schedule)[0].values() for part in parts)
    monkeypatch.setattr(memory, "cache_sizes", lambda: {2: size, 3: 50 * size})
    sizes = dict(kernel.dims)
    read = size * min(1, rows * sizes.get("share", 1) / sizes.get("experts", 1))
    rounds = sample.rounds(schedule, rows, cold, 1)
    calls = len(rounds[0].weights)
    wanted = memory.between_uses(cold, 1)
    assert wanted == (100 if cold else 2) * size
    assert (len(rounds) - 1) * calls * read >= min(wanted, 63 * calls * read)
    copies = len({id(weights) for round in rounds for weights in round.weights})
    turned = {round.turned for round in rounds}
    assert copies * len(turned) >= len(rounds) * min(calls, math.ceil(calls * read / size)), (
        "no round is another's"
    )


def test_many_rows_need_no_copies() -> None:
    rounds = Sample(LINEAR).rounds(space(LINEAR, isa.V3).default, 512, True, 1)
    assert [len(round.weights) for round in rounds] == [1]


def test_copies_are_bounded_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "most_copies", lambda size: 3)
    rounds = Sample(LINEAR).rounds(space(LINEAR, isa.V3).default, 1, True, 1)
    assert len({id(weights) for round in rounds for weights in round.weights}) <= max(
        3, len(rounds[0].weights)
    )


def test_cache_sizes_are_the_systems(tmp_path: Path) -> None:
    for index, (kind, level, size) in enumerate(
        [("Data", 1, "32K"), ("Instruction", 1, "64K"), ("Unified", 3, "2M")]
    ):
        (folder := tmp_path / f"index{index}").mkdir()
        for name, content in (("type", kind), ("level", level), ("size", size)):
            (folder / name).write_text(f"{content}\n")
    assert memory.cache_sizes(tmp_path) == {1: 32 << 10, 3: 2 << 20}
    assert memory.cache_sizes(tmp_path / "none") == memory.UNKNOWN


def test_conditions_are_in_the_key(tmp_path: Path) -> None:
    machine, path = target_of("cpu", None), trace(tmp_path / "ids.npy", [[0, 5], [5, 8]])
    found = conditions(machine, Graph((), ()), [LINEAR, GROUPED], 2, path)
    assert not found.cold, "a model without weights is small"
    assert found.profile(LINEAR) == "standard warm"
    assert found.profile(GROUPED) == f"{read(path).name} warm"
    assert Conditions(machine, 2, cold=True).profile(GROUPED) == "standard"
    assert found.device[1] == {"isa": str(isa.host()), "threads": 2, "cold": False, "trace": str(path)}
    assert machine.is_cold(memory.last_level() + 1)
    assert not machine.is_cold(memory.last_level())


def test_a_recording_of_another_model_is_refused(tmp_path: Path) -> None:
    path = trace(tmp_path / "ids.npy", [[0, 50]])
    with pytest.raises(
        BadTrace, match="up to number 50; this model's kernels choose, with shared experts, 3 of 10"
    ):
        conditions(target_of("cpu", None), Graph((), ()), [LINEAR, GROUPED], 2, path)


def test_a_worker_measures_a_recording(tmp_path: Path) -> None:
    path = trace(tmp_path / "ids.npy", [[0, 5], [5, 8]])
    with Worker(*target_of("cpu", None).device(1, False, str(path))) as judge:
        seen = judge.trial(GROUPED, space(GROUPED, isa.host()).defaults, None)
    assert (seen.status, seen.reason) == ("ok", "")
    assert [*seen.samples][:2] == ["m=1 trace", "m=3 trace"]
