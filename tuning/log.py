"""The tuning log: append-only JSON lines, one schedule that was tried on each, merged by union.

A record is one write() under a file lock, so a kill loses at most the line in flight and two writers never
mix. Nothing is fsync-ed: a crashed process loses nothing, a power failure may lose the last records.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..targets.base import Kernel
from .fingerprint import Fingerprint
from .record import PROFILE, BadRecord, Record, bare, parse, spelled


class BadLog(ValueError):
    """A file that is no tuning log at all."""


class Log:
    """The records of one file, in the file's order, and the sentences about lines that are none."""

    def __init__(self, path: Path) -> None:
        """Reads path; a missing file is an empty log. Raises BadLog if it is no file, or no line a record."""
        self.path = path
        self.records: list[Record] = []
        self.problems: list[str] = []
        try:
            *lines, last = path.read_bytes().split(b"\n") if path.exists() else [b""]
        except OSError as error:
            raise BadLog(f"{path} is no log: {error.strerror}; name another file with --log") from None
        for number, line in enumerate(lines, 1):
            self._read(line, number)
        if self.problems and not self.records:
            raise BadLog(f"{path} is not a tuning log ({self.problems[0]}); name another file with --log")
        self._read(last, len(lines) + 1, torn=True)

    def _read(self, line: bytes, number: int, torn: bool = False) -> None:
        if not line.strip():
            return
        try:
            self.records.append(parse(line))
        except BadRecord as bad:
            why = "the last line is torn, its writer was interrupted" if torn else str(bad)
            self.problems.append(f"{self.path}:{number}: {why}; the line is left out")

    def append(self, record: Record) -> None:
        """Adds the record to the file, in one write, and here. Raises OSError if that fails."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            data = (b"\n" if torn else b"") + record.line().encode() + b"\n"
            if os.write(descriptor, data) != len(data):
                raise OSError(f"{self.path}: a record was written in part only; is the disk full?")
        finally:
            os.close(descriptor)
        self.records.append(record)

    def merge(self, other: Log) -> int:
        """Appends the records of the other log that this one lacks; returns how many."""
        known = {record.line() for record in self.records}
        fresh = [record for record in other.records if record.line() not in known]
        for record in fresh:
            self.append(record)
        return len(fresh)

    def of(self, kernel: Kernel, fingerprint: Fingerprint, profile: str = PROFILE) -> Iterator[Record]:
        """The records of one kernel on one kind of machine."""
        key = (bare(kernel), fingerprint, profile)
        return (
            record for record in self.records if (record.kernel, record.fingerprint, record.profile) == key
        )

    def ranked(self, kernel: Kernel, fingerprint: Fingerprint) -> list[Record]:
        """The records that won when they were tried, fastest first; ties in one order whatever the file's."""
        won = [record for record in self.of(kernel, fingerprint) if record.status == "ok" and record.beats]
        return sorted(won, key=lambda record: (record.ratio, spelled(record.schedules), record.line()))

    def best(self, kernel: Kernel, fingerprint: Fingerprint) -> Record | None:
        """The fastest of them, or None if the log knows nothing of this kernel here."""
        return next(iter(self.ranked(kernel, fingerprint)), None)

    def tuned(self, kernel: Kernel, fingerprint: Fingerprint) -> bool:
        """Whether a search of this kernel here has ended (an interrupted one goes on next time)."""
        return any(record.status == "done" for record in self.of(kernel, fingerprint))


def default_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the log lies unless --log names another file."""
    data = environment.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(data) / "moec" / "tuning.jsonl"
