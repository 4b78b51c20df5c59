"""How fast an artifact is here: tokens per second, and the bytes behind them."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from .runner import Artifact

READ_BYTES = 256 << 20  # far more than any cache holds
MOST_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class Bench:
    """Medians over the runs. Bandwidth in bytes per second, tokens per second over the whole batch.

    weights_per_token: bytes of weights that kernels read for one decoded token, by their own count (0 where
    none counts). read_share: the decode's reading of weights over what this machine reads with these threads.
    """

    batch: int
    prompt: int
    new: int
    threads: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    cache_bytes_per_token: int
    unfused_cache_bytes_per_token: int
    active_bytes_per_token: int
    weights_per_token: float
    read_bandwidth: float
    read_share: float


def bench(artifact: Artifact, prompt: int, new: int, batch: int, threads: int, runs: int = 5) -> Bench:
    """Time a prompt of random tokens, then `new` tokens one by one, `runs` times, after one to warm up.

    Raises BadRequest where the model has fewer positions.
    """
    random = np.random.default_rng(0).integers(0, artifact.vocabulary, (batch, prompt))
    ids, _ = artifact.prompt(random, new=new)
    times = [_once(artifact, ids, new) for _ in range(1 + runs)][1:]
    prefill, decode, read = (statistics.median(column) for column in zip(*times))
    ceiling = read_bandwidth(threads)
    found = artifact.manifest
    return Bench(
        batch,
        prompt,
        new,
        threads,
        batch * prompt / prefill,
        batch * new / decode,
        found.cache["bytes_per_token"],
        found.cache["unfused_bytes_per_token"],
        found.active_bytes_per_token,
        read / (batch * new),
        ceiling,
        read / decode / ceiling,
    )


def _once(artifact: Artifact, ids: Any, new: int) -> tuple[float, float, float]:
    """Seconds of the prompt, seconds of the new tokens, and bytes of weights read for those."""
    count = counter(artifact)
    cache = artifact.cache(len(ids), ids.shape[1] + new)
    mask = np.ones((len(ids), ids.shape[1] + new), np.int64)
    started = time.perf_counter()
    logits = artifact.step(ids, mask[:, : ids.shape[1]], cache)
    between, before = time.perf_counter(), count()
    for position in range(ids.shape[1], ids.shape[1] + new):
        token = np.argmax(logits[:, -1:], axis=-1)
        logits = artifact.step(token, mask[:, : position + 1], cache)
    return between - started, time.perf_counter() - between, count() - before


class Counter(ctypes.Structure):
    """One kernel's counts since the library was loaded, as runtime/kernel.h has them."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("kind", ctypes.c_char_p),
        ("calls", ctypes.c_uint64),
        ("weight_bytes", ctypes.c_uint64),
    )


def counters(artifact: Artifact) -> list[Counter]:
    """The counts of every kernel of the artifact; none where it has no library."""
    library = artifact.manifest.target.get("library")
    if not library:
        return []
    read = ctypes.CDLL(
        str(artifact.folder / library)
    ).moec_counters  # the library that the session has loaded
    read.restype, read.argtypes = ctypes.c_size_t, (ctypes.POINTER(Counter), ctypes.c_size_t)
    table = (Counter * MOST_ROWS)()
    return list(table[: read(table, MOST_ROWS)])


def counter(artifact: Artifact) -> Callable[[], int]:
    """A function that gives the bytes of weights read so far."""
    return lambda: sum(each.weight_bytes for each in counters(artifact))


def read_bandwidth(threads: int, runs: int = 5) -> float:
    """Bytes per second that this machine reads from memory with so many threads, at best."""
    parts = np.array_split(np.ones(READ_BYTES // 4, np.float32), threads)

    def seconds() -> float:
        started = time.perf_counter()
        list(pool.map(np.max, parts))
        return time.perf_counter() - started

    with ThreadPoolExecutor(threads) as pool:
        return READ_BYTES / min(seconds() for _ in range(runs))


def default_threads() -> int:
    """As many as this process may use."""
    return len(os.sched_getaffinity(0))
