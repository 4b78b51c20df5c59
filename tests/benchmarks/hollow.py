"""An artifact without its large weights, compiled on one machine and filled with random numbers on another.

Files, kernels and sizes are those of any artifact; small weights are there and drawn as usual. The large
ones, matrices in bf16, have their places in files that `fill` writes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from moec.compiler import artifact, driver, library
from moec.compiler.blobs import HUGE, LIMIT, Blobs, labels
from moec.compiler.conditions import conditions
from moec.compiler.ir import DTYPES, Graph, Value
from moec.compiler.manifest import NAME, File
from moec.compiler.onnx_graph import Naming, Stored, frontier, to_onnx
from moec.compiler.planning import NOTHING, planned
from moec.compiler.policy import cache_of, policy_of
from moec.compiler.progress import Steps, quiet
from moec.compiler.rooms import target_of
from moec.compiler.rounding import Rounding, stored_weights
from moec.compiler.session import MODEL
from moec.compiler.slices import evaluated, nbytes
from moec.compiler.source import resolve
from moec.compiler.tuning_events import Teller
from moec.tuning.log import Log, default_path

LARGE = 1 << 20  # bytes from which a matrix is left out
TILE = (1 << 22) + 4099  # random numbers that repeat; no multiple of a row, so rows differ
PIECE = 128 << 20  # bytes that one thread writes at a time
PREFIX = "later-"


def make(
    config: Path, out: Path, target: str, isa: str, log: Path | None = None, tell: Steps = quiet
) -> None:
    """Compiles a model of that config, with the best schedules of the log, into a hollow artifact."""
    machine, clock, teller = target_of(target, isa), driver.Clock(tell), Teller()
    source = resolve("", config, 0)
    policy, cache = policy_of("none", None, machine.policies), cache_of(machine, None)
    front = driver.understand(source, machine, clock, None, False, policy, cache)
    called = conditions(machine, front.graph, front.kernels.values(), 1)
    known = Log(log or default_path(), machine.measured)
    plan = planned(front, known, NOTHING, called, tell, False, False, teller)
    with artifact.writing(out, force=True) as folder:
        jobs = [(kernel, choice.schedules) for kernel, choice in plan.items()]
        with clock.step("emit") as told:
            machine.link(library.emit_all(machine, jobs, told), folder / machine.library)
        graph, names = driver.laid_out(front, machine, plan)
        files = store(folder, graph, front.traced.weights, names)
        weights = stored_weights(graph, Rounding())
        driver.describe(front, machine, plan, teller, files, weights).write(folder)


def store(folder: Path, graph: Graph, weights: Any, naming: Naming) -> dict[str, File]:
    """Writes the model and its small weights; gives all files, also those that are not there yet."""
    values = frontier(graph)
    large, names = [each for each in values if is_large(each)], dict(zip(values, labels(values)))
    places, missing = placed([(names[value], nbytes(value.type)) for value in large])
    stored: dict[Value, Stored] = dict(zip(large, places))
    blobs = Blobs(folder)
    for group, slices in evaluated([each for each in values if each not in stored], weights):
        stored.update(zip(group, blobs.add([(names[value], value) for value in group], slices)))
    blobs.close()
    stored = {value: stored[value] for value in values}
    (folder / MODEL).write_bytes(to_onnx(graph, stored, naming).SerializeToString())
    there = {path.name: artifact.fingerprint(path) for path in sorted(folder.iterdir())}
    return {**there, **missing}


def is_large(value: Value) -> bool:
    """Whether the weight is left out."""
    matrix = value.type.rank > 1 and value.type.dtype == "bf16"
    return matrix and nbytes(value.type) >= LARGE


def placed(tensors: Sequence[tuple[str, int]]) -> tuple[list[Stored], dict[str, File]]:
    """A place for each tensor, by its name and bytes, and the files that they make up."""
    found, sizes = list[Stored](), list[int]()
    for name, length in tensors:
        if not sizes or sizes[-1] + length > LIMIT:
            sizes.append(0)
        start = -(-sizes[-1] // HUGE) * HUGE
        found.append(Stored(name, f"{PREFIX}{len(sizes):03}.bin", start, length))
        sizes[-1] = start + length
    return found, {f"{PREFIX}{count:03}.bin": File(size, "0" * 64) for count, size in enumerate(sizes, 1)}


@dataclass(frozen=True)
class Place:
    """Bytes of a file that hold a part of a tensor whose rows have `width` numbers."""

    file: str
    start: int
    length: int
    width: int


def fill(hollow: Path, out: Path) -> int:
    """An artifact with all files, large weights normal and of variance 1 / width; gives their bytes."""
    shutil.copytree(hollow, out, dirs_exist_ok=True)
    places = list(places_of(out))
    tiles = tiles_of({each.width for each in places})
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda place: write(out, place, tiles[place.width]), pieces(places)))
    return sum(place.length for place in places)


def roomy(hollow: Path) -> Path:
    """A folder that takes all weights, in memory if there is one. Raises ValueError."""
    need = sum(place.length for place in places_of(hollow))
    for folder in map(Path, ("/dev/shm", tempfile.gettempdir(), ".")):
        if folder.is_dir() and shutil.disk_usage(folder).free > need:
            return folder
    raise ValueError(f"no folder has {need / 1e9:.0f} GB of room")


def places_of(folder: Path) -> Iterator[Place]:
    """Where the large weights go, by the model."""
    for tensor in onnx.load(folder / MODEL, load_external_data=False).graph.initializer:
        at = {each.key: each.value for each in tensor.external_data}
        if at.get("location", "").startswith(PREFIX):
            yield Place(at["location"], int(at["offset"]), int(at["length"]), int(tensor.dims[-1]))


def pieces(places: Sequence[Place]) -> Iterator[Place]:
    """The same in parts."""
    for each in places:
        for begin in range(0, each.length, PIECE):
            yield Place(each.file, each.start + begin, min(PIECE, each.length - begin), each.width)


def tiles_of(widths: set[int]) -> Mapping[int, Any]:
    """Random numbers bf16 [TILE] for each width, as bytes."""
    drawn = np.random.default_rng(0).standard_normal(TILE, np.float32)
    return {
        width: (drawn * np.float32(width**-0.5)).astype(DTYPES["bf16"]).view(np.uint8) for width in widths
    }


def write(folder: Path, place: Place, tile: Any) -> None:
    """The tile again and again, from a start that depends on the place."""
    handle = os.open(folder / place.file, os.O_WRONLY | os.O_CREAT, 0o644)
    done, skip = 0, (place.start // 2 % 1009) * 2 * 16
    while done < place.length:
        part = tile[skip : skip + place.length - done]
        done += os.pwrite(handle, part.data, place.start + done)
        skip = 0
    os.close(handle)


def is_hollow(folder: Path) -> bool:
    """Whether it lacks its large weights."""
    return (folder / NAME).is_file() and not any(folder.glob(f"{PREFIX}*"))
