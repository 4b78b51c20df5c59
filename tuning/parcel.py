"""What was built in a folder as data that travels: files by their paths in it, each with its SHA-256."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path, PurePosixPath

Parcel = Sequence[tuple[str, str, bytes]]  # of each file its path, its SHA-256 and its bytes


def packed(folder: Path) -> Parcel:
    """The files of a folder and of those in it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    contents = ((file.relative_to(folder).as_posix(), file.read_bytes()) for file in files)
    return [(name, sha256(content).hexdigest(), content) for name, content in contents]


def unpacked(parcel: Parcel, folder: Path) -> None:
    """Writes them into an empty folder. Raises ValueError for a path that leaves it, or damaged bytes."""
    for name, expected, content in parcel:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"what was built holds the file {name!r}, which is not in its folder")
        if (found := sha256(content).hexdigest()) != expected:
            raise ValueError(f"{name} came damaged: its SHA-256 is {found}, not {expected}")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
