"""The library: what it needs, what it exports, when it refuses, and what a build without tools says."""

from __future__ import annotations

import ctypes
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from moec.compiler.bench import Counter
from moec.targets import native as building
from moec.targets.base import CannotBuild, Emitted, Kernel
from moec.targets.cpu import isa
from moec.targets.cpu.build import RUNTIME, link
from moec.targets.cpu.device import Bench
from moec.targets.cpu.emit import emit
from moec.targets.cpu.space import space
from moec.targets.native import find_compiler, runtime_objects

Build = Callable[..., Bench]
KERNEL = Kernel("linear_swiglu", (("k", 40), ("n", 48)))
BASIC = {"libc.so.6", "libm.so.6", "linux-vdso.so.1", "ld-linux-x86-64.so.2"}

needs_binutils = pytest.mark.skipif(
    not (shutil.which("nm") and shutil.which("readelf")), reason="needs nm and readelf (binutils)"
)


@pytest.fixture(scope="module")
def emitted() -> Emitted:
    return emit(KERNEL, space(KERNEL, isa.V3).defaults, isa.V3)


def symbols(path: Path, *flags: str) -> dict[str, str]:
    """Name -> type letter, as nm prints them."""
    lines = subprocess.run(
        ["nm", *flags, path], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {line.split()[-1]: line.split()[-2] for line in lines}


@needs_binutils
@pytest.mark.parametrize("level", isa.ISAS, ids=str)
def test_objects_need_nothing(level: isa.Isa, tmp_path: Path) -> None:
    made = emit(KERNEL, space(KERNEL, level).defaults, level)
    (tmp_path / "kernel.o").write_bytes(made.object_code)
    found = symbols(tmp_path / "kernel.o")
    assert "U" not in found.values()
    assert {name for name, letter in found.items() if letter == "T"} == {*chain(*made.symbols)}


@needs_binutils
def test_wide_registers_are_used(tmp_path: Path) -> None:
    made = emit(KERNEL, space(KERNEL, isa.V4).defaults, isa.V4)
    (tmp_path / "kernel.o").write_bytes(made.object_code)
    if shutil.which("objdump"):
        code = subprocess.run(["objdump", "-d", tmp_path / "kernel.o"], capture_output=True, text=True).stdout
        assert "zmm" in code


@needs_binutils
def test_the_library_exports_two_functions_and_needs_only_libc(build: Build) -> None:
    library = build(KERNEL, isa.V3).library
    assert set(symbols(library, "-D", "--defined-only")) == {"RegisterCustomOps", "moec_counts"}
    lines = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    needed = {line.split("[")[1].rstrip("]") for line in lines.splitlines() if "(NEEDED)" in line}
    assert needed <= BASIC


def test_kernels_of_several_kinds_share_a_library(tmp_path: Path) -> None:
    kinds = (KERNEL, Kernel("linear", (("k", 9), ("n", 10))), Kernel("linear", (("k", 9), ("n", 11))))
    made = [emit(kernel, space(kernel, isa.V3).defaults, isa.V3) for kernel in kinds]
    library = link(made, tmp_path / "deep" / "library.so", isa.V3)
    onnxruntime.SessionOptions().register_custom_ops_library(str(library))
    assert [path.name for path in library.parent.iterdir()] == ["library.so"]


def test_an_empty_library_is_one(tmp_path: Path) -> None:
    library = link([], tmp_path / "library.so", isa.V3)
    onnxruntime.SessionOptions().register_custom_ops_library(str(library))


def test_counters_say_what_was_read(tmp_path: Path, build: Build) -> None:
    kernel = Kernel("grouped_swiglu", (("k", 16), ("n", 32), ("experts", 4), ("share", 2)))
    bench = build(kernel, isa.V3)
    library = ctypes.CDLL(str(bench.library))
    counter = Counter()
    library.moec_counts(ctypes.byref(counter), ctypes.c_size_t(1))
    calls, before, clock = counter.calls, counter.weight_bytes, counter.nanoseconds
    assert bench.check_feeds(bench.feeds(1)) is None
    assert library.moec_counts(ctypes.byref(counter), ctypes.c_size_t(1)) == 1
    assert (counter.kind, counter.calls - calls) == (b"grouped_swiglu", 1)
    assert counter.weight_bytes - before == 2 * 16 * 32 * 4
    assert 0 < counter.nanoseconds - clock < 1e9


def test_nothing_is_kept_when_the_library_goes(build: Build) -> None:
    """Memory that waits for the next call goes with the last session."""
    bench = build(Kernel("linear", (("k", 8), ("n", 8))), isa.V3)
    feeds = bench.feeds(500_000)
    like = [np.zeros((500_000, 8))]
    sizes = []
    for _ in range(12):
        bench.run(feeds, like)
        sizes.append(resident())
    assert sizes[-1] - sizes[4] < 20 << 20  # the first runs fill what malloc keeps


def resident() -> int:
    """Bytes of memory this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_zig_is_told_by_the_name_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name)
    for chosen, flags in (("/home/zigmund/g++", building.FOR_ANY), ("/opt/zig c++", building.FOR_ZIG)):
        monkeypatch.setenv("CXX", chosen)
        assert find_compiler() == (*chosen.split(), *flags)


def test_a_cpu_that_lacks_something_is_refused(emitted: Emitted, tmp_path: Path) -> None:
    future = replace(isa.V3, name="x86-64-v9", features=(*isa.V3.features, "no_such_feature"))
    library = link([emitted], tmp_path / "library.so", future)
    with pytest.raises(
        Exception, match="built for x86-64-v9 but this CPU lacks no_such_feature; compile again"
    ):
        onnxruntime.SessionOptions().register_custom_ops_library(str(library))


@pytest.mark.parametrize(
    "feature", ["avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "avx2", "abm", "f16c"]
)
def test_features_are_found_as_linux_finds_them(feature: str, tmp_path: Path) -> None:
    library = link([], tmp_path / "library.so", replace(isa.V3, features=(feature,)))
    options = onnxruntime.SessionOptions()
    if feature in isa.cpu_flags():
        options.register_custom_ops_library(str(library))
    else:
        with pytest.raises(Exception, match=f"this CPU lacks {feature}"):
            options.register_custom_ops_library(str(library))


def test_an_old_onnxruntime_is_told(build: Build) -> None:
    told: list[str] = []

    @ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p)
    def create_status(code: int, text: bytes) -> int:
        told.append(text.decode())
        return len(told)

    table = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p))
    name = ctypes.create_string_buffer(b"1.19.2")
    address = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_uint32)
    get_api = address(lambda version: ctypes.addressof(table) if version == 1 else 0)
    get_version = ctypes.CFUNCTYPE(ctypes.c_size_t)(lambda: ctypes.addressof(name))
    base = (ctypes.c_void_p * 2)(*(ctypes.cast(f, ctypes.c_void_p) for f in (get_api, get_version)))
    library = ctypes.CDLL(str(build(KERNEL, isa.V3).library))
    assert library.RegisterCustomOps(None, base)
    assert told == ["moec: these kernels need onnxruntime 1.22 or newer, this is 1.19.2"]


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(building.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        CannotBuild, match=r"no C\+\+ compiler: .* install .* pip install 'moec\[toolchain\]'"
    ):
        find_compiler()


def test_the_ziglang_wheel_is_the_last_resort(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(building.importlib.util, "find_spec", lambda name: name == "ziglang")
    assert find_compiler() == (sys.executable, "-m", "ziglang", "c++", *building.FOR_ZIG)


def test_cxx_is_obeyed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "mine"
    compiler.write_text("#!/bin/sh\necho 'all is wrong' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", f"{compiler} --flag")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert find_compiler() == (str(compiler), "--flag", "-march=x86-64")
    with pytest.raises(CannotBuild, match=r"mine --flag .*failed on the kernel library:\nall is wrong"):
        link([], tmp_path / "library.so", isa.V3)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CannotBuild, match="CXX names 'no-such-compiler', which is not on PATH"):
        find_compiler()


def test_the_runtime_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = find_compiler()
    first = runtime_objects(compiler, RUNTIME)
    times = [path.stat().st_mtime_ns for path in first]
    assert {path.parent for path in first} == {tmp_path / "moec"}
    assert runtime_objects(compiler, RUNTIME) == first
    assert [path.stat().st_mtime_ns for path in first] == times


@pytest.mark.parametrize("level", isa.ISAS, ids=str)
def test_instruction_sets_by_name(level: isa.Isa) -> None:
    assert isa.named(level.name) is level
    with pytest.raises(ValueError, match=f"no instruction set is called 'v9'; there are .*{level}"):
        isa.named("v9")


def test_a_machine_without_any_known_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isa, "cpu_flags", lambda: frozenset({"sse2", "avx"}))
    with pytest.raises(
        ValueError,
        match=r"x86-64-v3 needs .*avx2.*naming one of x86-64-v4-amx, x86-64-v4-vnni, x86-64-v4, x86-64-v3",
    ):
        isa.host()


def test_a_machine_with_avx2_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isa, "cpu_flags", lambda: frozenset(isa.V3.features))
    assert isa.host() is isa.V3
