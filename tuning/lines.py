"""The file under a log: lines that several processes, on several machines perhaps, add to and rewrite.

Locks are POSIX byte-range locks (fcntl.lockf) on the file itself. flock would be simpler, but a shared
filesystem need not carry it to other machines (older NFS keeps it local, some cluster filesystems refuse it),
while byte-range locks are part of NFS, and a client that takes one rereads the file's size and, when it lets
go, has written its bytes back: the writer after it appends behind them. Their two traps: they hold between
processes only, so the threads of one take turns by TURN; and closing any descriptor of the file drops them,
so who holds one reads through it, and who opens the file to read does so within TURN.

A rewrite puts a new file in the old one's place by rename. Who waited for the lock of the old one then holds
a file without a name and would write into nothing; held() notices and takes the new one. Over NFS another
client's old file may be gone altogether (ESTALE), which is the same.

What is relied on is rename, and byte-range locks as NFSv4 has them (NFSv3 needs its lock daemon). That was
tried between processes on local filesystems; an NFS server was not at hand.

What is written survives a crash of its process at once. Power failures are guarded against where a lot would
be lost: the callers sync when a kernel's search is done and after a merge, a rewrite always does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

TURN = threading.RLock()
BLOCK = 1 << 20  # bytes written at once, when there are many lines


@contextmanager
def held(path: Path) -> Iterator[int]:
    """The descriptor of the file at path, made if missing, that nobody else writes to meanwhile.

    Raises OSError if it cannot be opened or locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with TURN:
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if _taken(path, descriptor):
                    yield descriptor
                    return
            finally:
                os.close(descriptor)


def _lock(path: Path, descriptor: int) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        why = f"its filesystem locks no files ({error.strerror}); keep the log on another one"
        raise OSError(error.errno, why, str(path)) from None


def _taken(path: Path, descriptor: int) -> bool:
    """Locks the descriptor's file; whether it is still the one at path. Its count of names is asked first:
    taking the lock made an NFS client refresh that, while what it knows of the folder may be a minute old.
    """
    try:
        _lock(path, descriptor)
        mine = os.fstat(descriptor)
        return mine.st_nlink > 0 and os.path.samestat(mine, os.stat(path))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise
        return False


def add(descriptor: int, lines: Iterable[bytes], sync: bool = False) -> None:
    """Appends lines to a held file, each with its newline; those that fit into a block in one write.

    Raises OSError if not all of it could be written.
    """
    size = os.fstat(descriptor).st_size
    torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
    block = bytearray(b"\n" if torn else b"")
    for line in lines:
        block += line.rstrip(b"\n") + b"\n"
        if len(block) >= BLOCK:
            _write(descriptor, block)
            block.clear()
    _write(descriptor, block)
    if sync:
        os.fsync(descriptor)


def _write(descriptor: int, block: bytearray) -> None:
    if os.write(descriptor, block) != len(block):
        raise OSError(errno.ENOSPC, "lines were written in part only; is the disk full?")


def rewrite(path: Path, descriptor: int, lines: Iterable[bytes]) -> None:
    """Puts a file of these lines in place of the held one: all of them, or none and the old one stays."""
    target = Path(os.path.realpath(path))  # a link stays a link
    new, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        os.fchmod(new, os.fstat(descriptor).st_mode & 0o7777)
        add(new, lines, sync=True)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    finally:
        os.close(new)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(descriptor: int) -> Iterator[bytes]:
    """The lines of a held file, from its beginning, each with its newline if it has one."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    with open(descriptor, "rb", closefd=False) as stream:
        yield from stream
