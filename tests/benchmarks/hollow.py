"""An artifact without its large weights (hollow_make.py), filled with random numbers where it runs."""

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

from moec.compiler.ir import DTYPES
from moec.compiler.manifest import NAME
from moec.compiler.session import MODEL

TILE = (1 << 22) + 4099  # random numbers that repeat; no multiple of a row, so rows differ
PIECE = 128 << 20  # bytes that one thread writes at a time
PREFIX = "later-"


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
