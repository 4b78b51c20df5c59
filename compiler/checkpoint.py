"""Weights by name, read when asked for: from safetensors on disk, or made up from a seed.

Names are those of the module's parameters. A checkpoint stores each expert apart, in a narrow dtype, perhaps
in fp8 blocks with scales; the module has one f32 tensor per projection. Here the one becomes the other.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import ml_dtypes
import numpy as np

from .ir import DTYPES, Array

Shape = tuple[int, ...]

# safetensors' names of the dtypes we read.
STORED = {
    "F64": "f64",
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "F8_E4M3": "f8e4m3",
    "I64": "i64",
    "BOOL": "bool",
}

# The end of a module parameter's name -> the disk tensors of one expert whose rows, one after the other, are
# its slice of that parameter. The families compiled today agree on this.
STACKS: Mapping[str, tuple[str, ...]] = {
    "experts.gate_up_proj": ("experts.{}.gate_proj.weight", "experts.{}.up_proj.weight"),
    "experts.down_proj": ("experts.{}.down_proj.weight",),
}


class BadModel(ValueError):
    """The model the user named can not be compiled; the message says what is wrong with it and where."""


class Weights(Protocol):
    """Where the numbers of `constant` nodes come from."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows start..stop of axis 0 of a parameter; f32 where it is of a floating dtype."""
        ...


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor on disk: `offset` counts bytes from the start of the file."""

    file: Path
    dtype: str
    shape: Shape
    offset: int

    def rows(self, start: int = 0, stop: int | None = None) -> Array:
        """Rows of the tensor as they are on disk: a view of the mapped file."""
        dtype = DTYPES[STORED[self.dtype]]
        whole = np.frombuffer(mapped(self.file), dtype, math.prod(self.shape), self.offset).reshape(
            self.shape
        )
        return whole[start:stop] if self.shape else whole


@cache
def mapped(file: Path) -> Array:
    """The file's bytes, mapped once for as long as the process lives: pages come and go with use."""
    return np.memmap(file, np.uint8, "r")


def header(file: Path) -> Iterator[tuple[str, Stored]]:
    """The tensors of a safetensors file, from its header alone.

    Raises BadModel where the file is not one, or is shorter than its header says.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise BadModel(
                f"{file}: truncated: {size} bytes, but its header alone needs {length + 8}; download it again"
            )
        try:
            entries = json.loads(stream.read(length))
        except ValueError:
            raise BadModel(f"{file}: not a safetensors file: the header is not JSON") from None
    entries.pop("__metadata__", None)
    needed = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if size < needed:
        raise BadModel(
            f"{file}: truncated: {size} bytes, but its header describes {needed}; download it again"
        )
    for name, entry in entries.items():
        yield name, Stored(file, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder, by its index where it has one.

    Raises BadModel where there are none, or where the index names one that is missing.
    """
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise BadModel(
                f"{folder}: no *.safetensors in it; to compile its shapes alone use --random-weights SEED"
            )
        return files
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadModel(f"{index}: not an index of shards: expected JSON with a weight_map") from None
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise BadModel(f"{folder}: missing {', '.join(missing)}, which {index.name} names; download the rest")
    return [folder / name for name in names]


class Checkpoint:
    """The weights of a Hugging Face folder. Opening it reads headers only.

    Raises BadModel where a shard is missing, truncated or not a safetensors file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = shards(folder)
        self.tensors = {name: stored for file in self.files for name, stored in header(file)}
        config = json.loads((folder / "config.json").read_text())
        self.block: int = (config.get("quantization_config") or {}).get("weight_block_size", [128])[0]
        self.experts = count_experts(self.tensors)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows start..stop of a module parameter in f32; f32 on disk is not copied.

        Raises KeyError for a name that `verify` would not have let pass.
        """
        if name in self.tensors:
            return self._plain(name, start, stop)
        experts = self._experts(name)[start:stop]
        return np.stack([np.concatenate([self._plain(piece) for piece in pieces]) for pieces in experts])

    def verify(self, shapes: Mapping[str, Shape]) -> None:
        """Check that every parameter is there with its shape, and every block of fp8 with its scale.

        Raises BadModel with all that is wrong.
        """
        problems = [problem for name, shape in shapes.items() for problem in self._problems(name, shape)]
        if problems:
            shown = "\n  ".join(problems[:20]) + (
                f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
            )
            raise BadModel(f"{self.folder}: the weights do not fit the config:\n  {shown}")

    def fingerprint(self) -> str:
        """A hash of the config and of every shard's name, size and header; the weights are not read."""
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        for file in self.files:
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                digest.update(f"{file.name} {file.stat().st_size} ".encode() + stream.read(length))
        return digest.hexdigest()

    def _experts(self, name: str) -> list[tuple[str, ...]]:
        """For each expert of a stacked parameter, the disk tensors its slice is made of."""
        for suffix, pieces in STACKS.items():
            if name.endswith(suffix):
                prefix = name.removesuffix(suffix)
                numbers = range(self.experts.get(prefix, 0))
                return [tuple(prefix + piece.format(number) for piece in pieces) for number in numbers]
        raise KeyError(name)

    def _plain(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        stored = self.tensors[name]
        rows = stored.rows(start, stop)
        if stored.dtype == "F8_E4M3":
            scales = self.tensors[f"{name}_scale_inv"].rows()
            return unblock(rows, scales, self.block, start)
        return rows.astype(np.float32, copy=False) if stored.dtype in ("F64", "F16", "BF16") else rows

    def _problems(self, name: str, shape: Shape) -> Iterator[str]:
        if name in self.tensors or not name.endswith(tuple(STACKS)):
            yield from self._fits(name, shape)
            return
        experts = self._experts(name)
        for pieces in experts[: shape[0]]:
            rows = (shape[1] // len(pieces), *shape[2:])
            yield from (problem for piece in pieces for problem in self._fits(piece, rows))
        if len(experts) != shape[0]:
            yield f"{name}: {len(experts)} experts on disk, expected {shape[0]}"

    def _fits(self, name: str, shape: Shape) -> Iterator[str]:
        stored = self.tensors.get(name)
        if stored is None:
            yield f"{name}: missing, expected {list(shape)}"
            return
        if stored.shape != shape:
            yield f"{name}: {list(stored.shape)}, expected {list(shape)} [{stored.file.name}]"
        if stored.dtype not in STORED:
            yield f"{name}: stored as {stored.dtype}; understood: {', '.join(STORED)} [{stored.file.name}]"
        if stored.dtype == "F8_E4M3":
            yield from self._fits(f"{name}_scale_inv", tuple(-(-size // self.block) for size in shape))


def count_experts(names: Iterable[str]) -> dict[str, int]:
    """How many experts each module has, by what comes before `experts.` in their tensors' names."""
    counts: dict[str, int] = {}
    for name in names:
        prefix, _, rest = name.partition("experts.")
        number = rest.split(".")[0]
        if number.isdigit():
            counts[prefix] = max(counts.get(prefix, 0), int(number) + 1)
    return counts


def unblock(rows: Array, scales: Array, block: int, start: int = 0) -> Array:
    """f32 rows of an fp8 matrix whose blocks [block, block], ragged at the edges, each have a factor.

    rows [R, K] f8e4m3 are rows start.. of the matrix; scales [ceil(N/block), ceil(K/block)].
    """
    numbers = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    result: Array = numbers[rows.view(np.uint8)]
    factors = scales[np.arange(start, start + len(rows)) // block]
    for column in range(scales.shape[1]):
        result[:, column * block : (column + 1) * block] *= factors[:, column, None]
    return result


class RandomWeights:
    """Weights that look trained, made from a seed when read: any rows, in any order, always the same."""

    BLOCK = 1 << 16  # elements, about: rows are drawn in whole blocks from a counter of their own

    def __init__(self, seed: int, shapes: Mapping[str, Shape]) -> None:
        self.seed = seed
        self.shapes = dict(shapes)
        numbers = (re.search(r"layers\.(\d+)\.", name) for name in shapes)
        self.layers = max((int(found[1]) + 1 for found in numbers if found), default=1)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows start..stop of axis 0, f32."""
        shape = self.shapes[name]
        begin, end, _ = slice(start, stop).indices(shape[0])
        rows = max(1, self.BLOCK // max(1, math.prod(shape[1:])))
        result = np.empty((max(0, end - begin), *shape[1:]), np.float32)
        for first in range(begin - begin % rows, end, rows):
            low, high = max(begin, first), min(end, first + rows)
            drawn = self._block(name, first // rows, (min(rows, shape[0] - first), *shape[1:]))
            result[low - begin : high - begin] = drawn[low - first : high - first]
        return result

    def fingerprint(self) -> str:
        """A hash of the seed and of every name and shape."""
        return hashlib.sha256(repr((self.seed, sorted(self.shapes.items()))).encode()).hexdigest()

    def _block(self, name: str, number: int, shape: Shape) -> Array:
        key = int.from_bytes(hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:16], "little")
        generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, number, 0]))
        mean, deviation = moments(name, self.shapes[name], self.layers)
        drawn: Array = generator.standard_normal(shape, dtype=np.float32)
        drawn *= np.float32(deviation)
        drawn += np.float32(mean)
        return drawn


def moments(name: str, shape: Shape, layers: int) -> tuple[float, float]:
    """Mean and standard deviation for a parameter, so that activations keep their size and experts differ.

    What each of the layers adds to the residual twice, after attention and after experts, sums up to about
    what it began with, as in models that are trained from such weights (GPT-2's initialisation).
    """
    if len(shape) == 1:
        return (1.0, 0.1) if "norm" in name else (0.0, 0.05)
    if name.endswith("embed_tokens.weight"):
        return 0.0, 1.0
    spread = 2.0 if name.endswith("mlp.gate.weight") else 1.0
    if re.search(r"(o_proj|down_proj)(\.weight)?$", name):
        spread = 1 / math.sqrt(2 * layers)
    return 0.0, spread / math.sqrt(shape[-1])
