"""What the toolchain's programs made, kept in the user's cache: making the same thing twice costs nothing.

A result lies under the hash of all that shapes it, its toolchain among that, compressed. It appears whole or
not at all, and one that cannot be read is made again.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from .. import native
from .toolchain import find


class Passing(Exception):
    """Raised by what makes a result, with it, where it is not for keeping: it may be another next time."""

    def __init__(self, result: bytes) -> None:
        super().__init__(result)
        self.result = result


def kept(kind: str, shaped_by: object, make: Callable[[], bytes]) -> bytes:
    """The result of `make`, from the cache where it was made before. Raises what `make` raises.

    shaped_by: all that it depends on but the toolchain, of types whose repr tells their value.
    """
    place = place_of(kind, shaped_by)
    with suppress(OSError, zlib.error):
        return zlib.decompress(place.read_bytes())
    try:
        made = make()
    except Passing as passing:
        return passing.result
    keep(place, zlib.compress(made, 1))
    return made


def place_of(kind: str, shaped_by: object) -> Path:
    """Where such a result is kept."""
    name = sha256(f"{find().digest} {shaped_by!r}".encode()).hexdigest()
    return native.cache_folder() / "ascend" / kind / name


def keep(place: Path, content: bytes) -> None:
    """Writes it; a cache that cannot be written is no reason to fail."""
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=".")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(name, place)
        except OSError:
            os.unlink(name)
