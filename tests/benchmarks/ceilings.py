"""What this machine does at most, measured: bytes read, float32 and int8 operations, per second."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from moec.targets.base import CannotBuild
from moec.targets.native import find_compiler

from .absent import Absent

SOURCE = Path(__file__).with_name("ceilings.cc")
READ_BYTES = 256 << 20  # of each thread: far more than any cache holds
ROUNDS = 1 << 20
TIMES = 25


@dataclass(frozen=True)
class Ceilings:
    """The best of several tries with all threads together, per second.

    int8_operations: in vectors; matrix_operations: int8 in matrices, 0 where there are none (AMX).
    """

    threads: int
    read_bytes: float
    float_operations: float
    int8_operations: float
    matrix_operations: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.threads} threads: read {self.read_bytes / 1e9:.1f} GB/s, "
            f"float32 {self.float_operations / 1e9:.0f} GFLOP/s, int8 {self.int8_operations / 1e9:.0f} GOP/s"
            + (f", in matrices {self.matrix_operations / 1e9:.0f}" if self.matrix_operations else "")
        )


def ceilings(threads: int, build: Path) -> Ceilings:
    """Measured now, in less than a second. build: a folder for the compiled loops. Raises Absent."""
    loops, places = library(build), memory(threads)
    with ThreadPoolExecutor(threads) as pool:

        def best(work: Callable[[int], float]) -> float:
            """Work of all threads over the time until the last is done."""
            return max(rate(pool, work, threads) for _ in range(TIMES))

        return Ceilings(
            threads,
            best(lambda thread: read(loops, places[thread])),
            best(lambda _: float(loops.multiply_floats(ROUNDS))),
            best(lambda _: float(loops.multiply_bytes(ROUNDS))),
            best(lambda _: float(loops.multiply_matrices(ROUNDS >> 4))) if loops.has_matrices() else 0.0,
        )


def rate(pool: ThreadPoolExecutor, work: Callable[[int], float], threads: int) -> float:
    """Work per second of one try, each thread on a processor of its own; the loops let go of Python's lock.

    Left to itself, a thread that is woken stays with its waker: two of them did 190 to 244 of 366 GFLOP/s.
    """
    allowed = sorted(os.sched_getaffinity(0))

    def placed(thread: int) -> float:
        os.sched_setaffinity(0, {allowed[thread % len(allowed)]})
        return work(thread)

    start = time.perf_counter()
    done = sum(pool.map(placed, range(threads)))
    return done / (time.perf_counter() - start)


def read(loops: Any, place: Any) -> float:
    """Bytes read, all of the array."""
    loops.read_all(ctypes.c_void_p(place.ctypes.data), ctypes.c_size_t(place.nbytes))
    return float(place.nbytes)


@cache
def memory(threads: int) -> list[Any]:
    """An array for each thread that starts at a page and is all there."""
    memories = [np.ones(READ_BYTES + 4096, np.uint8) for _ in range(threads)]
    return [each[-each.ctypes.data % 4096 :][:READ_BYTES] for each in memories]


@cache
def library(build: Path) -> Any:
    """The loops, compiled for exactly this machine."""
    out = build / "ceilings.so"
    try:
        compiler = [word for word in find_compiler() if not word.startswith(("-march=", "-mcpu="))]
    except CannotBuild as error:
        raise Absent(str(error)) from None
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *compiler,
        "-O2",
        "-std=c++17",
        "-march=native",
        "-shared",
        "-fPIC",
        "-o",
        str(out),
        str(SOURCE),
    ]
    subprocess.run(command, check=True)
    loops = ctypes.CDLL(str(out.absolute()))
    for name in ("multiply_floats", "multiply_bytes", "multiply_matrices"):
        getattr(loops, name).argtypes, getattr(loops, name).restype = (ctypes.c_size_t,), ctypes.c_size_t
    return loops
