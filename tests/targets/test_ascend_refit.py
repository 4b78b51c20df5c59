"""The timeline's guesses refitted to times in a tuning log, as an NPU would leave them there."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from command import moec, printed, refused

from moec.compiler.refit_command import some, spread
from moec.targets.ascend import refit, refitted, soc, space, timeline
from moec.targets.ascend.device import Device, calls
from moec.targets.ascend.hivm.constants import GUESSED
from moec.targets.ascend.target import target
from moec.targets.base import CannotBuild, Kernel, Took
from moec.targets.cases_bf16 import CASES
from moec.targets.sample import draws
from moec.tuning.fingerprint import of_target
from moec.tuning.log import Log
from moec.tuning.record import Record

B3 = soc.SOCS[0]
MLA = Kernel("mla_decode", (("heads", 16), ("latent", 512), ("rope", 64)), (("scale", 0.1),), "f32+bf16")
NORM = Kernel("rms_norm", (("n", 2048), ("width", 2048), ("start", 0)), (("eps", 1e-6),), "f32")
MADE_WITH = replace(timeline.PUBLISHED, copy_latency_us=0.9, cross_us=0.4, scalar_ub_us=0.06)


def schedules(kernel: Kernel) -> list[Any]:
    """The default and its neighbours."""
    found = space.space(kernel, B3)
    first = dict(found.default)
    others = [{**first, knob: value} for knob, values in found.choices.items() for value in values]
    return [first, *[each for each in others if each != first and not found.objection(each)][:2]]


def logged(path: Path, points: dict[Kernel, tuple[str, ...]], cpu: str) -> Log:
    """Times that are simulated with other constants, as if a device had taken them."""
    log, place = Log(path), of_target(target("910B3"), 1, cpu)
    for kernel, names in points.items():
        asked = calls(kernel, draws(kernel, CASES[kernel.kind], ""))
        for schedule in schedules(kernel):
            times = {
                name: timeline.seconds(kernel, schedule, B3, asked[name], MADE_WITH).us * 1e-6
                for name in names
            }
            samples = {name: [us * 0.98, us, us * 1.03] for name, us in times.items()}
            log.append(Record(kernel, place.of(kernel), schedule, "ok", "", samples, 1.0))
    return log


@pytest.fixture
def measured(ascend_toolchain: object, tmp_path: Path) -> Log:
    points = {MLA: ("m=1 decode", "m=16 decode"), NORM: ("m=1", "m=64", "m=1024")}
    return logged(tmp_path / "log.jsonl", points, "Ascend910B3")


def test_constants_are_found_in_a_log_and_used(
    measured: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "constants.json"
    (found,) = printed("log", "refit", "--log", measured.path, "-o", out)
    assert (found["isa"], found["calls"], found["left_out"]) == ("Ascend910B3", 15, 0)
    assert set(found["constants"]) == set(GUESSED)
    for name, wanted in (("copy_latency_us", 0.9), ("cross_us", 0.4), ("scalar_ub_us", 0.06)):
        before, after = found["constants"][name]
        assert before == getattr(timeline.PUBLISHED, name)
        assert after == pytest.approx(wanted, rel=0.25), name
    assert found["off"][0] > 1.1 > 1.02 > found["off"][1] >= 1
    assert found["misranked"][1] <= found["misranked"][0]
    assert found["slower"][1] <= found["slower"][0]
    monkeypatch.setenv(refitted.SETTING, str(out))
    machine = target("910B3")
    assert re.fullmatch("simulated Ascend910B3 with constants [0-9a-f]{8}", machine.processor)
    assert machine.device(1)[1]["constants"] == {name: each[1] for name, each in found["constants"].items()}
    (published, fitted) = (
        Device(**options).bench(MLA, {1: schedules(MLA)[0]}).time("m=16 decode") * 1e6
        for options in ({"soc": "Ascend910B3"}, machine.device(1)[1])
    )
    (took,) = (record.samples["m=16 decode"][1] * 1e6 for record in [*measured][:1])
    assert abs(fitted / took - 1) < 0.02 < 0.05 < abs(published / took - 1)
    assert "is there already" in refused("log", "refit", "--log", measured.path, "-o", out)
    told = moec("log", "refit", "--log", measured.path, "--kernel", "rms_norm").output
    assert "Ascend910B3, 9 calls" in told
    assert "copy_latency_us" in told


def test_what_was_simulated_or_written_by_other_sources_is_not_fitted_to(
    ascend_toolchain: object, tmp_path: Path
) -> None:
    log = logged(tmp_path / "log.jsonl", {NORM: ("m=1",)}, "simulated Ascend910B3")
    for record in [*log]:
        old = replace(record.fingerprint, cpu="Ascend910B3", generator="of old sources")
        log.append(replace(record, fingerprint=old))
    assert "no times that a device took by these sources" in refused("log", "refit", "--log", log.path)


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{}", '{"constants": 1}', '{"constants": {"l2_b_us": 1}}', '{"constants": {"flag_us": 0}}'],
)
def test_a_file_of_something_else_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text(text)
    monkeypatch.setenv(refitted.SETTING, str(tmp_path / "file"))
    with pytest.raises(CannotBuild, match="file"):
        refitted.constants()
    monkeypatch.setenv(refitted.SETTING, str(tmp_path / "absent"))
    with pytest.raises(CannotBuild, match=r"absent, which has no constants"):
        refitted.constants()


def test_schedules_are_ranked_call_by_call() -> None:
    seconds = {("m=1", 1): 1.0, ("m=1", 2): 2.0, ("m=1", 4): 4.0, ("m=64", 1): 3.0}
    times = [Took(NORM, {"rows": rows}, point, each) for (point, rows), each in seconds.items()]
    places = refit.by_call(times)
    assert places == [[0, 1, 2]]
    right, off = np.log([1.0, 1.0, 1.0, 9.0]), np.log([8.0, 1.0, 1.0, 1.0])
    assert refit.misranked(times, right, places) == 0
    assert refit.slower(times, right, places) == 1
    assert refit.misranked(times, off, places) == pytest.approx(2 / 3)
    assert refit.slower(times, off, places) == pytest.approx(2)
    assert refit.off_by(off) == pytest.approx(8 ** (1 / 4))


def test_of_many_times_some_are_taken_from_all_over() -> None:
    times = [Took(NORM, {"rows": i}, f"m={m}", 1.0 + i) for m in range(1, 41) for i in range(20)]
    found = some([*times, Took(MLA, {}, "m=1 decode", 1.0)], 64)
    points = [took.point for took in found]
    assert len(found) <= 64
    assert len(set(points)) == 8
    assert min(map(points.count, points)) > 1
    assert [*spread(range(10), 3)] == [0, 4, 8]
    assert median(took.seconds for took in found) > 5
