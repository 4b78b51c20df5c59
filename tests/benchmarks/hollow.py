"""An artifact without its large weights (hollow_make.py), filled with random numbers where it runs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from moec.compiler import manifest
from moec.compiler.artifact import fingerprint
from moec.compiler.ir import DTYPES
from moec.compiler.manifest import NAME
from moec.compiler.ops.quantize import GROUP
from moec.compiler.session import MODEL

TILE = (1 << 22) + 4099  # random numbers that repeat; no multiple of a row, so rows differ
PIECE = 128 << 20  # bytes that one thread writes at a time
PREFIX = "later-"
BF16, CODES = onnx.TensorProto.BFLOAT16, onnx.TensorProto.UINT8
DEVIATION = {4: 4.6, 8: 74.0}  # bits -> how much a code varies where all are equally likely


@dataclass(frozen=True)
class Drawn:
    """How numbers are drawn: bf16 normal, codes evenly, or scales of codes of so many bits, all the same.

    width: of the rows whose products with x are to keep its variance; 0 for codes, which their scales tell.
    """

    kind: int
    width: int
    bits: int = 0

    def tile(self) -> Any:
        """TILE of them, as bytes."""
        random = np.random.default_rng(0)
        if self.kind == CODES:
            return random.integers(0, 256, TILE, np.uint8)
        deviation = np.float32(self.width**-0.5)
        if self.kind == BF16:
            numbers = random.standard_normal(TILE, np.float32) * deviation
            return numbers.astype(DTYPES["bf16"]).view(np.uint8)
        return np.full(TILE, deviation / DEVIATION[self.bits], np.float16).view(np.uint8)


@dataclass(frozen=True)
class Place:
    """Bytes of a file that hold a part of a tensor."""

    file: str
    start: int
    length: int
    drawn: Drawn


def fill(hollow: Path, out: Path) -> int:
    """An artifact with all files, large weights of variance 1 / width; gives the bytes of those."""
    shutil.copytree(hollow, out, dirs_exist_ok=True)
    places = list(places_of(out))
    tiles = {drawn: drawn.tile() for drawn in {each.drawn for each in places}}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda place: write(out, place, tiles[place.drawn]), pieces(places)))
    return sum(place.length for place in places)


def seal(folder: Path) -> None:
    """Has the manifest of a filled artifact name the files as they are, so that it loads like any other."""
    found = manifest.read(folder)
    later = {name: fingerprint(folder / name) for name in found.files if name.startswith(PREFIX)}
    replace(found, files={**found.files, **later}).write(folder)


def roomy(hollow: Path) -> Path:
    """A folder that takes all weights, in memory if there is one. Raises ValueError."""
    need = sum(place.length for place in places_of(hollow))
    for folder in map(Path, ("/dev/shm", tempfile.gettempdir(), ".")):
        if folder.is_dir() and shutil.disk_usage(folder).free > need:
            return folder
    raise ValueError(f"no folder has {need / 1e9:.0f} GB of room")


def places_of(folder: Path) -> Iterator[Place]:
    """Where the large weights go, by the model; scales come right behind their codes."""
    codes = 0  # bytes of the last ones
    for tensor in onnx.load(folder / MODEL, load_external_data=False).graph.initializer:
        at = {each.key: each.value for each in tensor.external_data}
        if not at.get("location", "").startswith(PREFIX):
            continue
        start, length, kind = int(at["offset"]), int(at["length"]), int(tensor.data_type)
        if kind in (BF16, CODES):
            drawn, codes = Drawn(kind, int(tensor.dims[-1]) if kind == BF16 else 0), length
        else:  # [.., groups along k, rows]
            drawn = Drawn(kind, int(tensor.dims[-2]) * GROUP, codes * 8 * 2 // (length * GROUP))
        yield Place(at["location"], start, length, drawn)


def pieces(places: Sequence[Place]) -> Iterator[Place]:
    """The same in parts."""
    for each in places:
        for begin in range(0, each.length, PIECE):
            yield Place(each.file, each.start + begin, min(PIECE, each.length - begin), each.drawn)


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
