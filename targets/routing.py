"""Which experts tokens choose when a grouped kernel is timed: evenly, by Zipf's law, or as recorded.

A recording is a file of chosen expert ids, [tokens, top_k]: a .npy file of integers, or JSON lines with one
list of ids for each token. With numpy, from a model's router logits of one layer [tokens, experts]:

    ids = np.argsort(-logits, axis=1)[:, :top_k].astype(np.int32)
    np.save("routing.npy", ids)

Layers may be put one under the other (np.concatenate): rows are drawn from all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .base import Kernel

ZIPF = 1.0  # the exponent: the second most popular expert is chosen half as often as the first
MOST_BYTES = 1 << 30  # of a recording

Ids = np.ndarray[Any, Any]
Random = np.random.Generator


class BadTrace(ValueError):
    """A file that is no recording of a routing, or of another model's; the text says why."""


def even(random: Random, tokens: int, experts: int, share: int) -> Ids:
    """i64 [tokens, share], different experts in a row, all as likely."""
    return np.argsort(random.random((tokens, experts)), axis=1)[:, :share]


def zipf(random: Random, tokens: int, experts: int, share: int) -> Ids:
    """The same, but the r-th most popular expert is drawn with a chance that goes as 1 / r**ZIPF."""
    popularity = -ZIPF * np.log(1 + random.permutation(experts))
    return np.argsort(-(popularity + random.gumbel(size=(tokens, experts))), axis=1)[:, :share]


@dataclass(frozen=True)
class Trace:
    """A recorded routing: i64 [tokens, top_k], different experts in a row."""

    ids: Ids

    @property
    def name(self) -> str:
        """The profile of what was timed with it: "trace:" and 16 hex digits of its content's hash."""
        content = repr(self.ids.shape).encode() + np.ascontiguousarray(self.ids, "<i8").tobytes()
        return f"trace:{hashlib.sha256(content).hexdigest()[:16]}"

    def suits(self, experts: int, share: int) -> bool:
        """Whether it may be of a kernel of so many experts, `share` for a token.

        Shared experts, which every token has, are a kernel's last ones and not in a recording.
        """
        shared = share - self.ids.shape[1]
        return 0 <= shared < experts and bool(self.ids.max() < experts - shared)

    def times(self, kernel: Kernel) -> bool:
        """Whether a kernel is to be timed with it."""
        sizes = dict(kernel.dims)
        return "share" in sizes and self.suits(sizes["experts"], sizes["share"])

    def draw(self, random: Random, tokens: int, experts: int, share: int) -> Ids:
        """i64 [tokens, share]: rows of it, and the shared experts; in turns onto fewer experts, if so."""
        rows = self.ids[random.integers(0, len(self.ids), tokens)]
        shared = share - rows.shape[1]
        routed = experts - shared
        for column in range(rows.shape[1] if int(self.ids.max()) >= routed else 0):
            rows[:, column] %= routed
            while (taken := (rows[:, :column] == rows[:, column, None]).any(axis=1)).any():
                rows[taken, column] = (rows[taken, column] + 1) % routed
        always = np.tile(np.arange(routed, experts), (tokens, 1))
        return np.concatenate([rows, always], axis=1)


def read(path: Path) -> Trace:
    """The recording in a file. Raises BadTrace."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BadTrace(f"{path} is larger than {MOST_BYTES >> 20} MiB; some thousand tokens are enough")
        found = _numbers(path) if path.suffix == ".npy" else _lines(path)
    except OSError as error:
        raise BadTrace(f"{path} cannot be read ({error.strerror}); name another file") from None
    expected = "expected integers [tokens, top_k], one row of expert ids for each token"
    if found.ndim != 2 or not found.size or found.dtype.kind not in "iu":
        raise BadTrace(f"{path} holds {found.dtype} {list(found.shape)}; {expected}")
    ids = found.astype(np.int64)
    if ids.min() < 0:
        raise BadTrace(f"{path} holds {ids.min()}; expert ids count from 0")
    repeats = (np.diff(np.sort(ids, axis=1), axis=1) == 0).any(axis=1)
    if repeats.any():
        row = int(np.argmax(repeats))
        raise BadTrace(f"{path}: token {row} chose {ids[row].tolist()}; the experts of a token are different")
    return Trace(ids)


def _numbers(path: Path) -> Ids:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, EOFError) as bad:
        raise BadTrace(f"{path} is no .npy file of numbers: {bad}") from None


def _lines(path: Path) -> Ids:
    rows: list[list[int]] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        row = _row(line) if line.strip() else None
        if row is not None and (row == [] or (rows and len(row) != len(rows[0]))):
            raise BadTrace(f"{path}:{number}: {line[:60]!r} is no list of as many expert ids as the others")
        rows += [row] if row else []
    return np.array(rows, np.int64)


def _row(line: bytes) -> list[int]:
    """The ids on a line, or nothing if it holds anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return []
    whole = isinstance(row, list) and all(type(each) is int and 0 <= each < 1 << 31 for each in row)
    return row if whole else []


def expect(trace: Trace, kernels: Iterable[tuple[int, int]]) -> None:
    """Raises BadTrace unless it suits one of the kernels, each by its experts and those of a token."""
    found = list(kernels)
    if not any(trace.suits(*each) for each in found):
        sizes = ", ".join(f"{share} of {experts}" for experts, share in sorted(set(found))) or "none"
        raise BadTrace(
            f"the recorded routing chooses {trace.ids.shape[1]} experts a token, up to number "
            f"{int(trace.ids.max())}; this model's kernels choose, with shared experts, {sizes}"
        )
