"""Weights on their way into an artifact: evaluated, packed and hashed one slice at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .ir import DTYPES, Array, Value, walk
from .manifest import File
from .onnx_graph import Stored
from .slices import nbytes

LIMIT = 1 << 30  # a file takes tensors up to this many bytes, so that files can be hashed side by side
PAGE, HUGE = 1 << 12, 1 << 16


class Blobs:
    """The weight files of one artifact while they are written, one slice of a tensor at a time."""

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self._folder = folder
        self._limit = limit
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._offset = 0
        self._count = 0
        self.written = 0  # bytes in all files
        self.files: dict[str, File] = {}

    def add(self, tensors: Sequence[tuple[str, Value]], slices: Iterable[Sequence[Array]]) -> list[Stored]:
        """Append tensors (name, value) that come together, a slice of each at a time; gives their spans.

        The first goes to disk as it comes. The others wait for it in memory, so they should be small.
        """
        first, *others = tensors
        kept: list[list[Array]] = [[] for _ in others]

        def streamed() -> Iterator[Array]:
            for array, *rest in slices:
                for parts, part in zip(kept, rest, strict=True):
                    parts.append(part)
                yield array

        return [
            self._add(*first, streamed()),
            *(self._add(*each, parts) for each, parts in zip(others, kept)),
        ]

    def _add(self, name: str, value: Value, slices: Iterable[Array]) -> Stored:
        """Append one tensor, given as slices along its first axis."""
        dtype = DTYPES[value.type.dtype]
        length = nbytes(value.type)
        if self._file is None or self._offset + length > self._limit:
            self._next()
        self._write(bytes(-self._offset % (HUGE if length >= 1 << 20 else PAGE)))
        start = self._offset
        for rows in slices:
            self._write(np.ascontiguousarray(rows, dtype).reshape(-1).view(np.uint8).data)
        if self._offset - start != length:
            raise ValueError(f"{name}: {self._offset - start} bytes came of a {value.type} that has {length}")
        return Stored(name, self._name(), start, length)

    def close(self) -> None:
        """End the last file. Every file is in `files` from then on."""
        if self._file is not None:
            self._file.close()
            self.files[self._name()] = File(self._offset, self._hash.hexdigest())
            self._file = None

    def _name(self) -> str:
        return f"weights-{self._count:03}.bin"

    def _next(self) -> None:
        self.close()
        self._count += 1
        self._file = (self._folder / self._name()).open("wb")
        self._hash, self._offset = hashlib.sha256(), 0

    def _write(self, data: bytes | memoryview) -> None:
        assert self._file is not None
        self._file.write(data)
        self._hash.update(data)
        self._offset += len(data)
        self.written += len(data)


def labels(values: Sequence[Value]) -> Iterator[str]:
    """A name for each expression of weights: the weights in it, and a number where that is not unique."""
    taken: set[str] = set()
    for value in values:
        names = [str(node.attrs["name"]) for node in walk([value]) if node.op.name == "constant"]
        stem = "+".join(names[:3]) or "constant"
        name, again = stem, 1
        while name in taken:
            again += 1
            name = f"{stem}.{again}"
        taken.add(name)
        yield name
