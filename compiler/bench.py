"""How fast an artifact is here: tokens per second, and the bytes behind them."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from . import rooms
from .ir import Array
from .runner import Artifact
from .texts import BadRequest


@dataclass(frozen=True, slots=True)
class Bench:
    """Medians over the runs. Bandwidth in bytes per second, tokens per second over the whole batch.

    weights_per_token: bytes of weights that kernels read for one decoded token, by their own count (0 where
    none counts). read_share: the decode's reading of weights over what this machine reads with these threads.
    simulated: what stood in for the kernels' device; then bandwidths are 0, and no speed is a device's.
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
    simulated: str = ""


def bench(artifact: Artifact, prompt: int, new: int, batch: int, threads: int, runs: int = 5) -> Bench:
    """Time a prompt of random tokens, then `new` tokens one by one, `runs` times, after one to warm up.

    Raises BadRequest where the model has fewer positions.
    """
    ids = random_prompt(artifact, prompt, new, batch)
    times = [_once(artifact, ids, new) for _ in range(1 + runs)][1:]
    prefill, decode, read = (statistics.median(column) for column in zip(*times))
    found = artifact.manifest
    simulated = artifact.simulated
    room, isa = rooms.room_for(found.target), found.target["isa"]
    ceiling = 0.0 if simulated else room.read_bandwidth(threads, isa)
    # What is replayed is not counted; then it is what one token takes.
    read = read or batch * new * float(found.active_bytes_per_token)
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
        read / decode / ceiling if ceiling else 0.0,
        simulated,
    )


def random_prompt(artifact: Artifact, prompt: int, new: int, batch: int) -> Array:
    """Token ids i64 [batch, prompt]. Raises BadRequest where `new` more do not fit the model."""
    ids = np.random.default_rng(0).integers(0, artifact.vocabulary, (batch, prompt))
    return artifact.prompt(ids, new=new)[0]


def steps(artifact: Artifact, ids: Array, new: int) -> Iterator[None]:
    """Runs the prompt i64 [B, T], then greedily `new` tokens one by one; stops after each of these steps."""
    texts = artifact.texts(len(ids), ids.shape[1] + new)
    mask = np.ones((len(ids), ids.shape[1] + new), np.int64)
    for end in range(ids.shape[1], ids.shape[1] + new + 1):
        ids = texts.next(ids, mask[:, :end])[:, None]
        yield


def _once(artifact: Artifact, ids: Array, new: int) -> tuple[float, float, float]:
    """Seconds of the prompt, seconds of the new tokens, and bytes of weights read for those."""
    walk = steps(artifact, ids, new)
    started = time.perf_counter()
    next(walk)
    between, before = time.perf_counter(), weights_read(artifact)
    for _ in walk:
        pass
    return between - started, time.perf_counter() - between, weights_read(artifact) - before


class Counter(ctypes.Structure):
    """One kernel's counts since the library was loaded, as runtime/kernel.h has them."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("kind", ctypes.c_char_p),
        ("calls", ctypes.c_uint64),
        ("weight_bytes", ctypes.c_uint64),
        ("nanoseconds", ctypes.c_uint64),
    )


def device_clock(artifact: Artifact) -> Callable[[], float]:
    """Gives the seconds that the kernels' own device took for the last run; 0 where they have none."""
    if not artifact.on_device:
        return lambda: 0.0
    elapsed = ctypes.CDLL(str(artifact.folder / artifact.manifest.target["library"])).moec_elapsed_us
    elapsed.restype = ctypes.c_float
    return lambda: max(0.0, elapsed()) * 1e-6


def counters(artifact: Artifact) -> list[Counter]:
    """The counts of every kernel of the artifact; none where it has no library. Raises BadRequest."""
    library = artifact.manifest.target.get("library")
    if not library:
        return []
    loaded = ctypes.CDLL(str(artifact.folder / library))  # the one that the session has
    try:
        read = loaded.moec_counts
    except AttributeError:
        raise BadRequest(f"{artifact.folder} counts as another moec did: compile the model again") from None
    read.restype, read.argtypes = ctypes.c_size_t, (ctypes.POINTER(Counter), ctypes.c_size_t)
    rows = read(None, 0)
    table = (Counter * rows)()
    read(table, rows)
    return list(table)


def weights_read(artifact: Artifact) -> int:
    """The bytes of weights that kernels have read so far."""
    return sum(each.weight_bytes for each in counters(artifact))


def default_threads() -> int:
    """As many as this process may use."""
    return len(os.sched_getaffinity(0))
