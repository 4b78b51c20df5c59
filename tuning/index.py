"""Where in a log the records of each kernel lie, so that a question about one kernel reads its lines only.

A row for each line: which kernel and machine it is about, as a hash, and the byte it begins at. A record's
line begins with just that, so rows are made without parsing. Rows say where to look, never what is true: who
reads the lines checks them.

The rows of a large log are kept in a file beside it: a digest of all that follows, a line of JSON that says
which log it is of (how many bytes of it, its inode, its time of change, a hash of samples of those bytes),
and the two columns. It counts only if all of that holds; a log that only grew is read from where the rows
end. It is written whole, by rename; without it, or where it cannot be written, all works, only slower.

Not sqlite3: measured with a million rows, it wrote them in 1.6 s where this takes 0.3 s; it opened and
answered in 13 ms where this takes 45 ms, but would bring its locks and journals to shared filesystems.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from array import array
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..targets.base import Kernel
from .fingerprint import Fingerprint
from .record import SCHEMA, BadRecord, Record, parse

LARGE = 64 << 20  # bytes of a log, from which its rows are kept
TAIL = 1 << 20  # bytes that it may grow by before they are written anew
BLANK, FOREIGN = 0, 1  # instead of a hash: an empty line, and one that is no record of this schema
FORM = f"moec index 1 {sys.byteorder}"
SAMPLE, SAMPLES = 4096, 16  # bytes, and of how many places

BEGINS, ENDS = f'{{"schema":{SCHEMA},"kernel":'.encode(), b',"schedule":'


def key(kernel: Kernel, fingerprint: Fingerprint) -> int:
    """The hash in the rows of a kernel's lines."""
    return key_of(Record(kernel, fingerprint, {}, "refused").line().encode())


def key_of(line: bytes) -> int:
    """The same from a line, or BLANK or FOREIGN. The line may still turn out to be no record when parsed."""
    if line.startswith(BEGINS) and line.endswith((b"}\n", b"}")) and (end := line.find(ENDS)) > 0:
        return _hash(line[len(BEGINS) : end])
    if not line.strip():
        return BLANK
    try:
        record = parse(line)  # one that another program wrote, with spaces perhaps
    except BadRecord:
        return FOREIGN
    return key(record.kernel, record.fingerprint)


@lru_cache(4096)
def _hash(subject: bytes) -> int:
    return max(FOREIGN + 1, int.from_bytes(hashlib.blake2b(subject, digest_size=8).digest()))


class Index:
    """The rows of a log's first `end` bytes."""

    def __init__(self, inode: int = 0) -> None:
        self.inode, self.end, self.saved = inode, 0, 0
        self.keys, self.starts = array("Q"), array("Q")
        self._ended = True  # the last row's line, by a newline

    def grow(self, stream: BinaryIO) -> None:
        """Adds rows for the lines behind the last one.

        A last line without a newline has a row only if it is a record: its writer may still be at it.
        """
        stream.seek(self.end)
        for line in stream:
            if not self._ended and line == b"\n":  # what a writer put behind a line without one
                self._ended, self.end = True, self.end + 1
                continue
            self._ended = line.endswith(b"\n")
            if not self._ended and not _whole(line):
                self._ended = True
                break
            self.keys.append(key_of(line))
            self.starts.append(self.end)
            self.end += len(line)

    def rows(self, sought: int) -> list[int]:
        """The numbers of the rows of one key, from 0."""
        found: list[int] = np.flatnonzero(np.frombuffer(self.keys, np.uint64) == sought).tolist()
        return found

    def all(self) -> range:
        """The numbers of all rows."""
        return range(len(self.starts))

    def readable(self) -> list[int]:
        """The numbers of the rows that should be records."""
        found: list[int] = np.flatnonzero(np.frombuffer(self.keys, np.uint64) > FOREIGN).tolist()
        return found

    def firsts(self) -> dict[int, int]:
        """The first row of each key."""
        keys, rows = np.unique(np.frombuffer(self.keys, np.uint64), return_index=True)
        pairs = sorted(zip(rows.tolist(), keys.tolist()))
        return {each: row for row, each in pairs if each > FOREIGN}

    def lines(self, descriptor: int, rows: Iterable[int]) -> Iterator[bytes]:
        """The lines of these rows."""
        for row in rows:
            start = self.starts[row]
            end = self.starts[row + 1] if row + 1 < len(self.starts) else self.end
            yield os.pread(descriptor, end - start, start)

    def keep(self, log: Path, stream: BinaryIO) -> None:
        """Writes the rows beside the log, if it is worth it and possible."""
        if self.end < LARGE or self.end - self.saved < TAIL or not self._ended:
            return
        self.saved = self.end
        place = beside(log)
        new = place.with_name(f"{place.name}.{os.getpid()}")
        rest = json.dumps(self._of(stream)).encode() + b"\n" + self.keys.tobytes() + self.starts.tobytes()
        try:
            new.write_bytes(_digest(rest).encode() + b"\n" + rest)
            os.replace(new, place)
        except OSError:  # a folder that is read-only, or a full disk
            with contextlib.suppress(OSError):
                new.unlink()

    def _of(self, stream: BinaryIO) -> dict[str, Any]:
        """What says which log the rows are of."""
        changed = os.fstat(stream.fileno()).st_mtime_ns
        told = {"form": FORM, "end": self.end, "inode": self.inode, "rows": len(self.starts)}
        return {**told, "changed": changed, "sample": _sampled(stream, self.end)}


def load(log: Path, stream: BinaryIO) -> Index:
    """The rows kept beside a log, as far as they hold; none, if they do not."""
    status = os.fstat(stream.fileno())
    index = Index(status.st_ino)
    try:
        digest, _, rest = beside(log).read_bytes().partition(b"\n")
        header, _, body = rest.partition(b"\n")
        said = json.loads(header) if _digest(rest) == digest.decode() else {}
    except (OSError, ValueError):
        return index
    if not isinstance(said, dict) or said.get("form") != FORM or len(body) != 16 * said["rows"]:
        return index
    kept = Index(status.st_ino)
    kept.end = kept.saved = said["end"]
    kept.keys.frombytes(body[: len(body) // 2])
    kept.starts.frombytes(body[len(body) // 2 :])
    grew = status.st_size > kept.end
    return kept if said == {**kept._of(stream), **({"changed": said["changed"]} if grew else {})} else index


def beside(log: Path) -> Path:
    """Where the rows of a log are kept."""
    return log.with_name(f"{log.name}.index")


def _whole(line: bytes) -> bool:
    try:
        parse(line)
    except BadRecord:
        return False
    return True


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _sampled(stream: BinaryIO, end: int) -> str:
    """A hash of a log's first `end` bytes, or of samples of them if they are many, also at both ends."""
    last = max(0, end - SAMPLE)
    places = [last * part // (SAMPLES - 1) for part in range(SAMPLES)]
    return _digest(b"".join(os.pread(stream.fileno(), min(SAMPLE, end), place) for place in places))
