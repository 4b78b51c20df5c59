"""Peers that cannot run here: left out by name, with the reason."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

Peer = TypeVar("Peer")


class Absent(Exception):
    """A peer that cannot run here; the text says what it lacks and what would bring it."""


def need(package: str, extra: str) -> None:
    """Raises Absent where a package is not installed; `extra` of ours brings it."""
    if importlib.util.find_spec(package) is None:
        raise Absent(f"the package {package} is not installed: pip install 'moec[{extra}]'")


def present(makers: Mapping[str, Callable[[], Peer]]) -> dict[str, Peer]:
    """What those makers give that can; one that raises Absent is named on stderr and left out."""
    made = {}
    for name, make in makers.items():
        try:
            made[name] = make()
        except Absent as reason:
            print(f"  skipped: {name}: {reason}", file=sys.stderr)
    return made


def expect_memory(size: int) -> None:
    """Raises Absent where a model of so many bytes would leave no room for anything else."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if whole < size * 1.25:
        raise Absent(f"it takes {size / 1e9:.1f} GB, and this machine has {whole / 1e9:.1f} GB of memory")
