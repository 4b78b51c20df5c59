"""What was built travels as files: all of them arrive as they were, or none does."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.tuning.parcel import packed, unpacked


def test_files_arrive_as_they_were(tmp_path: Path) -> None:
    sent, come = tmp_path / "sent", tmp_path / "come"
    (sent / "ascend").mkdir(parents=True)
    files = {"kernel.so": b"\x7fELF\x00", "ascend/rows.o": bytes(range(256)), "empty": b""}
    for name, content in files.items():
        (sent / name).write_bytes(content)
    unpacked(packed(sent), come)
    assert {each.relative_to(come).as_posix(): each.read_bytes() for each in come.rglob("*.*")} | {
        "empty": (come / "empty").read_bytes()
    } == files


def test_what_came_damaged_or_would_lie_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kernel.so").write_bytes(b"whole")
    ((name, digest, _),) = packed(tmp_path)
    with pytest.raises(ValueError, match=f"kernel.so came damaged: its SHA-256 is .*, not {digest}"):
        unpacked([(name, digest, b"whale")], tmp_path / "new")
    for path in ("../out", "/out", "a/../../out"):
        with pytest.raises(ValueError, match=f"the file '{path}', which is not in its folder"):
            unpacked([(path, digest, b"whole")], tmp_path / "new")
    assert not (tmp_path / "new").exists()
