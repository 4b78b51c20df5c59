"""CUDA code without a GPU: every kind compiles for the architecture, within its limits, into a library."""

from __future__ import annotations

import ctypes
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from layers import apart, decoder

from moec.compiler import library
from moec.compiler.ops.region import REGION
from moec.compiler.pipeline import run
from moec.passes.caches import NarrowCaches
from moec.passes.pages import PageCaches
from moec.passes.precision import ALL_BF16, Precision
from moec.targets.base import CannotBuild, Emitted, Kernel, Schedule
from moec.targets.bf16 import FORMATS, PASSES, kernel_of
from moec.targets.cuda import build, sm
from moec.targets.cuda.bundle import from_bytes
from moec.targets.cuda.space import space
from moec.targets.cuda.table import table
from moec.targets.cuda.target import Target
from moec.targets.paged import PAGE

SM = sm.named("sm_90a")
TARGET = Target(SM)
GRAPHS = [
    run(graph, (NarrowCaches(), *paged, *PASSES, Precision(ALL_BF16, FORMATS, "bf16")))[0]
    for graph, *paged in (
        (decoder(2),),
        (decoder(2, latent=False),),
        (decoder(2), PageCaches(PAGE)),
        (apart(),),
    )
]
FOUND = sorted({kernel_of(node) for graph in GRAPHS for node in graph if node.op is REGION}, key=str)
KINDS = {kernel.kind: kernel for kernel in FOUND}
# What tiles of the tensor cores need: rows of whole 16 bytes, and some of them.
WIDE = [
    Kernel("linear_swiglu", (("k", 256), ("n", 512), ("wide", 0)), (), "bf16"),
    Kernel("grouped_swiglu", (("k", 256), ("n", 256), ("experts", 8), ("share", 2)), (), "bf16"),
    Kernel("grouped_combine", (("k", 64), ("n", 96), ("experts", 8), ("share", 2), ("base", 0)), (), "bf16"),
]
THREADS, REGISTERS = 1024, 255  # of a block, and of a thread, at most
SPILLED = 16  # bytes of a thread, at most


def admitted(kernel: Kernel) -> Iterator[Schedule]:
    """Schedules drawn from the space, as far as its rules let them pass; the same at every run."""
    known, source = space(kernel, SM), random.Random(str(kernel))
    for _ in range(4000):
        schedule = {knob: source.choice(list(values)) for knob, values in known.choices.items()}
        if known.objection(schedule) is None:
            yield schedule


def jobs() -> dict[tuple[Kernel, str], Schedule]:
    """The default of each kind for one token; of some also that for many, blocks that stay, and one drawn."""
    ones = {(kernel, "default"): space(kernel, SM).defaults[1] for kernel in (*KINDS.values(), *WIDE)}
    many = {(kernel, "many"): [*space(kernel, SM).defaults.values()][-1] for kernel in WIDE}
    stays = {(WIDE[0], "stays"): {**space(WIDE[0], SM).default, "v_stay": 1}}
    return {**ones, **many, **stays, **{(kernel, "drawn"): next(admitted(kernel)) for kernel in WIDE}}


JOBS = jobs()


@pytest.fixture(scope="module")
def emitted(home: Path) -> dict[tuple[Kernel, str], Emitted]:
    """All of them compiled, in processes of their own: TileLang brings another TVM than the CPU's."""
    try:
        made = library.emit_all(TARGET, [(kernel, {1: schedule}) for (kernel, _), schedule in JOBS.items()])
    except CannotBuild as cannot:
        if "nvcc is neither" in str(cannot):
            pytest.skip(str(cannot))
        raise
    return dict(zip(JOBS, made))


@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{job[0].kind} {job[1]} k{dict(job[0].dims).get('k')}")
def test_it_compiles_within_the_limits(emitted: Mapping[tuple[Kernel, str], Emitted], job: Any) -> None:
    """What every launch asks for is there on the GPU, and defaults spill next to nothing."""
    bundle = from_bytes(emitted[job].object_code)
    for launch in bundle.launches[1]:
        needs = bundle.resources[launch.image]
        threads = int(launch.block[0]) * int(launch.block[1]) * int(launch.block[2])
        assert 0 < threads <= THREADS
        assert needs.spilled <= SPILLED or job[1] == "drawn", launch.entry
        assert 0 < needs.registers <= REGISTERS
        assert needs.registers * threads <= SM.registers, launch.entry
        assert int(launch.shared) + needs.shared <= SM.shared_bytes, launch.entry


@pytest.mark.parametrize("kernel", FOUND, ids=str)
def test_defaults_are_admitted(kernel: Kernel) -> None:
    known = space(kernel, SM)
    assert known.objection_to(known.defaults) is None


@pytest.mark.parametrize("kernel", KINDS.values(), ids=lambda kernel: kernel.kind)
def test_what_is_outside_the_space_is_named(kernel: Kernel) -> None:
    known = space(kernel, SM)
    for knob in known.choices:
        assert knob in (known.objection({**known.default, knob: -1}) or "")


def test_launches_are_spelled_out_in_the_table(
    emitted: Mapping[tuple[Kernel, str], Emitted], golden: Callable[[str], None]
) -> None:
    golden(table([emitted[WIDE[1], "many"]], SM))


def test_kernels_become_one_library(emitted: Mapping[tuple[Kernel, str], Emitted], tmp_path: Path) -> None:
    made = build.link([emitted[kernel, "default"] for kernel in KINDS.values()], tmp_path / "lib.so", SM)
    loaded = ctypes.CDLL(str(made))
    assert all(hasattr(loaded, name) for name in ("CreateEpFactories", "ReleaseEpFactory", "moec_launch"))


@pytest.mark.parametrize(
    "kernel", [*KINDS.values(), *WIDE], ids=lambda each: f"{each.kind}-{'tiles' if each in WIDE else 'tiny'}"
)
def test_the_source(sources: Mapping[Kernel, str], golden: Callable[[str], None], kernel: Kernel) -> None:
    golden(sources[kernel])


@pytest.fixture(scope="module")
def sources() -> dict[Kernel, str]:
    """The CUDA C++ of each default, written in a process that has no other TVM."""
    kernels = [*KINDS.values(), *WIDE]
    request = pickle.dumps([(kernel, space(kernel, SM).defaults[1]) for kernel in kernels])
    program = (
        "import pickle, sys\n"
        "from moec.targets.cuda import emit, sm\n"
        "asked = pickle.load(sys.stdin.buffer)\n"
        "made = [emit.sources(*each, sm.named('sm_90a')) for each in asked]\n"
        "sys.stdout.buffer.write(b'--- sources' + pickle.dumps(made))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input=request, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    made = pickle.loads(done.stdout.rpartition(b"--- sources")[2])
    return {kernel: "\n".join(own) for kernel, own in zip(kernels, made)}
