"""Ascend launches as C++, bundles as bytes, and one real kernel through the whole toolchain."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from moec.targets.ascend import emit as emission
from moec.targets.ascend import finish, soc, vendor
from moec.targets.ascend.bundle import from_bytes
from moec.targets.ascend.emit import emit
from moec.targets.ascend.space import space
from moec.targets.ascend.table import table
from moec.targets.base import CannotBuild, Kernel

from .ascend_bundles import BUNDLE, EMITTED

SOC = soc.SOCS[0]
NORM = Kernel("rms_norm", (("n", 64), ("width", 80), ("start", 16)), (("eps", 1e-6),), "bf16")
SCHEDULE = space(NORM, SOC).default


def test_a_bundle_survives_its_bytes() -> None:
    assert from_bytes(BUNDLE.to_bytes()) == BUNDLE


def test_ascend_launches_are_spelled_out(golden: Callable[[str], None]) -> None:
    golden(table([EMITTED], SOC))


def test_equal_functions_of_several_kernels_are_declared_once() -> None:
    other = replace(EMITTED, kernel=replace(EMITTED.kernel, reals=(("eps", 1e-6),)))
    text = table([EMITTED, other], SOC)
    assert text.count('static Function function_few_1a{"few_1a"') == 1
    assert text.count("run.launch(function_few_1a") == 2


def test_a_kernel_becomes_code_for_both_machines_and_always_the_same() -> None:
    first, second = (emit(NORM, {1: SCHEDULE, 17: SCHEDULE}, SOC) for _ in range(2))
    assert first == second
    bundle = from_bytes(first.object_code)
    (image,) = bundle.images
    assert [[launch.image for launch in steps] for steps in bundle.launches.values()] == [[0], [0]]
    assert first.symbols == ((image.entry,), (image.entry,))
    assert f"func.func @{image.entry}(" in image.linalg.decode()
    assert f"func.func @{image.entry}(" in image.hivm.decode()
    assert image.host.startswith(b"\x7fELF")
    assert image.entry.encode() in image.host
    assert (image.task, image.mixed, image.serial) == ("aiv", False, False)
    assert 0 < image.used["UB"] <= soc.UB
    assert f"--target={SOC.name}" in image.options


def test_another_option_of_the_compiler_makes_another_function() -> None:
    (step,) = emission.steps(NORM, SCHEDULE, SOC)
    plain = emission.lowering()(step, SOC)
    other = emission.named(plain, {"enable-auto-multi-buffer": 0})
    assert other.name != plain.name
    assert other.text == plain.text.replace(plain.name, other.name)
    assert emission.named(plain, {}) == plain


def test_locks_that_do_not_begin_as_zero_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = vendor.planned

    def with_locks(*arguments: object) -> vendor.Plan:
        return replace(planned(*arguments), locks=2, lock_value=7)  # type: ignore[arg-type]

    monkeypatch.setattr(vendor, "planned", with_locks)
    with pytest.raises(CannotBuild, match="rows:rms_norm has locks that begin as 7"):
        emit(NORM, {1: SCHEDULE}, SOC)


def test_every_function_comes_with_its_texts_and_what_is_known_of_it() -> None:
    found = finish.files([EMITTED], SOC, "libmoec_ascend.so", {"triton-ascend": "3.2.0"})
    assert found["ascend/many_2b.linalg.mlir"] == b"linalg of many_2b"
    assert found["ascend/many_2b.hivm.mlir"] == b"hivm of many_2b"
    told = json.loads(found["ascend/many_2b.json"])
    assert (told["soc"], told["cores"], told["workspace_bytes_per_block"]) == (SOC.name, "mix", 512)
    assert told["memory_bytes"] == {"UB": 4096}
    assert [launch["tokens"] for launch in told["launches"]] == ["1-16", "17+"]
    assert told["launches"][0]["arguments"][4] == {"name": "eps", "type": "fp32", "is": "eps"}
    assert told["toolchain"] == {"triton-ascend": "3.2.0"}
    assert told["commands"]["hivmc"][:2] == ["hivmc", "many_2b.hivm.mlir"]
    assert {"ascend/runtime/table.cc", "ascend/runtime/launch.h", "ascend/runtime/kernel.h"} <= set(found)
