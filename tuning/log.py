"""The tuning log: append-only JSON lines, one schedule that was tried on each, merged by union.

The file is the truth. A Log looks at it whenever it is asked and reads what came since, from here or from
other processes; of a kernel it parses the lines when that kernel is first asked for. A record is one write
under a lock (lines.py), so a kill loses at most the line in flight and two writers never mix.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..targets.base import Kernel
from . import index, lines
from .fingerprint import Fingerprint
from .index import FOREIGN, Index
from .record import PROFILE, BadRecord, LaterRecord, Record, bare, by_speed, parse, standing

BUFFER = 1 << 18  # bytes read at once
MOST = 100  # lines that are no records and are told one by one


class BadLog(ValueError):
    """A file that is no tuning log at all."""


class Log:
    """The records of one file, and the sentences about lines that are none."""

    def __init__(self, path: Path, shipped: Path | None = None) -> None:
        """Opens path; a missing file is an empty log. Raises BadLog if it is no file, or no line a record.

        shipped: a file whose records count as well when a kernel is asked for; it is never written.
        """
        self.path = path
        self.shipped = Log(shipped) if shipped and shipped.exists() else None
        self.profile_of: Callable[[Kernel], str] = lambda kernel: PROFILE  # which of them is asked for
        self._index = Index()
        self._groups: dict[int, list[Record]] = {}  # by the index's keys, those that were asked for
        self._broken: dict[int, str] = {}  # row -> why, of those that looked like records
        with self._current() as descriptor:
            foreign = self._foreign(descriptor)
            later = any(isinstance(why, LaterRecord) for why in foreign.values())
            if foreign and not later and not self._index.readable():
                first = self._sentence(*next(iter(foreign.items())))
                raise BadLog(f"{path} is not a tuning log ({first}); name another file with --log")

    @property
    def problems(self) -> list[str]:
        """A sentence for each line that was left out; some show only when their kernel is asked for."""
        with self._current() as descriptor:
            found = {**self._broken, **self._foreign(descriptor)}
            said = [self._sentence(row, found[row]) for row in sorted(found)]
            if (more := len(self._index.rows(FOREIGN)) - MOST) > 0:
                said.append(f"{self.path}: {more} more lines are no records; they are left out")
            if os.fstat(descriptor).st_size > self._index.end:
                torn = "the last line is torn, its writer was interrupted"
                said.append(self._sentence(len(self._index.starts), torn))
        return said

    @property
    def records(self) -> list[Record]:
        """All of them, in the file's order. To go through many, iterate over the log instead."""
        return list(self)

    def __iter__(self) -> Iterator[Record]:
        """Each record, in the file's order, as of now."""
        for row, line in self._now(Index.readable):
            if (record := self._parse(row, line)) is not None:
                yield record

    def lines(self) -> Iterator[bytes]:
        """The file's lines as they are, as of now."""
        return (line for _, line in self._now(Index.all))

    def keys(self) -> list[tuple[Kernel, Fingerprint]]:
        """Every kernel and machine that some record is about, in the order they came."""
        with self._current() as descriptor:
            firsts = self._index.firsts()
            heads = [*self._index.lines(descriptor, firsts.values())]
            each = [(self._parse(row, line), key) for line, (key, row) in zip(heads, firsts.items())]
            groups = [[head] if head else self._group(key) for head, key in each]
        return [(group[0].kernel, group[0].fingerprint) for group in groups if group]

    def of(self, kernel: Kernel, fingerprint: Fingerprint, profile: str | None = None) -> Iterator[Record]:
        """The records of one kernel on one kind of machine, in the file's order, those shipped first."""
        key = (bare(kernel), fingerprint, profile or self.profile_of(kernel))
        others = self.shipped.of(kernel, fingerprint, key[2]) if self.shipped else ()
        yield from others
        for record in self._group(index.key(kernel, fingerprint)):
            if (record.kernel, record.fingerprint, record.profile) == key:
                yield record

    def came_with_moec(self, record: Record) -> bool:
        """Whether it is one of those shipped."""
        places = record.kernel, record.fingerprint, record.profile
        return self.shipped is not None and record in self.shipped.of(*places)

    def ranked(self, kernel: Kernel, fingerprint: Fingerprint, profile: str | None = None) -> list[Record]:
        """The records that won and still stand, fastest first; ties in one order whatever the file's."""
        return sorted(standing(self.of(kernel, fingerprint, profile), lambda each: each.beats), key=by_speed)

    def best(self, kernel: Kernel, fingerprint: Fingerprint, profile: str | None = None) -> Record | None:
        """The fastest of them, or None if the log knows nothing of this kernel here."""
        return next(iter(self.ranked(kernel, fingerprint, profile)), None)

    def tuned(self, kernel: Kernel, fingerprint: Fingerprint, profile: str | None = None) -> bool:
        """Whether a search of this kernel here has ended (an interrupted one goes on next time)."""
        return any(record.status == "done" for record in self.of(kernel, fingerprint, profile))

    def append(self, record: Record) -> None:
        """Adds the record to the file, in one write; on disk for good once its kernel's search is done.

        Raises OSError if that fails.
        """
        with lines.held(self.path) as descriptor:
            lines.add(descriptor, [record.line().encode()], sync=record.status == "done")

    def merge(self, other: Log) -> int:
        """Appends the lines of the other log that this one lacks, as they are; returns how many.

        Those of a later schema come along; those that are no records do not. Raises OSError.
        """
        if self.path.exists() and other.path.exists() and self.path.samefile(other.path):
            return 0
        with lines.held(self.path) as descriptor:
            known = set(map(_digest, lines.read(descriptor)))
            before = len(known)
            lines.add(descriptor, _lacking(other, known), sync=True)
            return len(known) - before

    def prune(self, retired: Callable[[Record], bool]) -> int:
        """Rewrites the file without the retired records; how many those are. Other lines stay as they are.

        Records that others append meanwhile are not lost: they wait for the new file. Raises OSError.
        """
        with lines.held(self.path) as descriptor:
            dropped = {row for row, line in enumerate(lines.read(descriptor)) if _retired(line, retired)}
            if dropped:
                kept = (line for row, line in enumerate(lines.read(descriptor)) if row not in dropped)
                lines.rewrite(self.path, descriptor, kept)
            return len(dropped)

    @contextmanager
    def _current(self) -> Iterator[int]:
        """The file's descriptor, while the index knows all of its lines."""
        with lines.TURN:
            with self._opened() as stream:
                self._catch_up(stream)
                yield stream.fileno()

    def _now(self, choose: Callable[[Index], Sequence[int]]) -> Iterator[tuple[int, bytes]]:
        """Rows and their lines, from the file that the path names now even if another takes its place."""
        with self._current() as descriptor:
            known, mine = self._index, os.dup(descriptor)
            rows = choose(known)
        try:
            yield from zip(rows, known.lines(mine, rows))
        finally:
            with lines.TURN:  # closing it drops a lock that another thread holds
                os.close(mine)

    def _opened(self) -> BinaryIO:
        try:
            return self.path.open("rb", BUFFER)
        except FileNotFoundError:
            return open(os.devnull, "rb")
        except OSError as error:
            why = f"{self.path} is no log: {error.strerror}; name another file with --log"
            raise BadLog(why) from None

    def _catch_up(self, stream: BinaryIO) -> None:
        status, known = os.fstat(stream.fileno()), self._index
        if status.st_ino != known.inode or status.st_size < known.end:
            self._index, self._groups, self._broken = index.load(self.path, stream), {}, {}
        if status.st_size > self._index.end:
            rows = len(self._index.keys)
            self._index.grow(stream)
            for key in self._index.keys[rows:]:
                self._groups.pop(key, None)
            self._index.keep(self.path, stream)

    def _group(self, key: int) -> list[Record]:
        with self._current() as descriptor:
            if key not in self._groups:
                rows = self._index.rows(key)
                read = map(self._parse, rows, self._index.lines(descriptor, rows))
                self._groups[key] = [record for record in read if record is not None]
            return self._groups[key]

    def _parse(self, row: int, line: bytes) -> Record | None:
        try:
            return parse(line)
        except BadRecord as bad:
            self._broken[row] = str(bad)
            return None

    def _foreign(self, descriptor: int) -> dict[int, BadRecord]:
        """The first lines that do not even look like records, by their rows, and what is wrong with them."""
        rows, found = self._index.rows(FOREIGN)[:MOST], {}
        for row, line in zip(rows, self._index.lines(descriptor, rows)):
            try:
                parse(line)
            except BadRecord as bad:
                found[row] = bad
        return found

    def _sentence(self, row: int, why: object) -> str:
        return f"{self.path}:{row + 1}: {why}; the line is left out"


def _lacking(log: Log, known: set[bytes]) -> Iterator[bytes]:
    """The lines of a log that are not known yet; then they are."""
    for line in log.lines():
        digest = _digest(line)
        if digest not in known and _belongs(line):
            known.add(digest)
            yield line


def _belongs(line: bytes) -> bool:
    try:
        parse(line)
    except LaterRecord:
        return True
    except BadRecord:
        return False
    return True


def _retired(line: bytes, retired: Callable[[Record], bool]) -> bool:
    try:
        return retired(parse(line))
    except BadRecord:
        return False


def _digest(line: bytes) -> bytes:
    return hashlib.blake2b(line.strip(), digest_size=16).digest()


def default_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the log lies unless --log names another file."""
    data = environment.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(data) / "moec" / "tuning.jsonl"
