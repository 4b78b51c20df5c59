"""Several writers of one log, and what the filesystem may do to them."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from moec.tuning import lines
from moec.tuning.log import Log
from moec.tuning.record import Record

from .log_records import HERE, KERNEL, ok

LATER = b'{"schema":2,"kernel":"of another time"}'
WRITER = """
import pathlib, sys
from moec.targets.base import Kernel
from moec.tuning.fingerprint import Fingerprint
from moec.tuning.log import Log
from moec.tuning.record import Record
log, key = Log(pathlib.Path(sys.argv[1])), (Kernel('k', ()), Fingerprint('i', 'c', 1, 'g'))
for tile in range(300): log.append(Record(*key, {'tile': tile}, 'crashed', sys.argv[2] + 'x' * 2000))
"""
TRY = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError: print("taken")
"""


def test_nothing_is_lost_while_another_process_prunes(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(log.path), name]) for name in "ab"]
    pruned = 0
    while any(writer.poll() is None for writer in writers):
        log.append(ok(1, 1.0))
        pruned += log.prune(lambda record: record.status == "ok")
    assert [writer.returncode for writer in writers] == [0, 0]
    assert pruned > 1
    found = Counter((record.reason[0], record.schedule["tile"]) for record in Log(log.path))
    assert found == Counter((name, tile) for name in "ab" for tile in range(300))
    assert log.problems == []


def test_nothing_is_lost_between_threads(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")

    def work(name: str) -> None:
        for tile in range(30):
            log.append(Record(KERNEL, HERE, {"tile": tile}, "crashed", name))
            assert log.best(KERNEL, HERE) is None  # opens the file, and closes it

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        log.append(Record(KERNEL, HERE, {"tile": 0}, "refused", "old"))
        log.prune(lambda record: record.reason == "old")
    assert Counter(record.reason for record in log) == {"a": 30, "b": 30, "c": 30}


def test_a_held_log_is_locked_for_others(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with lines.held(path) as descriptor:
        assert list(lines.read(descriptor)) == []  # reading must not give the lock away
        said = subprocess.run([sys.executable, "-c", TRY, str(path)], capture_output=True, check=True).stdout
    assert said == b"taken\n"


def test_who_waited_for_a_file_without_a_name_takes_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.append(ok(1, 1.0))
    locks, lockf = [0], fcntl.lockf

    def pruned_meanwhile(descriptor: int, how: int) -> None:
        locks[0] += 1
        if locks[0] == 1:
            (tmp_path / "new").write_text("")
            os.replace(tmp_path / "new", log.path)
        elif locks[0] == 2:
            log.path.unlink()
        elif locks[0] == 3:
            raise OSError(errno.ESTALE, "Stale file handle")
        lockf(descriptor, how)

    monkeypatch.setattr(fcntl, "lockf", pruned_meanwhile)
    log.append(ok(2, 0.5))
    assert locks[0] == 4
    assert [record.schedule["tile"] for record in log.records] == [2]


def test_prune_keeps_what_it_does_not_understand(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    kept = [LATER, b"", b"{nonsense", ok(2, 0.5).line().encode()]
    path.write_bytes(b"\n".join([ok(1, 1.0).line().encode(), *kept, b'{"schema":1,"kern']))
    path.chmod(0o640)
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    assert Log(link).prune(lambda record: record.schedule["tile"] == 1) == 1
    assert path.read_bytes() == b"\n".join([*kept, b'{"schema":1,"kern', b""])
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    inode = path.stat().st_ino
    assert Log(path).prune(lambda record: False) == 0
    assert path.stat().st_ino == inode  # there was nothing to do


def test_a_rewrite_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path / "log.jsonl")
    for tile in (1, 2):
        log.append(ok(tile, 1.0))
    before = log.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: len(data) // 2)
        with pytest.raises(OSError, match="is the disk full"):
            log.prune(lambda record: record.schedule["tile"] == 1)
        with pytest.raises(OSError, match="is the disk full"):
            log.append(ok(3, 1.0))
    assert log.path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_filesystem_without_locks_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    with pytest.raises(OSError, match=r"its filesystem locks no files .*; keep the log on another one"):
        Log(tmp_path / "log.jsonl").append(ok(1, 1.0))


def test_what_would_be_much_to_lose_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    log, other = Log(tmp_path / "log.jsonl"), Log(tmp_path / "other.jsonl")
    log.append(ok(1, 1.0))
    assert synced == []
    log.append(replace(ok(1, 1.0), status="done"))
    assert len(synced) == 1
    other.merge(log)
    assert len(synced) == 2
    log.prune(lambda record: record.status == "done")
    assert len(synced) == 4  # the new file, and the folder that names it
