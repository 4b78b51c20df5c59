"""Which files of an artifact were hashed here before and cannot have changed since.

A large artifact takes seconds to hash, each time it is loaded. The time of a file's last change, which only
the system sets, tells whether that is needed. The notes lie in the user's cache; without them all is hashed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from .manifest import NAME

RECENT_NS = 100_000_000  # a change so shortly after another one may bear the same time


def remember(folder: Path, names: Iterable[str]) -> None:
    """Note that these files are as the manifest says; that they cannot be noted is no reason to fail."""
    now = time.time_ns()
    stamps = {name: stamp(folder / name) for name in names}
    old = {name: found for name, found in stamps.items() if now - found[-1] > RECENT_NS}
    try:
        place = place_of(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=place.parent)
        with os.fdopen(handle, "w") as file:
            json.dump(old, file)
        os.replace(temporary, place)
    except OSError:
        pass


def unchanged(folder: Path) -> set[str]:
    """The names of the files that are as they were when they were noted."""
    try:
        noted = json.loads(place_of(folder).read_text())
        return {name for name, found in noted.items() if stamp(folder / name) == found}
    except (OSError, ValueError, AttributeError):
        return set()


def stamp(path: Path) -> list[int]:
    """What is another after any change of the file."""
    status = path.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def place_of(folder: Path) -> Path:
    """Where it is noted for this folder with this manifest."""
    key = hashlib.sha256(bytes(folder.resolve()) + b"\n" + (folder / NAME).read_bytes()).hexdigest()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "moec" / "verified" / key
