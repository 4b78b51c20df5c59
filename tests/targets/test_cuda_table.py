"""Launches as C++: conditions, sizes, scratch memory and tensor maps, and bundles as bytes."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from moec.targets import native
from moec.targets.base import Emitted, Kernel
from moec.targets.cuda import build, sm
from moec.targets.cuda.bundle import Argument, Bundle, Launch, Resources, TensorMap, from_bytes
from moec.targets.cuda.table import images, table

SM = sm.named("sm_90a")
MAP = TensorMap(9, ("64", "m"), ("128",), ("64", "16"), ("1", "1"), 0, 3, 2, 0)
FEW = Launch(
    image=0,
    entry="few",
    grid=("((m + 15) / 16)", "1", "1"),
    block=("128", "1", "1"),
    shared="4096",
    arguments=(Argument("x0", MAP), Argument("s0"), Argument("y0"), Argument(type="float", value="eps")),
    scratch={"s0": "m * 4"},
    when="m <= 16",
    overlap=True,
)
MANY = replace(FEW, entry="many", when="", overlap=False, scratch={"s0": "m * 8"}, image=1)
BUNDLE = Bundle({1: [FEW, MANY]}, [b"one", b"another"], [Resources(32, 0, 0), Resources(64, 4, 1024)])
KERNEL = Kernel("rms_norm", (("n", 64), ("width", 64), ("start", 0)), (("eps", 1e-5),))
EMITTED = Emitted(KERNEL, {1: {"threads": 128}}, BUNDLE.to_bytes(), (("few", "many"),))


def lines() -> list[str]:
    return [line.strip() for line in table([EMITTED], SM).splitlines()]


def test_a_bundle_survives_its_bytes() -> None:
    assert from_bytes(BUNDLE.to_bytes()) == BUNDLE


def test_a_step_is_left_out_where_its_condition_does_not_hold() -> None:
    first, second = (lines().index(f"static void step0_1_{number}(Run& run) {{") for number in (0, 1))
    assert "if (!(m <= 16)) return;" in lines()[first:second]
    assert "if (!(m <= 16)) return;" not in lines()[second:]


def test_sizes_reals_maps_and_overlap_are_spelled_out() -> None:
    text = lines()
    assert "const int64_t m = run.size(kM);" in text
    assert (
        "const TensorMap a0 = run.map(run.x(0), {9, 2, {64, m}, {128}, {64, 16}, {1, 1}, 0, 3, 2, 0});"
        in text
    )
    assert "float a3 = float(run.real(0));" in text
    launched = [line for line in text if line.startswith("run.launch(")]
    assert [", true, arguments" in line for line in launched] == [True, False]


def test_scratch_is_what_the_steps_that_run_need() -> None:
    (sized,) = [line for line in lines() if line.startswith("if (i == 0) return")]
    assert "m * 8" in sized
    assert "m <= 16" in sized


def test_it_compiles(tmp_path: Path) -> None:
    (tmp_path / "table.cc").write_text(table([EMITTED], SM))
    for name, content in images([EMITTED]).items():
        (tmp_path / name).write_bytes(content)
    command = [*native.find_compiler(), *native.COMPILE, "-Werror", *native.including(build.RUNTIME)]
    for file in ("table.cc", "images.S"):
        subprocess.run([*command, "-c", file, "-o", "out.o"], cwd=tmp_path, check=True)
