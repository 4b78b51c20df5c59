"""What this machine does at most: reading memory, float32 and int8 operations."""

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
from statistics import median
from typing import Any

import numpy as np

from moec.targets.base import CannotBuild
from moec.targets.native import find_compiler

from .absent import Absent

READ, FLOATS, INT8 = "read bandwidth", "float32 peak", "int8 peak"
MATRICES = "int8 peak in matrices"
UNITS = {READ: "GB/s", FLOATS: "GFLOP/s"}

SOURCE = Path(__file__).with_name("ceilings.cc")
READ_BYTES = 256 << 20  # of each thread: far more than any cache holds
# Streams, and bytes by which lines are asked for early. A Xeon (Emerald Rapids) reads fastest the first way,
# a Zen 3 the second: 29 GB/s with two cores, where the first way gives 24.6.
READ_WAYS = ((8, 0), (4, 512))
ROUNDS = 1 << 22
ROUNDS_OF_MATRICES = 1 << 18


@dataclass(frozen=True)
class Ceiling:
    """Work that goes as fast as the machine can, all threads together: bytes or operations of a call."""

    work: float
    threads: int
    of_thread: Callable[[int], object]
    pool: ThreadPoolExecutor

    def __call__(self) -> None:
        """Do it, some 10 ms, each thread on a processor of its own; the loops let go of Python's lock.

        Left to itself, a thread that is woken stays with its waker: two of them did 190 to 244 of 366
        GFLOP/s.
        """
        allowed = sorted(os.sched_getaffinity(0))

        def placed(thread: int) -> None:
            os.sched_setaffinity(0, {allowed[thread % len(allowed)]})
            self.of_thread(thread)

        for _ in self.pool.map(placed, range(self.threads)):
            pass

    def rate(self) -> float:
        """Work per second now, the median of a few calls."""
        times = []
        for _ in range(5):
            start = time.perf_counter()
            self()
            times.append(time.perf_counter() - start)
        return self.work / median(times)


@cache
def ceilings(threads: int, build: Path) -> dict[str, Ceiling]:
    """By name; MATRICES only where bytes are multiplied so (AMX). build: a folder for the compiled loops.

    Raises Absent.
    """
    loops, places, pool = library(build), memory(threads), ThreadPoolExecutor(threads)

    def repeated(name: str, rounds: int) -> Ceiling:
        """A loop that says how many operations it has done."""
        loop = getattr(loops, name)
        return Ceiling(threads * rounds * float(loop(1)), threads, lambda _: loop(rounds), pool)

    def reading(way: tuple[int, int]) -> Ceiling:
        """Each thread its array, in one of READ_WAYS."""
        return Ceiling(
            float(threads * READ_BYTES), threads, lambda thread: read(loops, places[thread], way), pool
        )

    found = {
        READ: max(map(reading, READ_WAYS), key=Ceiling.rate),
        FLOATS: repeated("multiply_floats", ROUNDS),
        INT8: repeated("multiply_bytes", ROUNDS),
    }
    if loops.has_matrices():
        found[MATRICES] = repeated("multiply_matrices", ROUNDS_OF_MATRICES)
    return found


def read(loops: Any, place: Any, way: tuple[int, int]) -> None:
    """All of the array."""
    loops.read_all(ctypes.c_void_p(place.ctypes.data), *map(ctypes.c_size_t, (place.nbytes, *way)))


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
